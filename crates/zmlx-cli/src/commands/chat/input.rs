//! Where messages come from: a person at a terminal, with line editing and history, or a pipe.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result};

use super::line::goes_on;

/// The result of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A text of one or more lines.
    Text(String),
    /// The end of the input, or Ctrl-D.
    End,
    /// Ctrl-C at an empty prompt.
    Interrupted,
}

/// The source of messages.
pub(super) enum Source {
    #[cfg(feature = "shell")]
    Editor(Box<editor::Editor>),
    Lines {
        is_person: bool,
    },
}

impl Source {
    /// The line editor if both stdin and stdout are terminals, otherwise plain lines.
    pub(super) fn open() -> Result<Self> {
        let is_person = std::io::stdin().is_terminal();
        #[cfg(feature = "shell")]
        if is_person && std::io::stdout().is_terminal() {
            return Ok(Self::Editor(Box::new(editor::Editor::open()?)));
        }
        Ok(Self::Lines { is_person })
    }

    /// True if a person types. Then the program reports errors and continues.
    pub(super) fn is_person(&self) -> bool {
        match self {
            #[cfg(feature = "shell")]
            Self::Editor(_) => true,
            Self::Lines { is_person } => *is_person,
        }
    }

    pub(super) fn read(&mut self) -> Result<Read> {
        match self {
            #[cfg(feature = "shell")]
            Self::Editor(editor) => editor.read(),
            Self::Lines { is_person } => read_lines(*is_person),
        }
    }
}

/// Reads a line and its continuation lines. Stdin is locked only for the duration of a read, not while the model
/// answers.
fn read_lines(is_person: bool) -> Result<Read> {
    let mut text = String::new();
    loop {
        if is_person {
            eprint_prompt(text.is_empty());
        }
        let n = std::io::stdin().lock().read_line(&mut text).context("stdin")?;
        if n == 0 && text.is_empty() {
            return Ok(Read::End);
        }
        if n == 0 || !goes_on(&text) {
            return Ok(Read::Text(text));
        }
    }
}

fn eprint_prompt(is_first: bool) {
    use std::io::Write;
    // It does not matter if the prompt cannot be shown.
    let _ = write!(std::io::stderr(), "{}", if is_first { "> " } else { "… " });
}

#[cfg(feature = "shell")]
mod editor {
    use std::path::PathBuf;

    use anyhow::{Context as _, Result};
    use rustyline::completion::Completer;
    use rustyline::error::ReadlineError;
    use rustyline::highlight::Highlighter;
    use rustyline::hint::Hinter;
    use rustyline::history::FileHistory;
    use rustyline::validate::{ValidationContext, ValidationResult, Validator};
    use rustyline::{
        Cmd, ConditionalEventHandler, Config, Context, Event, EventContext, EventHandler, Helper, KeyEvent,
        Movement, RepeatCount,
    };

    use super::super::line::{COMMANDS, goes_on};
    use super::Read;

    /// The number of entries that the history keeps.
    const MAX_HISTORY: usize = 1000;

    /// A line editor with a history.
    pub(in super::super) struct Editor {
        editor: rustyline::Editor<Chat, FileHistory>,
        history: Option<PathBuf>,
    }

    impl Editor {
        pub(super) fn open() -> Result<Self> {
            let config = Config::builder().max_history_size(MAX_HISTORY)?.history_ignore_space(true).build();
            let history = FileHistory::with_config(&config);
            let mut editor = rustyline::Editor::with_history(config, history)?;
            editor.set_helper(Some(Chat));
            editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(ClearFirst)));
            let history = history_path();
            if let Some(path) = &history {
                // Initially there is no history file.
                let _ = editor.load_history(path);
            }
            Ok(Self { editor, history })
        }

        pub(super) fn read(&mut self) -> Result<Read> {
            match self.editor.readline("> ") {
                Ok(text) => {
                    self.keep(&text);
                    Ok(Read::Text(text))
                }
                Err(ReadlineError::Eof) => Ok(Read::End),
                Err(ReadlineError::Interrupted) => Ok(Read::Interrupted),
                Err(error) => Err(error).context("the terminal"),
            }
        }

        /// Adds a text to the history. If the file cannot be written, the error is only logged.
        fn keep(&mut self, text: &str) {
            if !matches!(self.editor.add_history_entry(text), Ok(true)) {
                return;
            }
            let Some(path) = &self.history else { return };
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            let kept = made.map_err(ReadlineError::from).and_then(|()| self.editor.append_history(path));
            if let Err(error) = kept {
                tracing::debug!("{}: {error}", path.display());
                self.history = None;
            }
        }
    }

    /// `$XDG_STATE_HOME/zmlx/history`. Only its owner can read the file.
    fn history_path() -> Option<PathBuf> {
        let state = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let state = state.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")));
        state.map(|dir| dir.join("zmlx/history"))
    }

    /// Lets Ctrl-C clear a line that is not empty.
    struct ClearFirst;

    impl ConditionalEventHandler for ClearFirst {
        fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
            (!context.line().is_empty()).then_some(Cmd::Kill(Movement::WholeBuffer))
        }
    }

    /// Completes commands, and recognises lines that continue.
    struct Chat;

    impl Completer for Chat {
        type Candidate = String;

        fn complete(
            &self,
            line: &str,
            pos: usize,
            _: &Context<'_>,
        ) -> rustyline::Result<(usize, Vec<String>)> {
            let word = line.get(..pos).unwrap_or_default();
            let is_command = word.starts_with('/');
            let names =
                COMMANDS.iter().map(|(name, ..)| *name).filter(|name| is_command && name.starts_with(word));
            Ok((0, names.map(str::to_owned).collect()))
        }
    }

    impl Validator for Chat {
        fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
            let goes_on = goes_on(context.input());
            Ok(if goes_on { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
        }
    }

    impl Hinter for Chat {
        type Hint = String;
    }
    impl Highlighter for Chat {}
    impl Helper for Chat {}
}
