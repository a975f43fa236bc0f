//! Why a template was refused or stopped.

/// Why a template does not parse or does not render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The text is not a template.
    #[error("line {line}: {message}")]
    Syntax {
        /// The line of the template, counted from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// An expression has no value. The message is Python's.
    #[error("line {line}: {message}")]
    Failed {
        /// The line of the template, counted from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// The template called `raise_exception`.
    #[error("{message}")]
    Raised {
        /// The template's message.
        message: String,
    },
    /// Parsing or rendering costs more than is allowed.
    #[error("the template takes more than {limit} {what}")]
    TooLarge {
        /// What exceeds its limit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// A result of the interpreter. The error is boxed, because most results are small values.
pub(super) type Res<T> = Result<T, Box<Fault>>;

/// An error that is being returned. The statement that it passes adds its line.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    kind: Kind,
    line: u32,
}

#[derive(Clone, Debug)]
enum Kind {
    Syntax(String),
    Failed(String),
    Raised(String),
    TooLarge { what: &'static str, limit: u64 },
}

/// The longest message: a template could make it as long as a conversation.
const MAX_MESSAGE_CHARS: usize = 2000;

impl Fault {
    /// An error in the template's text.
    pub(super) fn syntax<T>(line: u32, message: impl Into<String>) -> Res<T> {
        Err(Box::new(Self { kind: Kind::Syntax(message.into()), line }))
    }

    /// An error with the message of a Python exception.
    pub(super) fn failed<T>(message: impl Into<String>) -> Res<T> {
        Err(Box::new(Self { kind: Kind::Failed(message.into()), line: 0 }))
    }

    /// The error that the template raised.
    pub(super) fn raised<T>(message: String) -> Res<T> {
        Err(Box::new(Self { kind: Kind::Raised(message), line: 0 }))
    }

    /// A limit is exceeded.
    pub(super) fn too_large<T>(what: &'static str, limit: u64) -> Res<T> {
        Err(Box::new(Self { kind: Kind::TooLarge { what, limit }, line: 0 }))
    }

    /// Adds the line if the error has none yet.
    pub(super) fn at(mut self: Box<Self>, line: u32) -> Box<Self> {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl From<Fault> for TemplateError {
    fn from(fault: Fault) -> Self {
        let line = fault.line;
        match fault.kind {
            Kind::Syntax(message) => Self::Syntax { line, message: short(message) },
            Kind::Failed(message) => Self::Failed { line, message: short(message) },
            Kind::Raised(message) => Self::Raised { message: short(message) },
            Kind::TooLarge { what, limit } => Self::TooLarge { what, limit },
        }
    }
}

fn short(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_CHARS) {
        message.truncate(end);
        message.push('…');
    }
    message
}
