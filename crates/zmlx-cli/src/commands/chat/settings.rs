//! The settings that can be changed during a conversation.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use zmlx_models::SamplingParams;

/// The names of the settings.
const NAMES: [&str; 12] = [
    "max_tokens",
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "repetition_context_size",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "enable_thinking",
    "hide_thinking",
];

/// How answers are generated and shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) sampling: SamplingParams,
    pub(super) max_tokens: usize,
    pub(super) hides_thinking: bool,
    /// The variables of the chat template.
    pub(super) kwargs: Map<String, Value>,
}

impl Settings {
    /// Changes a setting. An invalid value changes nothing.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let mut new = self.clone();
        let s = &mut new.sampling;
        match name {
            "max_tokens" => new.max_tokens = number(name, value)?,
            "temp" | "temperature" => s.temperature = number(name, value)?,
            "top_k" => s.top_k = optional(name, value)?.filter(|k| *k > 0),
            "top_p" => s.top_p = optional(name, value)?,
            "min_p" => s.min_p = optional(name, value)?,
            "repetition_penalty" => s.repetition_penalty = optional(name, value)?,
            "repetition_context_size" => s.repetition_context_size = number(name, value)?,
            "presence_penalty" => s.presence_penalty = number(name, value)?,
            "frequency_penalty" => s.frequency_penalty = number(name, value)?,
            "seed" => s.seed = number(name, value)?,
            "enable_thinking" if is_off(value) => {
                new.kwargs.remove(name);
            }
            "enable_thinking" => {
                new.kwargs.insert(name.to_owned(), yes_or_no(name, value)?.into());
            }
            "hide_thinking" => new.hides_thinking = yes_or_no(name, value)?,
            _ => bail!("{name}: no such setting; the settings are {}", NAMES.join(", ")),
        }
        new.sampling.validate()?;
        *self = new;
        Ok(())
    }

    fn get(&self, name: &str) -> Value {
        let s = &self.sampling;
        match name {
            "max_tokens" => self.max_tokens.into(),
            "temp" => plain(s.temperature),
            "top_k" => s.top_k.into(),
            "top_p" => s.top_p.map_or(Value::Null, plain),
            "min_p" => s.min_p.map_or(Value::Null, plain),
            "repetition_penalty" => s.repetition_penalty.map_or(Value::Null, plain),
            "repetition_context_size" => s.repetition_context_size.into(),
            "presence_penalty" => plain(s.presence_penalty),
            "frequency_penalty" => plain(s.frequency_penalty),
            "seed" => s.seed.into(),
            "enable_thinking" => self.kwargs.get(name).cloned().unwrap_or_default(),
            "hide_thinking" => self.hides_thinking.into(),
            _ => Value::Null,
        }
    }

    /// One line for each setting.
    pub(super) fn lines(&self) -> String {
        let line = |name: &&str| match self.get(name) {
            Value::Null => format!("{name:<24} off\n"),
            value => format!("{name:<24} {value}\n"),
        };
        NAMES.iter().map(line).collect()
    }

    /// The settings as an object for a file.
    pub(super) fn to_json(&self) -> Value {
        NAMES.iter().map(|name| ((*name).to_owned(), self.get(name))).collect()
    }

    /// Reads the settings of a file. A setting that the file does not contain stays as it is.
    pub(super) fn with_json(mut self, value: &Value) -> Result<Self> {
        let map = value.as_object().context("settings: expected an object")?;
        for (name, value) in map {
            let text = match value {
                Value::Null => "off".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            self.set(name, &text).with_context(|| "settings".to_owned())?;
        }
        Ok(self)
    }
}

/// The number with the decimal digits of the `f32`, rather than those of the nearest `f64`.
fn plain(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn is_off(value: &str) -> bool {
    matches!(value, "off" | "none" | "null")
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().ok().with_context(|| format!("{name}: expected a number, got {value:?}"))
}

fn optional<T: FromStr>(name: &str, value: &str) -> Result<Option<T>> {
    if is_off(value) { Ok(None) } else { number(name, value).map(Some) }
}

fn yes_or_no(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" => Ok(false),
        _ => bail!("{name}: expected true or false, got {value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let sampling = SamplingParams::greedy();
        Settings { sampling, max_tokens: 10, hides_thinking: false, kwargs: Map::new() }
    }

    #[test]
    fn what_is_set_is_shown_and_survives_a_file() {
        let mut all = settings();
        for (name, value) in [
            ("max_tokens", "7"),
            ("temp", "0.7"),
            ("top_k", "40"),
            ("top_p", "0.9"),
            ("min_p", "0.05"),
            ("repetition_penalty", "1.1"),
            ("repetition_context_size", "100"),
            ("presence_penalty", "-0.5"),
            ("frequency_penalty", "0.5"),
            ("seed", "18446744073709551615"),
            ("enable_thinking", "false"),
            ("hide_thinking", "true"),
        ] {
            all.set(name, value).unwrap();
            assert!(all.lines().contains(&format!("{name:<24} {value}\n")), "{}", all.lines());
        }
        assert_eq!(settings().with_json(&all.to_json()).unwrap(), all);
        let plain = settings();
        assert_eq!(all.with_json(&plain.to_json()).unwrap(), plain);
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        for (name, value) in
            [("temp", "-1"), ("temp", "warm"), ("top_p", "2"), ("max_tokens", "-1"), ("nothing", "1")]
        {
            let mut settings = settings();
            let before = settings.clone();
            assert!(settings.set(name, value).is_err(), "{name}");
            assert_eq!(settings, before);
        }
        assert!(settings().with_json(&serde_json::json!([1])).is_err());
        assert!(settings().with_json(&serde_json::json!({"temp": -1})).is_err());
    }
}
