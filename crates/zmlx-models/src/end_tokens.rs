//! The tokens that end a text.
//!
//! `generation_config.json` names them, or `config.json` if the former does not. The tokenizer's own `eos_token` is
//! always one of them. Ids that the vocabulary lacks are left out.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::checkpoint::read_optional;
use crate::config::{parse_json, short};
use crate::{Error, Result};

const KEY: &str = "eos_token_id";

/// The end tokens that the configs name, in ascending order. `config` is `config.json`, which errors call `file`;
/// `generation_config` is in the same folder. Errors in the latter only cause a warning.
///
/// # Errors
/// [`Error::Field`] if the value in `config.json` is not an id or a list of ids.
pub(crate) fn of_configs(
    file: &str,
    config: &Value,
    generation_config: Option<&str>,
    vocab_size: usize,
) -> Result<Vec<u32>> {
    let name = format!("{}generation_config.json", file.strip_suffix("config.json").unwrap_or_default());
    let of_generation = || -> Result<BTreeSet<u32>> {
        let Some(text) = generation_config else { return Ok(BTreeSet::new()) };
        ids(&name, parse_json(&name, text)?.get(KEY), vocab_size)
    };
    let mut end_tokens = of_generation().unwrap_or_else(|error| {
        tracing::warn!("{error}; the file is ignored");
        BTreeSet::new()
    });
    if end_tokens.is_empty() {
        end_tokens = ids(file, config.get(KEY), vocab_size)?;
        // A text model inside a model for images has its own value.
        let text_model = config.get("text_config").and_then(|text| text.get(KEY));
        end_tokens.append(&mut ids(file, text_model, vocab_size)?);
    }
    Ok(end_tokens.into_iter().collect())
}

