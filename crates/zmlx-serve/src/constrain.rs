//! Structured output: a grammar determines which tokens may come next.
//!
//! Grammars are compiled on the server's threads and kept. The engine asks each one for its mask.

mod forced;
mod vocabulary;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::SimpleVob;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use zmlx_models::engine::Constraint;
use zmlx_models::{TokenMask, Tokenizer};

use crate::error::Error;
use crate::model::ServedModel;
pub(crate) use forced::{Calls, CallsWanted};

/// Number of compiled grammars that are kept.
const N_KEPT: usize = 32;
/// No schema written by a person is longer, in bytes.
const MAX_GRAMMAR_BYTES: usize = 1 << 20;

/// The required structure of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Structure {
    /// A JSON value that matches a schema.
    Schema(Value),
    /// A text that matches a regular expression as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A Lark grammar.
    Grammar(String),
}

impl Structure {
    /// Any JSON object.
    pub(crate) fn json_object() -> Self {
        Self::Schema(json!({"type": "object"}))
    }

    /// The rule `name` and the rules that it needs.
    fn rules(&self, name: &str) -> String {
        match self {
            Self::Schema(schema) => format!("{name}: {}\n", inline_json(schema)),
            Self::Regex(regex) => format!("{name}: WHOLE\nWHOLE: /(?:{})/\n", in_slashes(regex)),
            Self::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|c| quoted(c)).collect();
                format!("{name}: {}\n", choices.join(" | "))
            }
            Self::Grammar(lark) => renamed_start(lark, name),
        }
    }
}

/// A schema inside a Lark grammar. White space between tokens is not allowed, because small models would never stop
/// writing it.
fn inline_json(schema: &Value) -> String {
    let mut schema = schema.clone();
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Value::Object(map) = &mut schema {
        map.insert("x-guidance".into(), json!({"whitespace_flexible": false}));
    }
    format!("%json {schema}")
}

/// A text as a literal in Lark.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression between slashes. Its anchors are removed, because the grammar matches as a whole anyway.
fn in_slashes(regex: &str) -> String {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let regex = regex.strip_suffix('$').filter(|rest| !rest.ends_with('\\')).unwrap_or(regex);
    let mut escaped = String::with_capacity(regex.len());
    let mut is_escaped = false;
    for c in regex.chars() {
        match c {
            '/' if !is_escaped => escaped.push_str("\\/"),
            '\n' => escaped.push_str("\\n"),
            c => escaped.push(c),
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    escaped
}

/// The grammar with its rule `start` renamed, so that it can be a part of another grammar. Strings, regular expressions
/// and comments stay as they are.
fn renamed_start(lark: &str, name: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut renamed = String::with_capacity(lark.len() + 16);
    let mut rest = lark;
    while let Some(c) = rest.chars().next() {
        let len = if is_word(c) {
            rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("//") || c == '#' {
            rest.find('\n').unwrap_or(rest.len())
        } else if c == '"' || c == '/' {
            literal_len(rest, c)
        } else {
            c.len_utf8()
        };
        let (token, after) = rest.split_at(len);
        renamed.push_str(if token == "start" { name } else { token });
        rest = after;
    }
    renamed.push('\n');
    renamed
}

/// The length of a literal between two of these quotes.
fn literal_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !is_escaped {
            return at + c.len_utf8();
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    text.len()
}

/// What comes before the structure in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing.
    Nothing,
    /// Thinking that the prompt has opened.
    OpenThinking,
    /// Thinking, if the answer begins with it.
    PerhapsThinking,
}

impl Before {
    fn rules(self) -> String {
        const THINKING: &str = "thinking[suffix=\"</think>\"]: /(?s:.*)/\nBLANKS: /[ \\n]{1,4}/\n";
        match self {
            Self::Nothing => "start: answer\n".to_owned(),
            Self::OpenThinking => format!("start: thinking BLANKS? answer\n{THINKING}"),
            Self::PerhapsThinking => {
                format!("start: answer | \"<think>\" thinking BLANKS? answer\n{THINKING}")
            }
        }
    }
}

/// Makes constraints for one vocabulary.
pub(crate) struct Constraints {
    tokenizer: Arc<Tokenizer>,
    eos_token_ids: Vec<u32>,
    vocab_size: usize,
    factory: OnceLock<Result<ParserFactory, String>>,
    /// Compiled grammars by their texts. The newest one is last.
    kept: Mutex<VecDeque<(String, Matcher)>>,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl Constraints {
    pub(crate) fn new(model: &ServedModel) -> Result<Self, Error> {
        if model.vocab_size == 0 || u32::try_from(model.vocab_size).is_err() {
            return Err(Error::Vocabulary { why: format!("it has {} tokens", model.vocab_size) });
        }
        Ok(Self {
            tokenizer: Arc::clone(&model.tokenizer),
            eos_token_ids: model.eos_token_ids.clone(),
            vocab_size: model.vocab_size,
            factory: OnceLock::new(),
            kept: Mutex::default(),
        })
    }

    /// A constraint for answers with a structure. A new one takes milliseconds, so this must not run on threads that
    /// must not block.
    ///
    /// # Errors
    /// A reason for the client why the structure is not possible.
    pub(crate) fn structure(&self, structure: &Structure, before: Before) -> Result<Grammatical, String> {
        match (structure, before) {
            (Structure::Grammar(lark), Before::Nothing) => self.compile(lark.clone()),
            _ => self.compile(format!("{}{}", before.rules(), structure.rules("answer"))),
        }
    }

    /// A constraint for tool calls.
    ///
    /// # Errors
    /// As [`Constraints::structure`].
    pub(crate) fn calls(&self, calls: &Calls<'_>, before: Before) -> Result<Grammatical, String> {
        self.compile(format!("{}{}", before.rules(), calls.rules("answer")))
    }

    /// A constraint for answers with a structure, or with tool calls in their place.
    ///
    /// # Errors
    /// As [`Constraints::structure`].
    pub(crate) fn either(
        &self,
        structure: &Structure,
        calls: &Calls<'_>,
        before: Before,
    ) -> Result<Grammatical, String> {
        let rules = format!("answer: final | calls\n{}{}", structure.rules("final"), calls.rules("calls"));
        self.compile(format!("{}{rules}", before.rules()))
    }

    fn compile(&self, grammar: String) -> Result<Grammatical, String> {
        if grammar.len() > MAX_GRAMMAR_BYTES {
            return Err(format!(
                "the grammar has {} bytes, at most {MAX_GRAMMAR_BYTES} are allowed",
                grammar.len()
            ));
        }
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, matcher)) = kept().iter().find(|(text, _)| *text == grammar) {
            return Ok(Grammatical::new(matcher.deep_clone()));
        }
        let factory = self
            .factory
            .get_or_init(|| vocabulary::factory(&self.tokenizer, &self.eos_token_ids, self.vocab_size));
        let factory = factory.as_ref().map_err(Clone::clone)?;
        let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.clone()));
        let mut matcher = Matcher::new(parser);
        if let Some(why) = matcher.get_error() {
            return Err(why);
        }
        // A grammar that nothing matches, or whose first step takes too long, fails here.
        matcher.compute_mask().map_err(|why| why.to_string())?;
        let mut kept = kept();
        if kept.len() >= N_KEPT {
            kept.pop_front();
        }
        kept.push_back((grammar, matcher.deep_clone()));
        Ok(Grammatical::new(matcher))
    }
}

