//! `zmlx chat` under a pseudo-terminal, as a person uses it.

use std::os::unix::fs::PermissionsExt;

use nix::sys::wait::WaitStatus;
use rexpect::session::{PtySession, spawn_command};
use serde_json::json;

use crate::*;

/// A session at its first prompt, and a folder for the files of the program.
struct Terminal {
    session: PtySession,
    state: tempfile::TempDir,
}

impl Terminal {
    fn start(dir: &str, more: &[&str], variables: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut chat = Command::new(env!("CARGO_BIN_EXE_zmlx"));
        chat.args(["chat", "--threads", "1", "--model", dir]).args(more);
        chat.env("XDG_STATE_HOME", state.path()).env("TERM", "xterm-256color").current_dir(state.path());
        for name in ["RUST_LOG", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            chat.env_remove(name);
        }
        chat.envs(variables.iter().copied());
        // After this time a text is considered missing.
        let session = spawn_command(chat, Some(60_000)).unwrap();
        let mut terminal = Self { session, state };
        terminal.sees("/help lists commands");
        terminal.sees("> ");
        terminal
    }

    /// Waits for a text; returns what came before it.
    #[track_caller]
    fn sees(&mut self, text: &str) -> String {
        self.session.exp_string(text).unwrap_or_else(|error| panic!("{text:?} does not come: {error}"))
    }

    /// Types a line that the next one continues.
    fn begins(&mut self, line: &str) {
        self.session.send_line(line).unwrap();
    }

    /// Types a line, and waits until the program has read it, so that the next prompt that appears is a new one.
    #[track_caller]
    fn types(&mut self, line: &str) {
        self.session.send_line(line).unwrap();
        self.sees("\u{1b}[?2004l");
    }

    /// Sends keys without a line end.
    fn keys(&mut self, keys: &str) {
        self.session.send(keys).unwrap();
        self.session.flush().unwrap();
    }

    fn control(&mut self, key: char) {
        self.session.send_control(key).unwrap();
    }

