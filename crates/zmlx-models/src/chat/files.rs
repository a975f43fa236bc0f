//! The files that hold a checkpoint's chat templates and special tokens.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::DEFAULT;
use crate::checkpoint::read_optional;
use crate::config::{parse_json, short};
use crate::{Error, Result};

/// The special tokens that a template may name.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Templates by name, and the special tokens that are defined.
#[derive(Debug, Default)]
pub(super) struct TemplateFiles {
    pub(super) templates: BTreeMap<String, String>,
    pub(super) special_tokens: Map<String, Value>,
}

impl TemplateFiles {
    /// The templates and tokens in a folder.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let jinja = read_optional(&dir.join("chat_template.jinja"))?;
        let tokenizer_config = read_optional(&dir.join("tokenizer_config.json"))?;
        let mut files = Self::of_parts(&dir.display().to_string(), tokenizer_config.as_deref(), jinja)?;
        files.add_special_tokens_map(dir);
        files.add_additional(dir)?;
        if !files.templates.contains_key(DEFAULT) {
            let path = dir.join("chat_template.json");
            if let Some(text) = read_optional(&path)? {
                let file = path.display().to_string();
                files.add_from_json(&file, &parse_json(&file, &text)?)?;
            }
        }
        Ok(files)
    }

    /// The templates and tokens in the texts of `tokenizer_config.json` and `chat_template.jinja`. The latter takes
    /// precedence.
    pub(super) fn of_parts(
        name: &str,
        tokenizer_config: Option<&str>,
        jinja: Option<String>,
    ) -> Result<Self> {
        let file = format!("{name}/tokenizer_config.json");
        let config = tokenizer_config.map_or(Ok(Value::Null), |text| parse_json(&file, text))?;
        let mut files = Self::default();
        for key in SPECIAL_TOKENS {
            if let Some(token) = special(&file, &config, key)? {
                files.special_tokens.insert(key.to_owned(), Value::String(token));
            }
        }
        match jinja {
            Some(source) => {
                files.templates.insert(DEFAULT.to_owned(), source);
            }
            None => files.add_from_json(&file, &config)?,
        }
        Ok(files)
    }

    /// Adds the value of `chat_template`: a text, a list of `{name, template}`, or an object of texts by name.
    fn add_from_json(&mut self, file: &str, config: &Value) -> Result<()> {
        let wrong = |got: &Value| Error::Field {
            file: file.into(),
            key: "chat_template".into(),
            want: "a string, or named templates, one of them named \"default\"".into(),
            got: short(got),
        };
        let value = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(()),
            Some(value) => value,
        };
        let named: Vec<(&Value, &Value)> = match value {
            Value::String(source) => {
                self.templates.insert(DEFAULT.to_owned(), source.clone());
                return Ok(());
            }
            Value::Array(list) => {
                let pairs = list.iter().map(|entry| Some((entry.get("name")?, entry.get("template")?)));
                pairs.collect::<Option<_>>().ok_or_else(|| wrong(value))?
            }
            Value::Object(map) => {
                for (name, source) in map {
                    let source = source.as_str().ok_or_else(|| wrong(value))?;
                    self.templates.insert(name.clone(), source.to_owned());
                }
                Vec::new()
            }
            _ => return Err(wrong(value)),
        };
        for (name, source) in named {
            let (Some(name), Some(source)) = (name.as_str(), source.as_str()) else {
                return Err(wrong(value));
            };
            self.templates.insert(name.to_owned(), source.to_owned());
        }
        if self.templates.contains_key(DEFAULT) { Ok(()) } else { Err(wrong(value)) }
    }

    /// Adds `additional_chat_templates/NAME.jinja`.
    fn add_additional(&mut self, dir: &Path) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) else { return Ok(()) };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_template = path.extension().is_some_and(|e| e == "jinja");
            let name = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_template);
            if let (Some(name), Some(source)) = (name, read_optional(&path)?) {
                self.templates.insert(name.to_owned(), source);
            }
        }
        Ok(())
    }

    /// Adds tokens that only `special_tokens_map.json` names. If the file cannot be read, there is only a warning.
    fn add_special_tokens_map(&mut self, dir: &Path) {
        let path = dir.join("special_tokens_map.json");
        let file = path.display().to_string();
        let read = || -> Result<Vec<(&str, String)>> {
            let Some(text) = read_optional(&path)? else { return Ok(Vec::new()) };
            let map = parse_json(&file, &text)?;
            let tokens =
                SPECIAL_TOKENS.iter().map(|key| Ok(special(&file, &map, key)?.map(|token| (*key, token))));
            Ok(tokens.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        match read() {
            Ok(tokens) => {
                for (key, token) in tokens {
                    self.special_tokens.entry(key).or_insert(Value::String(token));
                }
            }
            Err(error) => tracing::warn!("{error}; the file is ignored"),
        }
    }
}

/// A special token: a text, or an object with its text under `content`.
fn special(file: &str, config: &Value, key: &str) -> Result<Option<String>> {
    let value = match config.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
    text.map(|t| Some(t.to_owned())).ok_or_else(|| Error::Field {
        file: file.into(),
        key: key.into(),
        want: "a string, or an object with content".into(),
        got: short(value),
    })
}
