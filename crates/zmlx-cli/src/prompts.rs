//! The built-in prompts, and prompts from a file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};
use zmlx_bench::seeded_tokens;
use zmlx_models::{ChatMessage, ChatRequest};

use crate::source::Source;

/// Prompts of several lengths and kinds, for any model that reads English.
pub(crate) const NEUTRAL: &[(&str, &str)] = &[
    ("short", "The capital of France is"),
    ("list", "Three things to pack for a walk in the rain:\n1."),
    ("code", "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n"),
    ("sums", "12 + 30 = 42\n7 + 8 = 15\n9 + 16 ="),
    (
        "story",
        "The ferry left the harbour a little after six. Most of the passengers had gone below to drink coffee, but \
         an old woman stayed on deck and watched the lights of the town become smaller. She had made this crossing \
         every autumn for thirty years, and",
    ),
];

/// A prompt with its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) name: String,
    /// The text that was tokenised; `None` if the file contains tokens.
    pub(crate) text: Option<String>,
    pub(crate) tokens: Vec<u32>,
}

/// Texts of several kinds. For a model without a tokenizer they are sequences of numbers.
pub(crate) fn built_in(source: &Source, vocab: usize) -> Result<Vec<Prompt>> {
    let Some(tokenizer) = source.tokenizer()? else {
        let prompt = |n: usize| Prompt {
            name: format!("{n} seeded tokens"),
            text: None,
            tokens: seeded_tokens(n as u64, n, vocab),
        };
        return Ok([1, 2, 17, 64, 200].map(prompt).into());
    };
    let prompt = |&(name, text): &(&str, &str)| {
        let tokens = tokenizer.encode(text)?;
        Ok(Prompt { name: name.to_owned(), text: Some(text.to_owned()), tokens })
    };
    NEUTRAL.iter().map(prompt).collect()
}

/// A prompt as it stands in a file: exactly one of `text`, `tokens` and `messages`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    text: Option<String>,
    tokens: Option<Vec<u32>>,
    messages: Option<Vec<ChatMessage>>,
    /// The tools of the conversation in `messages`.
    tools: Option<Vec<Value>>,
    /// Additional variables of the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// Reads prompts from a JSON array or from lines of JSON objects. Each has `text`, `tokens`, or `messages` for the chat
/// template (with `tools` and `chat_template_kwargs`), and may have a `name`.
pub(crate) fn read_file(path: &Path, source: &Source, vocab: usize) -> Result<Vec<Prompt>> {
    let file = || path.display().to_string();
    let text = crate::source::read_text(path)?;
    let entries = entries(&text).with_context(file)?;
    if entries.is_empty() {
        bail!("{}: no prompts", path.display());
    }
    let prompt = |(i, entry): (usize, Entry)| {
        let what = || format!("{}: prompt {}", path.display(), i + 1);
        ready(entry, i, source, vocab).with_context(what)
    };
    let prompts: Vec<Prompt> = entries.into_iter().enumerate().map(prompt).collect::<Result<_>>()?;
    for (i, prompt) in prompts.iter().enumerate() {
        if prompts[..i].iter().any(|other| other.name == prompt.name) {
            bail!("{}: prompt {}: another prompt also has the name {:?}", path.display(), i + 1, prompt.name);
        }
    }
    Ok(prompts)
}

fn entries(text: &str) -> Result<Vec<Entry>> {
    if text.trim_start().starts_with('[') {
        let parser = &mut serde_json::Deserializer::from_str(text);
        let entries = serde_path_to_error::deserialize(&mut *parser)?;
        parser.end()?;
        return Ok(entries);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| serde_json::from_str(line).with_context(|| format!("line {}", i + 1))).collect()
}

fn ready(entry: Entry, i: usize, source: &Source, vocab: usize) -> Result<Prompt> {
    let name = entry.name.unwrap_or_else(|| format!("prompt {}", i + 1));
    let (text, tokens) = match (entry.text, entry.tokens, entry.messages) {
        (Some(text), None, None) => (Some(text), None),
        (None, Some(tokens), None) => (None, Some(tokens)),
        (None, None, Some(messages)) => {
            let mut request = ChatRequest::new(&messages);
            if let Some(tools) = &entry.tools {
                request = request.with_tools(tools);
            }
            if let Some(kwargs) = &entry.chat_template_kwargs {
                request = request.with_kwargs(kwargs);
            }
            (Some(source.chat_template()?.render(&request)?), None)
        }
        _ => bail!("expected one of `text`, `tokens` and `messages`"),
    };
    let tokens = match (tokens, &text) {
        (Some(tokens), _) => tokens,
        (None, Some(text)) => source.need_tokenizer()?.encode(text)?,
        (None, None) => Vec::new(),
    };
    if tokens.is_empty() {
        bail!("{name}: no tokens");
    }
    if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocab) {
        return Err(zmlx_models::Error::TokenOutOfRange { token, vocab }).context(name);
    }
    Ok(Prompt { name, text, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_as_an_array_or_as_lines() {
        let names = |text: &str| -> Vec<Option<String>> {
            entries(text).unwrap().into_iter().map(|e| e.name).collect()
        };
        let named = || Some("a".to_owned());
        assert_eq!(names(r#" [{"name": "a", "text": "x"}, {"tokens": [1]}]"#), [named(), None]);
        assert_eq!(names("{\"name\": \"a\", \"text\": \"x\"}\n\n{\"tokens\": [1]}\n"), [named(), None]);
        for (text, tells) in [
            ("{\"text\": \"x\"}\n{\"text\": 5}", "line 2: invalid type: integer `5`"),
            ("{\"txt\": \"x\"}", "unknown field `txt`"),
            ("[{\"tokens\": [1, -1]}]", "[0].tokens[1]: invalid value"),
            ("[{\"text\": \"x\"}", "EOF"),
        ] {
            let error = crate::output::message(&entries(text).unwrap_err());
            assert!(error.contains(tells), "{error:?} does not mention {tells:?}");
        }
    }

    #[test]
    #[cfg(feature = "embedded-model")]
    fn a_prompt_is_one_thing_and_not_empty() {
        let read = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            read_file(file.path(), &Source::Embedded, 4096)
        };
        let prompts = read(r#"{"text": "It is"}"#).unwrap();
        assert_eq!((prompts[0].name.as_str(), prompts[0].text.as_deref()), ("prompt 1", Some("It is")));
        let chat = read(r#"[{"name": "c", "messages": [{"role": "user", "content": "Hello"}]}]"#).unwrap();
        assert!(chat[0].text.as_ref().unwrap().contains("Hello") && chat[0].tokens.len() > 2);
        for (text, tells) in [
            ("[]", "no prompts"),
            (r#"{"text": ""}"#, "no tokens"),
            (r#"{"text": "x", "tokens": [1]}"#, "expected one of"),
            (r#"{"name": "x"}"#, "expected one of"),
            (r#"{"tokens": [4096]}"#, "4096"),
        ] {
            let error = crate::output::message(&read(text).unwrap_err());
            assert!(error.contains(tells), "{error:?} does not mention {tells:?}");
        }
    }
}