/// A grammar at some position of a text.
pub(crate) struct Grammatical {
    matcher: Matcher,
    /// Number of generated tokens that it has seen.
    n_seen: usize,
    mask: SimpleVob,
}

impl fmt::Debug for Grammatical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammatical").field("n_seen", &self.n_seen).finish_non_exhaustive()
    }
}

impl Grammatical {
    fn new(matcher: Matcher) -> Self {
        Self { matcher, n_seen: 0, mask: SimpleVob::new() }
    }

    fn see(&mut self, generated: &[u32]) -> zmlx_models::Result<()> {
        for &token in generated.get(self.n_seen..).unwrap_or_default() {
            // After the end of the text nothing is checked.
            if !self.matcher.is_stopped() {
                self.matcher.consume_token(token).map_err(failed)?;
            }
            self.n_seen += 1;
        }
        Ok(())
    }
}

impl Constraint for Grammatical {
    fn allowed(&mut self, generated: &[u32]) -> zmlx_models::Result<Option<TokenMask<'_>>> {
        self.see(generated)?;
        self.mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        Ok(Some(TokenMask::new(self.mask.as_slice())))
    }

    fn is_complete(&mut self, generated: &[u32]) -> zmlx_models::Result<bool> {
        self.see(generated)?;
        Ok(self.matcher.is_stopped())
    }
}

fn failed(why: impl fmt::Display) -> zmlx_models::Error {
    zmlx_models::Error::Constraint { why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_gets_another_name() {
        let lark = "start: \"start\" restart // start\nrestart: /a\\/start/ | start\n";
        let want = "x: \"start\" restart // start\nrestart: /a\\/start/ | x\n\n";
        assert_eq!(renamed_start(lark, "x"), want);
        assert_eq!(renamed_start("start: \"é", "x"), "x: \"é\n");
    }

    #[test]
    fn regular_expressions_between_slashes() {
        assert_eq!(in_slashes("^a/b\\/c$"), "a\\/b\\/c");
        assert_eq!(in_slashes("a\\$"), "a\\$");
    }
}
