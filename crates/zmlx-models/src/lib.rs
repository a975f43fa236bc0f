//! GLM-4.7-Flash and Qwen3 mixture-of-experts decoders for MLX checkpoints.
//!
//! The host side needs no backend: [`Checkpoint`] opens a folder (config, mapped shards), [`Tokenizer`],
//! [`Detokenizer`], [`StopStrings`] and [`ChatTemplate`] turn text into tokens and back, [`Sampler`] chooses the
//! next token from the logits.
//!
//! [`Model`] runs a checkpoint on any [`Backend`](zmlx_kernels::Backend), [`generate`] continues a prompt with it.
#![forbid(unsafe_code)]

mod attention;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod decoder;
pub mod detokenizer;
mod end_tokens;
mod error;
mod generate;
mod glm4_moe_lite;
mod jinja;
mod loader;
#[cfg(feature = "mlx")]
pub mod mlx;
mod qwen3_moe;
pub mod sampler;
pub mod self_check;
pub mod stop;
pub mod tokenizer;

pub use chat::{ChatMessage, ChatRequest, ChatTemplate, Ending};
pub use checkpoint::{Checkpoint, KvBDims, TensorInfo, TensorReader};
pub use config::{Glm4MoeLiteConfig, ModelConfig, QuantConfig, Qwen3MoeConfig};
pub use decoder::{Input, LogitsOf, Model, PREFILL_CHUNK, State, Tap, TapValue};
pub use detokenizer::Detokenizer;
pub use error::{Error, Result, WeightProblem};
pub use generate::{GenerateOptions, Generation, Step, StopReason, generate};
pub use jinja::TemplateError;
pub use loader::Progress;
pub use sampler::{Sampled, Sampler, SamplingParams};
pub use self_check::{SelfCheck, self_check};
pub use stop::{StopStep, StopStrings};
pub use tokenizer::Tokenizer;
