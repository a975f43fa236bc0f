//! Why a template was refused or stopped.

/// Why a template does not parse or does not render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The text is not a template.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line of the template, from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// An expression has no value, in the words of Python.
    #[error("line {line}: {message}")]
    Failed {
        /// Line of the template, from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// The template called `raise_exception`.
    #[error("{message}")]
    Raised {
        /// The template's words.
        message: String,
    },
    /// Parsing or rendering takes more than a template may cost.
    #[error("the template takes more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
}

/// A result of the interpreter. Boxed: most results are small values.
pub(super) type Res<T> = Result<T, Box<Fault>>;

/// An error on its way up, which learns its line from the statement that it passes.
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

/// Longest message: a template may make it as long as a conversation.
const MAX_MESSAGE_CHARS: usize = 2000;

impl Fault {
    /// An error of the template's text.
    pub(super) fn syntax<T>(line: u32, message: impl Into<String>) -> Res<T> {
        Err(Box::new(Self { kind: Kind::Syntax(message.into()), line }))
    }

    /// An error as a Python exception tells it.
    pub(super) fn failed<T>(message: impl Into<String>) -> Res<T> {
        Err(Box::new(Self { kind: Kind::Failed(message.into()), line: 0 }))
    }

    /// The template's own error.
    pub(super) fn raised<T>(message: String) -> Res<T> {
        Err(Box::new(Self { kind: Kind::Raised(message), line: 0 }))
    }

    /// A bound is exceeded.
    pub(super) fn too_large<T>(what: &'static str, limit: u64) -> Res<T> {
        Err(Box::new(Self { kind: Kind::TooLarge { what, limit }, line: 0 }))
    }

    /// The same error with the line, if it has none yet.
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
