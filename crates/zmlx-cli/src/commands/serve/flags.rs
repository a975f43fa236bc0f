//! The flags. Their names are those of other servers where they have the flag.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};
use zmlx_models::KvFormat;
use zmlx_serve::tools::ToolSyntax;
use zmlx_serve::{Feature, Reasoning, SamplingDefaults, ServerOptions, ToolParser};

use super::limit;
use crate::args::{BackendArgs, FusionArgs, ModelArgs, positive};

/// Arguments of `zmlx serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The address to listen on. Other machines reach the server only if this is not a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on. 0 selects any free port.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Additional names of the model, which clients may use.
    #[arg(short, long, value_name = "NAME,…", value_delimiter = ',')]
    alias: Vec<String>,
    /// Answer requests for any model name with this model.
    #[arg(long)]
    any_model: bool,
    /// Keys. A request must present one of them.
    #[arg(long, value_name = "KEY,…", value_delimiter = ',', env = "ZMLX_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// A file with keys, one per line.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Origins of web pages that may use the server, in addition to those of this machine. * allows all.
    #[arg(long, value_name = "ORIGIN,…", value_delimiter = ',')]
    allowed_origins: Vec<String>,
    /// The temperature if a request does not set it. 0 always takes the most probable token.
    #[arg(long, visible_alias = "temperature", value_name = "T", allow_negative_numbers = true)]
    temp: Option<f32>,
    /// top_p if a request does not set it.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// top_k if a request does not set it. 0 means all tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// min_p if a request does not set it.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// The largest number of tokens of an answer if a request does not set it. By default the end of the context is the
    /// limit.
    #[arg(long, value_name = "N", value_parser = positive())]
    max_tokens: Option<usize>,
    /// The chat template to use instead of the checkpoint's.
    #[arg(long, value_name = "TEXT", conflicts_with = "chat_template_file")]
    chat_template: Option<String>,
    /// A file with the chat template to use instead of the checkpoint's.
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    /// Variables of the chat template as a JSON object, for example {"enable_thinking": false}.
    #[arg(
        long,
        visible_aliases = ["chat-template-kwargs", "chat-template-config"],
        value_name = "JSON",
        value_parser = json_object
    )]
    chat_template_args: Option<JsonObject>,
    /// How the thinking of a model is returned.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "auto")]
    reasoning_format: ReasoningFormat,
    /// The format in which tool calls are recognised. By default it is derived from the chat template.
    #[arg(long, value_enum, value_name = "SYNTAX")]
    tool_parser: Option<ToolParserKind>,
    /// The largest number of sequences that are decoded at once.
    #[arg(long, visible_alias = "parallel", value_name = "N", default_value_t = 32, value_parser = positive())]
    pub(super) decode_concurrency: usize,
    /// The largest number of prompts that are computed at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive())]
    pub(super) prompt_concurrency: usize,
    /// The number of prompt tokens that are computed in a step. The default depends on the backend.
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(super) prefill_step_size: Option<usize>,
    /// The largest number of tokens of a prompt and its answer. The default is the longest context of the model.
    #[arg(short = 'c', long, visible_alias = "ctx-size", value_name = "N", value_parser = positive())]
    pub(super) max_kv_size: Option<usize>,
    /// The most memory for keys and values in bytes, for example 8G. The default is nine tenths of the memory, less the
    /// weights and 1 GiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) kv_cache_bytes: Option<u64>,
    /// Bits of keys and values. The default is the backend's own format of 16 bits.
    #[arg(long, value_name = "BITS", value_parser = ["8", "4"])]
    kv_bits: Option<String>,
    /// The number of values that share a scale with --kv-bits.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive())]
    kv_group_size: usize,
    /// Accepted for compatibility with mlx_lm.server, without effect: with --kv-bits every position is quantised.
    #[arg(long, value_name = "N")]
    quantized_kv_start: Option<usize>,
    /// The number of finished conversations whose keys and values are kept, for requests that begin in the same way. 0
    /// keeps none.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(super) prompt_cache_size: usize,
    /// The most memory for these conversations in bytes, for example 2G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) prompt_cache_bytes: Option<u64>,
    /// The number of requests that may wait. Further requests are refused at once.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_queue: usize,
    /// How long a request may wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    queue_timeout: f64,
    /// How long a request may take in total, in seconds. 0 means no limit.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = seconds)]
    request_timeout: f64,
    /// How long answers in progress may continue once the server is asked to stop, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    shutdown_timeout: f64,
    /// The largest size of a request in bytes, for example 32M.
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = size)]
    max_body_bytes: u64,
    /// The level of the log. From info on there is a line for each request. RUST_LOG selects in more detail.
    #[arg(long, value_enum, ignore_case = true, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    /// Do not serve the page at /.
    #[arg(long)]
    no_ui: bool,
    /// Do not serve /metrics.
    #[arg(long)]
    no_metrics: bool,
    /// Not supported.
    #[arg(long, hide = true)]
    draft_model: Option<String>,
    /// Not supported.
    #[arg(long, hide = true)]
    adapter_path: Option<String>,
    /// Not supported.
    #[arg(long, hide = true)]
    trust_remote_code: bool,
    #[command(flatten)]
    pub(super) fusion: FusionArgs,
    #[command(flatten)]
    pub(super) backend: BackendArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ReasoningFormat {
    /// It is separated from the answer.
    Auto,
    /// It stays in the answer, including its tags.
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ToolParserKind {
    /// The tags of GLM-4.
    Glm,
    /// The JSON of Qwen3.
    Qwen,
    /// The functions of Qwen3-Coder.
    Coder,
    /// Tool calls stay text.
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    #[value(alias = "critical")]
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Debug)]
struct JsonObject(Map<String, Value>);

