//! What a server is told when it starts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value};
use zmlx_models::SamplingParams;

use crate::tools::ToolSyntax;

/// How a server listens and what it admits.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The name or address to listen on.
    pub host: String,
    /// The port; 0 is any free one.
    pub port: u16,
    /// One of these is needed for everything but `/health` and the page; empty for no key.
    pub api_keys: Vec<String>,
    /// Origins of web pages that may use the server, besides those on this machine. `*` is all of them.
    pub allowed_origins: Vec<String>,
    /// Further names of the model.
    pub aliases: Vec<String>,
    /// Serves every name as the model.
    pub any_model: bool,
    /// Tokens of an answer where a request does not say; to the end of the context without.
    pub max_tokens: Option<usize>,
    /// Variables of the chat template; those of a request win.
    pub chat_template_args: Map<String, Value>,
    /// Whether thinking is split from the answers.
    pub reasoning: Reasoning,
    /// How calls of tools are read.
    pub tool_parser: ToolParser,
    /// Whether there is a page at `/`.
    pub page: Feature,
    /// Whether there is `/metrics`.
    pub metrics: Feature,
    /// Sequences that run at once, as the engine was told.
    pub n_slots: usize,
    /// Requests that may wait.
    pub max_queue: usize,
    /// How long a request waits at most.
    pub queue_timeout: Duration,
    /// How long a request may take in all; `None` is no limit.
    pub request_timeout: Option<Duration>,
    /// How long answers may go on once the server is told to end.
    pub shutdown_timeout: Duration,
    /// The longest body of a request, decoded.
    pub max_body_bytes: usize,
}

/// Something that is there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// It is there.
    On,
    /// It is not.
    Off,
}

/// What becomes of thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reasoning {
    /// It is told apart from the answer.
    Split,
    /// It stays in the answer, with its tags.
    InContent,
}

/// How calls of tools are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolParser {
    /// As the chat template writes them.
    OfTemplate,
    /// In this syntax.
    Fixed(ToolSyntax),
    /// Not at all.
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

/// How tokens are chosen where a request does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// As [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// As [`SamplingParams::top_k`]; 0 is off.
    pub top_k: Option<usize>,
    /// As [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// As [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// As [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// What the text of a `generation_config.json` says. Values that make no sense are passed over.
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

    /// These, and where they say nothing, `others`.
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

    /// The parameters of a request that says nothing: greedy where nothing is given.
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
    /// True if only this machine reaches the server.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The names of the model besides its own, each once.
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
