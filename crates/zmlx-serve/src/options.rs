//! The options with which a server starts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value};
use zmlx_models::SamplingParams;

use crate::tools::ToolSyntax;

/// How a server listens, and what it allows.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The name or address to listen on.
    pub host: String,
    /// The port; 0 means any free one.
    pub port: u16,
    /// The valid API keys. One of them is needed for everything except `/health` and the page. If the list is empty, no
    /// key is needed.
    pub api_keys: Vec<String>,
    /// Origins of web pages that may use the server, in addition to those on this machine. `*` allows all of them.
    pub allowed_origins: Vec<String>,
    /// Further names of the model.
    pub aliases: Vec<String>,
    /// Whether every name is accepted as the name of the model.
    pub any_model: bool,
    /// The largest number of tokens in an answer if a request does not say it; `None` means up to the end of the
    /// context.
    pub max_tokens: Option<usize>,
    /// Variables of the chat template. Those of a request take precedence.
    pub chat_template_args: Map<String, Value>,
    /// Whether thinking is split from the answers.
    pub reasoning: Reasoning,
    /// How tool calls are parsed.
    pub tool_parser: ToolParser,
    /// Whether there is a page at `/`.
    pub page: Feature,
    /// Whether there is `/metrics`.
    pub metrics: Feature,
    /// The number of sequences that run at once, as configured in the engine.
    pub n_slots: usize,
    /// The largest number of requests that may wait.
    pub max_queue: usize,
    /// How long a request may wait.
    pub queue_timeout: Duration,
    /// How long a request may take in total; `None` sets no limit.
    pub request_timeout: Option<Duration>,
    /// How long answers may continue after the server was told to stop.
    pub shutdown_timeout: Duration,
    /// The size of the longest body of a request in bytes, after decoding.
    pub max_body_bytes: usize,
}

/// Whether an optional part of the server exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// It exists.
    On,
    /// It does not exist.
    Off,
}

/// How thinking is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reasoning {
    /// It is separate from the answer.
    Split,
    /// It stays in the answer, with its tags.
    InContent,
}

/// How tool calls are parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolParser {
    /// In the syntax that the chat template shows.
    OfTemplate,
    /// In this syntax.
    Fixed(ToolSyntax),
    /// They are not parsed.
    Off,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            api_keys: Vec::new(),
            allowed_origins: Vec::new(),
            aliases: Vec::new(),
            any_model: false,
            max_tokens: None,
            chat_template_args: Map::new(),
            reasoning: Reasoning::Split,
            tool_parser: ToolParser::OfTemplate,
            page: Feature::On,
            metrics: Feature::On,
            n_slots: 32,
            max_queue: 256,
            queue_timeout: Duration::from_secs(60),
            request_timeout: None,
            shutdown_timeout: Duration::from_secs(30),
            max_body_bytes: 32 << 20,
        }
    }
}

/// How tokens are chosen if a request does not say it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// As [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// As [`SamplingParams::top_k`]; 0 turns it off.
    pub top_k: Option<usize>,
    /// As [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// As [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// As [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Reads the text of a `generation_config.json`. Values that make no sense are ignored.
    pub fn of_generation_config(text: &str) -> Self {
        let config: Value = serde_json::from_str(text).unwrap_or_default();
        let number = |key: &str| config.get(key).and_then(Value::as_f64).map(|n| n as f32);
        let is_greedy = config.get("do_sample") == Some(&Value::Bool(false));
        let defaults = Self {
            temperature: number("temperature").map(|t| if is_greedy { 0.0 } else { t }),
            top_k: config.get("top_k").and_then(Value::as_u64).and_then(|k| usize::try_from(k).ok()),
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty"),
        };
        if defaults.params().validate().is_ok() { defaults } else { Self::default() }
    }

    /// These values, with missing ones taken from `others`.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            temperature: self.temperature.or(others.temperature),
            top_k: self.top_k.or(others.top_k),
            top_p: self.top_p.or(others.top_p),
            min_p: self.min_p.or(others.min_p),
            repetition_penalty: self.repetition_penalty.or(others.repetition_penalty),
        }
    }

    /// The parameters for a request without settings: greedy unless defaults say otherwise.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(0.0),
            top_k: self.top_k.filter(|k| *k > 0),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            ..SamplingParams::greedy()
        }
    }
}

impl ServerOptions {
    /// True if the server can be reached only from this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The additional names of the model, each once.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.aliases.iter().map(String::as_str).filter(|name| !name.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_config() {
        let read = SamplingDefaults::of_generation_config;
        let qwen = read(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#);
        let params = qwen.params();
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, Some(20), Some(0.95)));
        assert_eq!(read(r#"{"do_sample": false, "temperature": 0.6}"#).params().temperature, 0.0);
        for nothing in ["", "[]", r#"{"temperature": "x"}"#, r#"{"temperature": -1, "top_k": 3}"#] {
            assert_eq!(read(nothing), SamplingDefaults::default(), "{nothing}");
        }
        let flags = SamplingDefaults { temperature: Some(1.0), top_k: Some(0), ..Default::default() };
        let params = flags.or(qwen).params();
        assert_eq!((params.temperature, params.top_k, params.top_p), (1.0, None, Some(0.95)));
    }

    #[test]
    fn loopback() {
        let is = |host: &str| ServerOptions { host: host.into(), ..Default::default() }.is_loopback();
        assert!(is("127.0.0.1") && is("localhost") && is("::1") && is("[::1]") && is("127.9.9.9"));
        assert!(!is("0.0.0.0") && !is("192.168.0.1") && !is("::") && !is("host.example"));
    }
}
