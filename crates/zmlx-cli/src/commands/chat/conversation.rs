//! The messages so far, and the files that store them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use zmlx_models::ChatMessage;

use super::settings::Settings;
use crate::output;

const USER: &str = "user";
const SYSTEM: &str = "system";

/// The messages of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Conversation {
    /// The text of the system message. If it is empty, there is no system message.
    pub(super) system: String,
    messages: Vec<ChatMessage>,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system: system.unwrap_or_default(), messages: Vec::new() }
    }

    /// All messages, starting with the system message.
    pub(super) fn messages(&self) -> Vec<ChatMessage> {
        let system = (!self.system.is_empty()).then(|| ChatMessage::new(SYSTEM, self.system.as_str()));
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    pub(super) fn say(&mut self, text: &str) {
        self.messages.push(ChatMessage::new(USER, text));
    }

    pub(super) fn push(&mut self, message: ChatMessage) {
        self.messages.push(message);
    }

    pub(super) fn reset(&mut self) {
        self.messages.clear();
    }

    /// Removes the last message of the user and everything after it. Returns its text.
    pub(super) fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|message| message.role() == USER)?;
        let text = self.messages[at].text();
        self.messages.truncate(at);
        Some(text)
    }

    /// Writes a file that [`Conversation::load`] reads.
    pub(super) fn save(&self, path: &Path, model: &str, settings: &Settings) -> Result<()> {
        let file = json!({"model": model, "settings": settings.to_json(), "messages": self.messages()});
        output::write_file(path, |out| {
            serde_json::to_writer_pretty(&mut *out, &file)?;
            Ok(writeln!(out)?)
        })
    }

    /// Reads a conversation from a file. Returns it with its settings, which override those given, and the name of its
    /// model. The file may also be a plain list of messages.
    pub(super) fn load(path: &Path, settings: &Settings) -> Result<(Self, Settings, Option<String>)> {
        let what = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(what)?;
        let read = || -> Result<_> {
            let file: Value = serde_json::from_str(&text)?;
            let messages =
                if file.is_array() { &file } else { file.get("messages").context("no messages")? };
            let messages: Vec<ChatMessage> = serde::Deserialize::deserialize(messages)?;
            let settings = match file.get("settings") {
                Some(laid_over) => settings.clone().with_json(laid_over)?,
                None => settings.clone(),
            };
            let model = file.get("model").and_then(Value::as_str).map(str::to_owned);
            Ok((Self::of(messages)?, settings, model))
        };
        read().with_context(what)
    }

    fn of(mut messages: Vec<ChatMessage>) -> Result<Self> {
        let has_system = messages.first().is_some_and(|message| message.role() == SYSTEM);
        let system = if has_system { messages.remove(0).text() } else { String::new() };
        match messages.last() {
            Some(last) if last.role() == USER => bail!("the last message has no answer"),
            _ => Ok(Self { system, messages }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;
    use zmlx_models::SamplingParams;

    use super::*;

    fn conversation() -> Conversation {
        let mut conversation = Conversation::new(Some("Be brief.".to_owned()));
        for (question, answer) in [("a?", "A."), ("b?", "B.")] {
            conversation.say(question);
            conversation.push(ChatMessage::new("assistant", answer));
        }
        conversation
    }

    fn settings() -> Settings {
        let sampling = SamplingParams::greedy();
        Settings { sampling, max_tokens: 10, hides_thinking: false, kwargs: Map::new() }
    }

    #[test]
    fn the_last_question_can_be_taken_back() {
        let mut conversation = conversation();
        assert_eq!(conversation.messages().len(), 5);
        assert_eq!(conversation.undo().as_deref(), Some("b?"));
        assert_eq!(conversation.undo().as_deref(), Some("a?"));
        assert_eq!(conversation.undo(), None);
        assert_eq!(conversation.messages(), [ChatMessage::new("system", "Be brief.")]);
    }

    #[test]
    fn a_file_keeps_it_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        let (conversation, mut changed) = (conversation(), settings());
        changed.set("temp", "0.5").unwrap();
        conversation.save(&path, "tiny", &changed).unwrap();
        let loaded = Conversation::load(&path, &settings()).unwrap();
        assert_eq!(loaded, (conversation, changed, Some("tiny".to_owned())));
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        assert!(Conversation::load(&path, &settings()).is_err());
        for (text, tells) in [
            ("", "EOF"),
            ("{}", "no messages"),
            (r#"{"messages": 5}"#, "expected a sequence"),
            (r#"[{"content": "no role"}]"#, "role"),
            (r#"[{"role": "user", "content": "x"}]"#, "no answer"),
            (r#"{"messages": [], "settings": {"temp": -1}}"#, "temperature"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = output::message(&Conversation::load(&path, &settings()).unwrap_err());
            assert!(
                error.contains(tells) && error.contains("talk.json"),
                "{error:?} does not mention {tells:?}"
            );
        }
        std::fs::write(&path, r#"[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]"#)
            .unwrap();
        assert_eq!(Conversation::load(&path, &settings()).unwrap().0.messages().len(), 2);
    }
}
