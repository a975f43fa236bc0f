//! Tokens outside of `tokenizer.json`: in `tokenizer_config.json` and `added_tokens.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::checkpoint::read_optional;
use crate::config::parse_json;
use crate::{Error, Result};

/// The largest number of ids in a vocabulary.
const MAX_ID: u32 = 1 << 24;

/// Tokens by id.
#[derive(Debug, Default)]
pub(super) struct AddedTokens {
    tokens: BTreeMap<u32, AddedToken>,
}

/// A token in the form of `added_tokens_decoder`.
#[derive(Deserialize)]
struct Written {
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    normalized: Option<bool>,
}

impl AddedTokens {
    /// The tokens that the files in `dir` name. If a file cannot be read, there is only a warning.
    pub(super) fn read(dir: &Path) -> Self {
        let mut added = Self::default();
        let object = |name: &str| -> Option<Map<String, Value>> {
            let path = dir.join(name);
            let file = path.display().to_string();
            let read = || -> Result<Option<Value>> {
                read_optional(&path)?.map(|text| parse_json(&file, &text)).transpose()
            };
            match read() {
                Ok(Some(Value::Object(map))) => Some(map),
                Ok(Some(_)) => {
                    tracing::warn!("{file}: expected a JSON object; the file is ignored");
                    None
                }
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!("{error}; the file is ignored");
                    None
                }
            }
        };
        let config = object("tokenizer_config.json").unwrap_or_default();
        for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten()
        {
            let written = Written::deserialize(token);
            match (id.parse(), written) {
                (Ok(id), Ok(w)) if id < MAX_ID => {
                    let token = AddedToken::from(w.content, w.special)
                        .lstrip(w.lstrip)
                        .rstrip(w.rstrip)
                        .single_word(w.single_word)
                        .normalized(w.normalized.unwrap_or(!w.special));
                    added.tokens.insert(id, token);
                }
                _ => tracing::warn!(
                    "{}: added_tokens_decoder: {id:?} is not a token; it is ignored",
                    dir.join("tokenizer_config.json").display()
                ),
            }
        }
        let special = special_texts(&config);
        for (content, id) in object("added_tokens.json").into_iter().flatten() {
            match id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < MAX_ID) {
                Some(id) => {
                    let is_special = special.contains(&content);
                    let token = AddedToken::from(content, is_special).normalized(!is_special);
                    added.tokens.entry(id).or_insert(token);
                }
                None => tracing::warn!(
                    "{}: {content:?}: expected an id, got {id}; the token is ignored",
                    dir.join("added_tokens.json").display()
                ),
            }
        }
        added.tokens.retain(|_, token| !token.content.is_empty());
        added
    }

    /// True if the tokenizer lacks one of the tokens.
    pub(super) fn are_missing(&self, inner: &tokenizers::Tokenizer) -> bool {
        let known = inner.get_added_tokens_decoder();
        self.tokens.iter().any(|(id, token)| known.get(id).is_none_or(|k| k.content != token.content))
    }

    /// The `tokenizer.json` with the missing tokens added to its vocabulary, each at its own id. `None` if none is
    /// missing.
    pub(super) fn with_ids(
        &self,
        file: &str,
        json: &[u8],
        inner: &tokenizers::Tokenizer,
    ) -> Result<Option<Vec<u8>>> {
        let mut lacking: BTreeMap<u32, &str> = BTreeMap::new();
        for (id, token) in &self.tokens {
            if inner.token_to_id(&token.content).is_none() && inner.id_to_token(*id).is_none() {
                lacking.insert(*id, &token.content);
            }
        }
        if lacking.is_empty() {
            return Ok(None);
        }
        // This includes the file's own added tokens, because after a longer vocabulary they would get other ids.
        let known = inner.get_added_tokens_decoder();
        lacking.extend(known.iter().map(|(id, token)| (*id, token.content.as_str())));
        let json_error = |source| Error::Json { file: file.into(), source };
        let mut value: Value = serde_json::from_slice(json).map_err(json_error)?;
        match value.get_mut("model").and_then(|model| model.get_mut("vocab")) {
            Some(Value::Object(vocab)) => {
                for (id, text) in lacking {
                    vocab.entry(text).or_insert_with(|| id.into());
                }
            }
            // In a list the position is the id, so tokens can only be added at its end.
            Some(Value::Array(list)) => {
                for (id, text) in lacking {
                    if list.len() == id as usize {
                        list.push(Value::from(vec![Value::from(text), Value::from(0.0)]));
                    }
                }
            }
            _ => return Ok(None),
        }
        serde_json::to_vec(&value).map(Some).map_err(json_error)
    }

    /// Makes the tokenizer recognise these tokens, if it has them under their ids.
    pub(super) fn add_to(&self, file: &str, inner: &mut tokenizers::Tokenizer) -> Result<()> {
        for (id, token) in &self.tokens {
            match inner.token_to_id(&token.content) {
                Some(got) if got == *id => {
                    inner
                        .add_tokens([token.clone()])
                        .map_err(|source| Error::Tokenizer { file: file.into(), source })?;
                }
                got => {
                    let got = got.map_or_else(|| "no id".to_owned(), |id| format!("id {id}"));
                    tracing::warn!(
                        "{file}: the token {:?} should have id {id}, but has {got}; the token is ignored",
                        token.content
                    );
                }
            }
        }
        Ok(())
    }
}

/// The texts of the special tokens that the config names.
fn special_texts(config: &Map<String, Value>) -> BTreeSet<String> {
    let text = |value: &Value| {
        value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_owned)
    };
    let named = config.iter().filter(|(key, _)| key.ends_with("_token")).filter_map(|(_, value)| text(value));
    let more = ["additional_special_tokens", "extra_special_tokens"];
    let more = more.iter().filter_map(|key| config.get(*key)?.as_array()).flatten().filter_map(text);
    named.chain(more).collect()
}
