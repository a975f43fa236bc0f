//! The crate's error type.

use std::fmt;

/// Why a checkpoint, a request or a step was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The folder lacks a file that a checkpoint needs.
    #[error("{dir}: there is no {file}")]
    MissingFile {
        /// The folder.
        dir: String,
        /// The file, or the pattern of files.
        file: &'static str,
    },
    /// A file is not JSON.
    #[error("{file}: not valid JSON: {source}")]
    Json {
        /// The file.
        file: String,
        /// The position and the reason.
        source: serde_json::Error,
    },
    /// A key of a JSON file is missing, has another type, or a value that makes no sense.
    #[error("{file}: {key}: expected {want}, got {got}")]
    Field {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What it must be.
        want: String,
        /// What the file holds.
        got: String,
    },
    /// A valid setting that this engine does not implement.
    #[error("{file}: {key} = {got} is not supported, only {want}")]
    UnsupportedSetting {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is supported.
        want: String,
        /// What the file holds.
        got: String,
    },
    /// There is no decoder for this `model_type`.
    #[error("{file}: unknown model_type {got:?}; known: {}", known.join(", "))]
    UnknownModelType {
        /// The file.
        file: String,
        /// The type it names.
        got: String,
        /// The types that are implemented.
        known: Vec<&'static str>,
    },
    /// A shard is not a valid safetensors file.
    #[error("{file}: not a valid safetensors file: {source}")]
    Shard {
        /// The shard.
        file: String,
        /// What is wrong with its header.
        source: safetensors::SafeTensorError,
    },
    /// Two shards hold a tensor of the same name.
    #[error("tensor {name} is in both {first} and {second}")]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// The shard that was read first.
        first: String,
        /// The other shard.
        second: String,
    },
    /// The tensors of the checkpoint are not those that the config requires. The error lists all differences.
    #[error("{model}: {}", WeightProblem::list(problems))]
    Weights {
        /// The checkpoint.
        model: String,
        /// Every tensor that is missing, unexpected or has the wrong shape.
        problems: Vec<WeightProblem>,
    },
    /// The tokenizer could not be loaded, or it refused a text or tokens.
    #[error("{file}: {source}")]
    Tokenizer {
        /// The tokenizer's file.
        file: String,
        /// The tokenizer's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The checkpoint has no chat template.
    #[error(
        "{name} has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json"
    )]
    NoChatTemplate {
        /// The checkpoint.
        name: String,
    },
    /// The chat template does not parse or does not render.
    #[error("chat template: {source}")]
    ChatTemplate {
        /// The place and the reason.
        source: crate::jinja::TemplateError,
    },
    /// The chat template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {message}")]
    ChatRefused {
        /// The template's message.
        message: String,
    },
    /// A parameter of a request is out of its range.
    #[error("{field}: expected {want}, got {got}")]
    Parameter {
        /// The parameter.
        field: &'static str,
        /// Its range.
        want: &'static str,
        /// The request's value.
        got: String,
    },
    /// The model gave logits from which nothing can be chosen.
    #[error("logits: expected {want}, got {got} at token {token}")]
    Logits {
        /// What they must be.
        want: &'static str,
        /// The value.
        got: f32,
        /// The first token with such a value.
        token: usize,
    },
    /// The constraint on a request's tokens failed.
    #[error("the answer's constraint failed: {why}")]
    Constraint {
        /// The reason.
        why: String,
    },
    /// A description of random weights that cannot be understood.
    #[error(
        "unknown synthetic model {got:?}: expected one of {known}, optionally followed by ,layers=N ,vocab=N ,mode=affine|mxfp4|mxfp8|nvfp4 ,bits=N ,group=N"
    )]
    Synthetic {
        /// The description.
        got: String,
        /// The known architectures.
        known: String,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty: expected at least one token")]
    EmptyPrompt,
    /// A token id that the model does not have.
    #[error("token {token} is out of range: the vocabulary has {vocab}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Number of ids.
        vocab: usize,
    },
    /// A sequence would not fit the model's context.
    #[error(
        "the sequence has {n_tokens} tokens, but the model's context (max_position_embeddings) is {limit}"
    )]
    ContextLength {
        /// The sequence's length.
        n_tokens: usize,
        /// The model's context.
        limit: usize,
    },
    /// The pool does not have this slot, or no longer has it, or two inputs of a batch name it.
    #[error("the slot was freed, belongs to another pool, or is given twice")]
    Slot,
    /// The pool was made for another model.
    #[error("the cache pool belongs to another model")]
    ForeignPool,
    /// A sequence is shorter than this length, or cannot be shortened to it.
    #[error(
        "a sequence of {had} tokens cannot be cut to {n_tokens}: it can be emptied, or cut to {shortest} to {had}"
    )]
    Shorten {
        /// The length asked for.
        n_tokens: usize,
        /// The smallest length above 0 that is possible.
        shortest: usize,
        /// Its length.
        had: usize,
    },
    /// The caches would grow past the pool's limit.
    #[error("the caches hold {used_bytes} bytes and need {want_bytes} more, but may take {limit_bytes}")]
    CacheFull {
        /// Bytes that the step needs.
        want_bytes: u64,
        /// Bytes in use.
        used_bytes: u64,
        /// The pool's limit.
        limit_bytes: u64,
    },
    /// One input of a batch is bad. The others may be good.
    #[error("{source}")]
    Input {
        /// Its sequence.
        slot: crate::Slot,
        /// The error of that input.
        source: Box<Error>,
    },
    /// A weight does not fit the format that a conversion should give it.
    #[error("{name}: expected {want}, got {got}")]
    Unconvertible {
        /// The weight, or the model.
        name: String,
        /// What it must be.
        want: String,
        /// What it is.
        got: String,
    },
    /// A conversion must not write into this folder.
    #[error("{dir}: expected a new or empty folder, or an unfinished conversion of the same kind, got {got}")]
    OutputFolder {
        /// The folder.
        dir: String,
        /// The contents of the folder.
        got: String,
    },
    /// The disk has less space than a conversion needs.
    #[error("{dir}: {want_bytes} bytes are needed, and {free_bytes} are free")]
    DiskSpace {
        /// The folder.
        dir: String,
        /// The bytes that are needed.
        want_bytes: u64,
        /// The bytes that are free.
        free_bytes: u64,
    },
    /// A text is shorter than one window.
    #[error("the text has {n_tokens} tokens, fewer than one window of {context}")]
    TextTooShort {
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens of a window.
        context: usize,
    },
    /// Work that can be resumed was stopped by the caller.
    #[error("stopped before the end")]
    Stopped,
    /// A model that cannot be split among so many ranks.
    #[error("{model} cannot be split among {n_ranks} ranks, as {what}; {}", numbers_that_fit(fits))]
    Split {
        /// The checkpoint.
        model: String,
        /// The number of ranks that was asked for.
        n_ranks: usize,
        /// What does not divide, or is not split yet.
        what: String,
        /// Numbers of ranks that would do.
        fits: Vec<usize>,
    },
    /// A model whose layers cannot be shared out among so many ranks.
    #[error("the layers of {model} cannot be shared out among {n_ranks} ranks, as {what}")]
    Stages {
        /// The checkpoint.
        model: String,
        /// The number of ranks that was asked for.
        n_ranks: usize,
        /// What does not divide.
        what: String,
    },
    /// Rank 0 gave an order that this rank cannot follow.
    #[error("rank 0 asked for {what}, which this rank does not have: the ranks are no longer alike")]
    Order {
        /// What is missing.
        what: &'static str,
    },
    /// The kernels refused a weight or an operation.
    #[error(transparent)]
    Kernels(#[from] zmlx_kernels::Error),
}

