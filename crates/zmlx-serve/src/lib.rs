//! The server of `zmlx serve`: OpenAI's and Anthropic's interfaces on zmlx's engine.
//!
//! [`Server::bind`] listens; [`Server::run`] serves a model on the thread that calls it, which the engine never leaves. HTTP
//! runs on threads of its own: they read requests, render and tokenise prompts ([`tools`] reads the answers), and talk to the
//! engine through channels. A client that has gone closes its channel, which ends its request.
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