/// The ids under a key: one, a list, or none.
fn ids(file: &str, value: Option<&Value>, vocab_size: usize) -> Result<BTreeSet<u32>> {
    let value = value.unwrap_or(&Value::Null);
    let list = match value {
        Value::Null => return Ok(BTreeSet::new()),
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut ids = BTreeSet::new();
    for value in list {
        let Some(id) = value.as_i64() else {
            let want = "a token id or a list of them".to_owned();
            return Err(Error::Field { file: file.into(), key: KEY.into(), want, got: short(value) });
        };
        match u32::try_from(id) {
            Ok(id) if (id as usize) < vocab_size => {
                ids.insert(id);
            }
            _ => tracing::warn!("{file}: {KEY}: {id} is left out: the vocabulary has {vocab_size} tokens"),
        }
    }
    Ok(ids)
}

/// Adds the end token that the tokenizer's files in `dir` name. Files that cannot be read are skipped, because opening
/// the tokenizer reports them.
pub(crate) fn add_of_tokenizer(dir: &Path, vocab_size: usize, end_tokens: &mut Vec<u32>) {
    match of_tokenizer(dir) {
        Some(id) if id as usize >= vocab_size => {
            tracing::warn!(
                "{}: the tokenizer's eos_token has the id {id}, which is left out: the vocabulary has {vocab_size} tokens",
                dir.display()
            );
        }
        Some(id) => {
            end_tokens.push(id);
            end_tokens.sort_unstable();
            end_tokens.dedup();
        }
        None => {}
    }
}

/// The text of `generation_config.json` in `dir`. A file that cannot be read only causes a warning.
pub(crate) fn generation_config(dir: &Path) -> Option<String> {
    read_optional(&dir.join("generation_config.json")).unwrap_or_else(|error| {
        tracing::warn!("{error}; the file is ignored");
        None
    })
}

/// The part of `tokenizer.json` that gives special tokens their ids.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(rename = "model")]
    _model: IgnoredAny,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

fn of_tokenizer(dir: &Path) -> Option<u32> {
    let json =
        |name: &str| -> Option<Value> { serde_json::from_str(&read_optional(&dir.join(name)).ok()??).ok() };
    let config = json("tokenizer_config.json").unwrap_or_default();
    let named = |file: &Value| -> Option<String> {
        let token = file.get("eos_token")?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    let token = named(&config).or_else(|| named(&json("special_tokens_map.json")?))?;
    let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
    let in_decoder = decoder
        .into_iter()
        .flatten()
        .find(|(_, written)| written.get("content").and_then(Value::as_str) == Some(&*token));
    if let Some((id, _)) = in_decoder {
        return id.parse().ok();
    }
    let id_in = |map: Value| u32::try_from(map.get(&token)?.as_u64()?).ok();
    if let Some(id) = json("added_tokens.json").and_then(id_in) {
        return Some(id);
    }
    if let Ok(text) = zmlx_kernels::read_bytes(&dir.join("tokenizer.json"))
        && let Ok(file) = serde_json::from_slice::<TokenizerFile>(&text)
    {
        let found = file.added_tokens.into_iter().find(|added| added.content == token).map(|added| added.id);
        // In rare cases it is an ordinary token of the vocabulary.
        return found.or_else(|| {
            let whole: Value = serde_json::from_slice(&text).ok()?;
            id_in(whole.get("model")?.get("vocab")?.clone())
        });
    }
    json("vocab.json").and_then(id_in)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: Value, generation: Option<&str>) -> Result<Vec<u32>> {
        of_configs("config.json", &config, generation, 10)
    }

    #[test]
    fn the_generation_config_comes_first() {
        let config = json!({"eos_token_id": [5, 3]});
        let generation = |text: &str| of(config.clone(), Some(text)).unwrap();
        assert_eq!(of(config.clone(), None).unwrap(), [3, 5]);
        assert_eq!(generation(r#"{"eos_token_id": [9, 3, 9]}"#), [3, 9]);
        assert_eq!(generation(r#"{"eos_token_id": 8}"#), [8]);
        for nothing in ["{}", r#"{"eos_token_id": null}"#, r#"{"eos_token_id": []}"#] {
            assert_eq!(generation(nothing), [3, 5], "{nothing}");
        }
        assert_eq!(of(json!({"text_config": {"eos_token_id": 4}}), None).unwrap(), [4]);
        assert_eq!(of(json!({}), None).unwrap(), [0u32; 0]);
    }

    #[test]
    fn what_cannot_be_an_id_is_left_out() {
        let config = json!({"eos_token_id": [5, 10, 4_294_967_296u64, -1]});
        assert_eq!(of(config.clone(), None).unwrap(), [5]);
        for unsound in [
            "{\"eos_token_id\": 8,}",
            "nonsense",
            r#"{"eos_token_id": "x"}"#,
            r#"{"eos_token_id": [10]}"#,
            "[]",
        ] {
            assert_eq!(of(config.clone(), Some(unsound)).unwrap(), [5], "{unsound}");
        }
        assert!(matches!(of(json!({"eos_token_id": "x"}), None), Err(Error::Field { .. })));
    }

    #[test]
    fn the_tokenizers_end_token_is_one() {
        let found = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            let mut end_tokens = vec![3];
            add_of_tokenizer(dir.path(), 10, &mut end_tokens);
            end_tokens
        };
        let config = ("tokenizer_config.json", r#"{"eos_token": {"content": "</s>"}}"#);
        let tokenizer =
            ("tokenizer.json", r#"{"added_tokens": [{"id": 2, "content": "</s>"}], "model": {"vocab": {}}}"#);
        assert_eq!(found(&[config, tokenizer]), [2, 3]);
        assert_eq!(found(&[("special_tokens_map.json", r#"{"eos_token": "</s>"}"#), tokenizer]), [2, 3]);
        assert_eq!(found(&[config, ("tokenizer.json", r#"{"model": {"vocab": {"</s>": 7}}}"#)]), [3, 7]);
        assert_eq!(found(&[config, ("added_tokens.json", r#"{"</s>": 6}"#)]), [3, 6]);
        assert_eq!(found(&[config, ("vocab.json", r#"{"</s>": 12}"#)]), [3]);
        let with_decoder = r#"{"eos_token": "</s>", "added_tokens_decoder": {"1": {"content": "</s>"}}}"#;
        assert_eq!(found(&[("tokenizer_config.json", with_decoder), tokenizer]), [1, 3]);
        assert_eq!(found(&[config, ("tokenizer.json", "{")]), [3]);
        assert_eq!(found(&[tokenizer]), [3]);
    }
}