fn json_object(text: &str) -> Result<JsonObject, serde_json::Error> {
    serde_json::from_str(text).map(JsonObject)
}

/// A number of bytes, perhaps in K, M, G or T, which are powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let short = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let unit = units.iter().find_map(|(unit, shift)| Some((short.strip_suffix(*unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((short, 0));
    let bytes = number.trim().parse::<f64>().ok().map(|n| n * (1u64 << shift) as f64);
    match bytes {
        Some(bytes) if bytes >= 0.0 && bytes < (1u64 << 60) as f64 => Ok(bytes as u64),
        _ => Err("expected a number of bytes, as 500M or 8G".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if (0.0..1e9).contains(&n) => Ok(n),
        _ => Err("expected a number of seconds, at least 0".to_owned()),
    }
}

impl Args {
    /// The level of the log.
    pub(crate) fn log_level(&self) -> &'static str {
        match self.log_level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }

    /// Refuses flags of mlx_lm.server for what is not here.
    pub(super) fn refuse_foreign(&self) -> Result<()> {
        if self.draft_model.is_some() {
            bail!("--draft-model: there is no speculative decoding with a second model");
        }
        if self.adapter_path.is_some() {
            bail!("--adapter-path: adapters are not supported; merge them into the checkpoint first");
        }
        if self.trust_remote_code {
            bail!("--trust-remote-code: zmlx never runs code from a checkpoint");
        }
        if self.quantized_kv_start.is_some_and(|n| n > 0) && self.kv_bits.is_some() {
            tracing::warn!("--quantized-kv-start: every position is quantised");
        }
        Ok(())
    }

    /// True if others than this machine may come without a key.
    pub(super) fn is_open_to_all(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback =
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        !is_loopback && self.api_key.is_empty() && self.api_key_file.is_none()
    }

    pub(super) fn has_template(&self) -> bool {
        self.chat_template.is_some() || self.chat_template_file.is_some()
    }

    pub(super) fn template_text(&self) -> Result<Option<String>> {
        match (&self.chat_template, &self.chat_template_file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path);
                text.with_context(|| path.display().to_string()).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    pub(super) fn kv_format(&self) -> Result<KvFormat> {
        let group_size = self.kv_group_size;
        Ok(match self.kv_bits.as_deref() {
            None => KvFormat::Native,
            Some("4") => KvFormat::Int4 { group_size },
            Some(_) => KvFormat::Int8 { group_size },
        })
    }

    pub(super) fn sampling_defaults(&self) -> Result<SamplingDefaults> {
        let defaults = SamplingDefaults {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: None,
        };
        defaults.params().validate()?;
        Ok(defaults)
    }

    pub(super) fn server_options(&self) -> Result<ServerOptions> {
        self.sampling_defaults()?;
        let feature = |is_off: bool| if is_off { Feature::Off } else { Feature::On };
        let timeout = |seconds: f64| limit(seconds).unwrap_or_default();
        Ok(ServerOptions {
            api_keys: self.keys()?,
            allowed_origins: self.allowed_origins.clone(),
            aliases: self.alias.clone(),
            any_model: self.any_model,
            max_tokens: self.max_tokens,
            chat_template_args: self.chat_template_args.clone().map(|object| object.0).unwrap_or_default(),
            reasoning: match self.reasoning_format {
                ReasoningFormat::Auto => Reasoning::Split,
                ReasoningFormat::None => Reasoning::InContent,
            },
            tool_parser: match self.tool_parser {
                None => ToolParser::OfTemplate,
                Some(ToolParserKind::None) => ToolParser::Off,
                Some(ToolParserKind::Glm) => ToolParser::Fixed(ToolSyntax::Glm),
                Some(ToolParserKind::Qwen) => ToolParser::Fixed(ToolSyntax::Qwen),
                Some(ToolParserKind::Coder) => ToolParser::Fixed(ToolSyntax::Coder),
            },
            page: feature(self.no_ui),
            metrics: feature(self.no_metrics),
            n_slots: self.decode_concurrency,
            max_queue: self.max_queue,
            queue_timeout: timeout(self.queue_timeout),
            request_timeout: limit(self.request_timeout),
            shutdown_timeout: timeout(self.shutdown_timeout),
            max_body_bytes: usize::try_from(self.max_body_bytes).unwrap_or(usize::MAX),
            host: self.host.clone(),
            port: self.port,
        })
    }

    /// The keys of flag, environment and file.
    fn keys(&self) -> Result<Vec<String>> {
        let mut keys: Vec<String> = self.api_key.iter().map(|key| key.trim().to_owned()).collect();
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            keys.extend(text.lines().map(|line| line.trim().to_owned()));
        }
        let is_asked = !keys.is_empty() || self.api_key_file.is_some();
        keys.retain(|key| !key.is_empty());
        if is_asked && keys.is_empty() {
            bail!("--api-key, --api-key-file: expected at least one key, got none");
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in
            [("0", 0), ("12", 12), ("1K", 1024), ("1.5m", 3 << 19), ("8GiB", 8 << 30), ("2 GB", 2 << 30)]
        {
            assert_eq!(size(text), Ok(want), "{text}");
        }
        for text in ["", "x", "-1", "1X", "nan", "inf", "1e30"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
