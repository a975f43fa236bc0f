//! The model of a server.

use std::sync::Arc;

use zmlx_models::{ChatTemplate, Tokenizer};

use crate::constrain::Constraints;
use crate::error::Error;
use crate::options::{SamplingDefaults, ServerOptions, ToolParser};
use crate::tools::ToolSyntax;

/// The facts about a model that the server needs besides the engine that runs it.
#[derive(Debug)]
pub struct ServedModel {
    /// Its name.
    pub id: String,
    /// Where it came from, as the user gave it.
    pub path: Option<String>,
    /// Turns text into tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Turns conversations into prompts. `None` if the model can only continue texts.
    pub template: Option<ChatTemplate>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Number of token ids for which the model has logits.
    pub vocab_size: usize,
    /// How tokens are chosen if a request does not say it.
    pub sampling: SamplingDefaults,
}

/// The model, ready to serve.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) model: ServedModel,
    /// The largest number of tokens in a sequence.
    pub(crate) context: usize,
    /// The syntax of its tool calls; `None` if calls are not parsed.
    pub(crate) syntax: Option<ToolSyntax>,
    pub(crate) constraints: Constraints,
    /// When it was loaded, in seconds since 1970.
    pub(crate) created: u64,
}

impl Loaded {
    pub(crate) fn new(model: ServedModel, context: usize, options: &ServerOptions) -> Result<Self, Error> {
        let syntax = match options.tool_parser {
            ToolParser::Off => None,
            ToolParser::Fixed(syntax) => Some(syntax),
            ToolParser::OfTemplate => {
                model.template.as_ref().and_then(|t| ToolSyntax::of_template(t.source(true)))
            }
        };
        let constraints = Constraints::new(&model)?;
        Ok(Self { model, context, syntax, constraints, created: now() })
    }

    /// True if a request with this name asks for this model.
    pub(crate) fn is_named(&self, name: &str, options: &ServerOptions) -> bool {
        options.any_model
            || matches!(name, "" | "default" | "default_model")
            || name == self.model.id
            || Some(name) == self.model.path.as_deref()
            || options.names().contains(name)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