    #[track_caller]
    fn ends_with_code(mut self, code: i32) {
        self.session.exp_eof().unwrap_or_else(|error| panic!("it does not end: {error}"));
        match self.session.process().wait().unwrap() {
            WaitStatus::Exited(_, got) => assert_eq!(got, code),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn answers_come_with_figures_and_the_history_is_kept() {
    let mut terminal = Terminal::start(&model(GLM), &["-m", "8", "--ignore-eos"], &[]);
    terminal.types("Where is Jane?");
    terminal.sees("[prompt ");
    let figures = terminal.sees("]");
    assert!(
        figures.contains("answer 8 tokens") && figures.contains(" of 2048; ended by max_tokens"),
        "{figures}"
    );
    terminal.sees("> ");
    terminal.types("And Lydia?");
    terminal.sees("[prompt ");
    let cached: usize = terminal.sees(" of them cached").rsplit(' ').next().unwrap().parse().unwrap();
    assert!(cached > 8, "{cached}");
    terminal.sees("> ");
    let history = terminal.state.path().join("zmlx/history");
    let lines = std::fs::read_to_string(&history).unwrap();
    assert!(lines.contains("Where is Jane?\nAnd Lydia?\n"), "{lines}");
    assert_eq!(history.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // The arrow brings the last line back.
    terminal.keys("\u{1b}[A");
    terminal.sees("And Lydia?");
    terminal.control('u');
    terminal.control('d');
    terminal.ends_with_code(0);
}

#[test]
fn control_c_ends_the_answer_and_not_the_program() {
    let mut terminal = Terminal::start(&model(GLM), &["-m", "1900", "--ignore-eos"], &[]);
    terminal.types("Tell me everything.");
    terminal.sees("\n");
    // The first letters of the answer have appeared.
    terminal.session.exp_regex("[a-z]{2}").unwrap();
    terminal.control('c');
    let seen = terminal.sees("ended by Ctrl-C");
    assert!(!seen.contains("error"), "{seen}");
    terminal.sees("> ");
    // The part of the answer that was shown before Ctrl-C stays in the conversation.
    terminal.types("/save talk.json");
    terminal.sees("> ");
    let file = std::fs::read(terminal.state.path().join("talk.json")).unwrap();
    let talk: Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(talk["messages"][0]["content"], "Tell me everything.");
    assert!(!talk["messages"][1]["content"].as_str().unwrap().is_empty());
    // Ctrl-C clears a line that is not empty.
    terminal.keys("/exit");
    terminal.sees("/exit");
    terminal.control('c');
    terminal.types("/set max_tokens 3");
    terminal.sees("> ");
    terminal.types("Go on.");
    terminal.sees("answer 3 tokens");
    terminal.sees("> ");
    terminal.control('c');
    terminal.ends_with_code(0);
}

#[test]
fn control_c_at_the_first_prompt_leaves_without_a_result() {
    let mut terminal = Terminal::start(&model(GLM), &[], &[]);
    terminal.control('c');
    terminal.ends_with_code(130);
}

#[test]
fn lines_go_on_and_commands_are_completed() {
    let mut terminal = Terminal::start(&model(GLM), &["-m", "2", "--ignore-eos"], &[]);
    terminal.begins("one \\");
    terminal.types("two");
    terminal.sees("[prompt ");
    terminal.begins("\"\"\"three");
    terminal.begins("");
    terminal.types("four\"\"\"");
    terminal.sees("[prompt ");
    terminal.keys("/sa\t");
    terminal.sees("/save");
    terminal.types(" talk.json");
    terminal.sees("> ");
    terminal.types("/nonsense");
    terminal.sees("error: /nonsense: no such command");
    let file = std::fs::read(terminal.state.path().join("talk.json")).unwrap();
    let talk: Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(talk["messages"][0]["content"], "one \ntwo");
    assert_eq!(talk["messages"][2]["content"], "three\n\nfour");
    terminal.types("/exit");
    terminal.ends_with_code(0);
}

/// A model whose template opens a thinking block, which the model never closes.
fn thinker() -> tempfile::TempDir {
    let dir = copy_without(GLM, &[]);
    let path = dir.path().join("chat_template.jinja");
    let template = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, template + "{% if add_generation_prompt %}<think>\n{% endif %}").unwrap();
    dir
}

#[test]
fn thinking_is_dimmed_where_there_are_colours_and_folded_on_demand() {
    let dir = thinker();
    let path = dir.path().to_str().unwrap();
    let seen = |more: &[&str], variables: &[(&str, &str)]| {
        let args = [&["-m", "4", "--ignore-eos"], more].concat();
        let mut terminal = Terminal::start(path, &args, variables);
        terminal.types("Where is Jane?");
        let seen = terminal.sees("[prompt ");
        terminal.sees("> ");
        terminal.control('d');
        terminal.ends_with_code(0);
        seen
    };
    assert!(seen(&[], &[]).contains("\u{1b}[2m"));
    assert!(!seen(&[], &[("NO_COLOR", "1")]).contains("\u{1b}[2m"));
    assert!(!seen(&[], &[("NO_COLOR", "1")]).contains("[thinking]"));
    assert!(seen(&["--hide-thinking"], &[("NO_COLOR", "1")]).contains("[thinking]"));
}

#[test]
fn what_a_file_says_is_not_obeyed_by_the_terminal() {
    let mut terminal = Terminal::start(&model(GLM), &[], &[]);
    let talk = r#"[{"role": "system", "content": "a\u001b]0;title\u0007b"}]"#;
    std::fs::write(terminal.state.path().join("talk.json"), talk).unwrap();
    terminal.types("/load talk.json");
    terminal.sees("> ");
    terminal.types("/system");
    terminal.sees("a\\u{1b}]0;title\\u{7}b");
    terminal.sees("> ");
    terminal.control('d');
    terminal.ends_with_code(0);
}

#[test]
fn text_of_a_model_cannot_move_the_cursor() {
    let dir = copy_without(GLM, &[]);
    edit_json(dir.path(), "tokenizer.json", |tokenizer| {
        let bytes = tokenizer["decoder"].take();
        let clear = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "\u{1b}[2J"});
        tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [bytes, clear]});
    });
    let arguments =
        ["--prompt", "It is a truth", "--raw", "-m", "24", "--model", dir.path().to_str().unwrap()];
    let mut generate = Command::new(env!("CARGO_BIN_EXE_zmlx"));
    generate.args(["generate", "--threads", "1"]).args(arguments).env("TERM", "xterm-256color");
    let mut session = spawn_command(generate, Some(60_000)).unwrap();
    let seen = session.exp_eof().unwrap();
    assert!(seen.contains("\\u{1b}[2J") && !seen.contains("\u{1b}[2J"), "{seen:?}");
    // A file gets the text unchanged.
    let run = zmlx(&[&["generate"], &arguments[..]].concat());
    assert!(run.stdout.contains("\u{1b}[2J"), "{run:?}");
}