impl Error {
    /// The underlying error, without the input that it belongs to.
    pub fn root(&self) -> &Self {
        match self {
            Self::Input { source, .. } => source.root(),
            _ => self,
        }
    }
}

fn numbers_that_fit(fits: &[usize]) -> String {
    match fits {
        [] => "it runs on one rank only".to_owned(),
        [one] => format!("it can be split among {one}"),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(ToString::to_string).collect();
            format!("it can be split among {} or {last}", first.join(", "))
        }
    }
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// One tensor that is not as the model needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightProblem {
    /// The model needs the tensor, but no shard has it.
    Missing {
        /// The tensor.
        name: String,
    },
    /// Its shape is not the one that the config implies.
    Shape {
        /// The tensor.
        name: String,
        /// The shape in the file.
        got: Vec<usize>,
        /// The shape that the model needs.
        want: Vec<usize>,
    },
    /// Its element type is not one of those that the model can use.
    DType {
        /// The tensor.
        name: String,
        /// The type in the file.
        got: String,
        /// The types that can be used.
        want: &'static str,
    },
    /// Weight and scales fit no quantised format, or not the one that the config gives.
    Format {
        /// The weight's path, without `.weight`.
        name: String,
        /// What the files hold.
        got: String,
        /// What the model needs.
        want: String,
    },
    /// The model does not use the tensor.
    Extra {
        /// The tensor.
        name: String,
    },
}

impl WeightProblem {
    /// The text of an error message, cut to a few lines: a wrong config could otherwise print thousands.
    fn list(problems: &[Self]) -> String {
        const SHOWN: usize = 20;
        let mut text = format!("{} of its tensors do not match config.json", problems.len());
        for p in problems.iter().take(SHOWN) {
            text += &format!("\n  {p}");
        }
        if problems.len() > SHOWN {
            text += &format!("\n  and {} more", problems.len() - SHOWN);
        }
        text
    }
}

impl fmt::Display for WeightProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "{name}: missing"),
            Self::Shape { name, got, want } => write!(f, "{name}: expected shape {want:?}, got {got:?}"),
            Self::DType { name, got, want } => write!(f, "{name}: expected {want}, got {got}"),
            Self::Format { name, got, want } => write!(f, "{name}: expected {want}, got {got}"),
            Self::Extra { name } => write!(f, "{name}: the model has no such tensor"),
        }
    }
}
