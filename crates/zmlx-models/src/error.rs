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
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder lacks a file without which it is no checkpoint.
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
        /// Where and why.
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
    /// A setting that is sound, but that this engine does not implement.
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
    /// No decoder for this `model_type`.
    #[error("{file}: unknown model_type {got:?}; known: {}", known.join(", "))]
    UnknownModelType {
        /// The file.
        file: String,
        /// The type it names.
        got: String,
        /// The types that are implemented.
        known: Vec<&'static str>,
    },
    /// A shard that is not a sound safetensors file.
    #[error("{file}: not a sound safetensors file: {source}")]
    Shard {
        /// The shard.
        file: String,
        /// What is wrong with its header.
        source: safetensors::SafeTensorError,
    },
    /// Two shards hold a tensor of the same name.
    #[error("tensor {name} is in {first} and again in {second}")]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// The shard that was read first.
        first: String,
        /// The other shard.
        second: String,
    },
    /// The tensors of the checkpoint are not those that the config promises; all differences at once.
    #[error("{model}: {}", WeightProblem::list(problems))]
    Weights {
        /// The checkpoint.
        model: String,
        /// Every tensor that is missing, mis-shaped or left over.
        problems: Vec<WeightProblem>,
    },
    /// The tokenizer could not be loaded, or refused a text or tokens.
    #[error("{file}: {source}")]
    Tokenizer {
        /// The tokenizer's file.
        file: String,
        /// What it said.
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
        /// Where and why.
        source: crate::jinja::TemplateError,
    },
    /// The chat template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses this conversation: {message}")]
    ChatRefused {
        /// The template's words.
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
    /// What limits a request's tokens failed.
    #[error("the constraint of the answer: {why}")]
    Constraint {
        /// Why.
        why: String,
    },
    /// A description of random weights that cannot be read.
    #[error(
        "unknown synthetic model {got:?}: expected one of {known}, then perhaps ,layers=N ,vocab=N ,mode=affine|mxfp4|mxfp8|nvfp4 ,bits=N ,group=N"
    )]
    Synthetic {
        /// The description.
        got: String,
        /// The architectures that there are.
        known: String,
    },
    /// There is nothing to continue.
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
        /// The model's.
        limit: usize,
    },
    /// A slot that the pool does not have, no longer has, or that two inputs of a batch name.
    #[error("the slot was freed, is of another pool, or is given twice")]
    Slot,
    /// A pool that was made for another model.
    #[error("the cache pool belongs to another model")]
    ForeignPool,
    /// A sequence cannot be made so short, or is not so long.
    #[error(
        "a sequence of {had} tokens cannot be cut to {n_tokens}: it can be emptied, or cut to {shortest} to {had}"
    )]
    Shorten {
        /// The length asked for.
        n_tokens: usize,
        /// The fewest tokens that can be had.
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
    /// One of a batch's inputs is bad; the others need not be.
    #[error("{source}")]
    Input {
        /// Its sequence.
        slot: crate::Slot,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A weight does not fit what a conversion should make of it.
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
        /// What is there.
        got: String,
    },
    /// The disk has less room than a conversion needs.
    #[error("{dir}: {want_bytes} bytes are needed, and {free_bytes} are free")]
    DiskSpace {
        /// The folder.
        dir: String,
        /// What is needed.
        want_bytes: u64,
        /// What is free.
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
    /// Work that can be taken up again was ended from outside.
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
    /// The kernels refused a weight or an operation.
    #[error(transparent)]
    Kernels(#[from] zmlx_kernels::Error),
}

impl Error {
    /// What is wrong, whichever input it is.
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
    /// The model needs it and no shard has it.
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
    /// Its element type cannot hold what it should.
    DType {
        /// The tensor.
        name: String,
        /// The type in the file.
        got: String,
        /// The types that would do.
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
    /// The model has no use for it.
    Extra {
        /// The tensor.
        name: String,
    },
}

impl WeightProblem {
    /// The lines of an error message; a wrong config would otherwise print thousands.
    fn list(problems: &[Self]) -> String {
        const SHOWN: usize = 20;
        let mut text = format!("{} of its tensors are not as config.json needs them", problems.len());
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
