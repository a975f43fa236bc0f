//! The server of `zmlx serve`: OpenAI's and Anthropic's interfaces on zmlx's engine.
//!
//! [`Server::bind`] listens. [`Server::run`] serves a model on the calling thread, and the engine stays on this thread.
//! HTTP runs on separate threads: they read requests, render and tokenise prompts, parse answers ([`tools`]), and talk
//! to the engine through channels. When a client disconnects, its channel closes, which ends its request.
#![forbid(unsafe_code)]

mod api;
mod call;
mod constrain;
mod engine;
mod error;
mod generation;
mod http;
mod metrics;
mod model;
mod options;
mod prepare;
mod server;
mod state;
pub mod tools;

pub use error::Error;
pub use model::ServedModel;
pub use options::{Feature, Reasoning, SamplingDefaults, ServerOptions, ToolParser};
pub use server::{Server, StopHandle};
