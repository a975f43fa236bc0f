//! Decoders for MLX checkpoints of the model families in `families`, with experts and without.
//!
//! The host side needs no backend. [`Checkpoint`] opens a folder (config, mapped shards). [`Tokenizer`],
//! [`Detokenizer`], [`StopStrings`] and [`ChatTemplate`] turn text into tokens and back. [`Sampler`] chooses the next
//! token from the logits.
//!
//! [`Model`] runs a checkpoint on any [`Backend`](zmlx_kernels::Backend). [`generate`] continues one prompt with it,
//! and an [`Engine`] continues many at once.
#![forbid(unsafe_code)]

pub mod architecture;
mod attention;
mod cache_pool;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod cost;
mod decoder;
pub mod detokenizer;
mod end_tokens;
pub mod engine;
mod error;
mod families;
mod fields;
mod floats;
mod follow;
mod generate;
mod jinja;
mod layer;
mod linear;
mod loader;
#[cfg(feature = "mlx")]
pub mod mlx;
pub mod perplexity;
pub mod sampler;
pub mod self_check;
pub mod stop;
pub mod tokenizer;

pub use architecture::Architecture;
pub use cache_pool::{CachePool, PoolOptions, Slot};
pub use chat::{AnswerPart, ChatMessage, ChatRequest, ChatTemplate, Ending, ThinkingMode, ThinkingSplitter};
pub use checkpoint::{Checkpoint, KvBDims, TensorInfo, TensorReader};
pub use config::QuantConfig;
pub use convert::{Action, ConvertOptions, Converted, Quantize, Recipe, convert};
pub use cost::{Cost, human_bytes};
pub use decoder::{ChosenInput, Input, Model, Tap, TapValue};
pub use detokenizer::Detokenizer;
pub use engine::{Engine, EngineOptions, EngineStats, Event, Generation, Request, RequestId, StopReason};
pub use error::{Error, Result, WeightProblem};
pub use families::{Family, families, model_types};
pub use follow::{Lead, Order, follow};
pub use generate::{Stream, generate, stream};
pub use jinja::TemplateError;
pub use loader::Progress;
pub use perplexity::{Divergence, Estimate, Perplexity, PerplexityOptions, Predictions, perplexity};
pub use sampler::{SampleContext, Sampled, Sampler, SamplingParams, TokenLogprob, TokenMask, top_logprobs};
pub use self_check::{SelfCheck, self_check};
pub use stop::{StopStep, StopStrings};
pub use tokenizer::Tokenizer;
pub use zmlx_kernels as kernels;
pub use zmlx_kernels::PREFILL_CHUNK;
pub use zmlx_kernels::{KvFormat, Logits};
pub use zmlx_moe as moe;
