//! Arguments that several subcommands share.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::{FalseyValueParser, RangedU64ValueParser};
use clap::{ArgAction, Args, ValueEnum};
use serde_json::{Map, Value};
use zmlx_kernels::cpu::{Activations, CpuBackend};
use zmlx_kernels::{Fusion, SoftmaxRoute};
use zmlx_models::SamplingParams;
use zmlx_models::architecture::{Architecture, RouterSpec};

/// Names a checkpoint. Every command accepts it in the same two ways.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// The model: a folder in MLX's format, or the name of a model on the Hugging Face hub (org/name or org/name@revision),
    /// which is downloaded unless the cache has it. Without it, the tiny model that is built in.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    positional: Option<PathBuf>,
    /// The same as MODEL.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// A branch, a tag or a commit of the model on the hub.
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// Do not download anything: use the model in the cache. HF_HUB_OFFLINE=1 has the same effect.
    #[arg(long)]
    pub(crate) offline: bool,
}

impl ModelArgs {
    /// The model with this name, for a command that defines its own argument for the name.
    pub(crate) fn new(name: PathBuf, revision: Option<String>, offline: bool) -> Self {
        Self { positional: Some(name), model: None, revision, offline }
    }

    /// The model that the user named; `None` for the built-in model.
    pub(crate) fn named(&self) -> Option<&PathBuf> {
        self.positional.as_ref().or(self.model.as_ref())
    }
}

/// The headings of the options in `--help`.
pub(crate) mod heading {
    pub(crate) const PROMPT: &str = "Prompt";
    pub(crate) const SAMPLING: &str = "Sampling";
    pub(crate) const COMPUTING: &str = "What computes";
    pub(crate) const OUTPUT: &str = "Output";
}

/// The backend and its settings.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct BackendArgs {
    /// The backend that computes. The default is mlx on a Mac with Metal, otherwise cuda if there is an NVIDIA GPU,
    /// otherwise cpu.
    #[arg(long, value_enum, help_heading = heading::COMPUTING)]
    pub(crate) backend: Option<BackendKind>,
    #[command(flatten)]
    pub(crate) cpu: CpuArgs,
}

/// The settings of the CPU backend.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct CpuArgs {
    /// Threads of the CPU backend. By default the program tries how many are fastest, up to one for each physical core.
    #[arg(long, value_name = "N", help_heading = heading::COMPUTING, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub(crate) threads: Option<usize>,
    /// The type to which the CPU backend rounds activations before it multiplies them with quantised weights.
    #[arg(long, value_enum, value_name = "TYPE", default_value = "int16", help_heading = heading::COMPUTING)]
    cpu_activations: ActivationsKind,
}

impl CpuArgs {
    pub(crate) fn backend(self) -> zmlx_kernels::Result<CpuBackend> {
        Ok(CpuBackend::new(self.threads)?.with_activations(match self.cpu_activations {
            ActivationsKind::Int16 => Activations::Int16,
            ActivationsKind::Int8 => Activations::Int8,
        }))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ActivationsKind {
    /// Generates the same tokens as f32: the error of a product is about 2e-5.
    Int16,
    /// Faster, above all for prompts. The error of a product is about 5e-3, which can change tokens.
    Int8,
}

/// Parses a count that is at least 1.
pub(crate) fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 24)
}

/// Parses a number of tokens. -1 means as many as the context has room for.
pub(crate) fn max_tokens(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(usize::MAX),
        Ok(n) => usize::try_from(n).map_err(|_| "expected a number of tokens, or -1 for no limit".to_owned()),
        Err(_) => Err("expected a number of tokens, or -1 for no limit".to_owned()),
    }
}

/// All backends, including those which this build lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    /// SIMD kernels on the processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// MLX: Apple's GPU through Metal, elsewhere MLX's own CPU kernels.
    Mlx,
}

/// Selects the fused ops.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct FusionArgs {
    /// The fused ops to use: stock, concat or fused. Single ops can be switched on or off, as in `fused,-route,-qkv`.
    /// The default depends on the backend and the model.
    #[arg(long, value_name = "PRESET[,±OP]", help_heading = heading::COMPUTING)]
    fusion: Option<Fusion>,
    #[command(flatten)]
    route: RouteArgs,
}

impl FusionArgs {
    /// The fused ops for a model: `default` if the user named none.
    pub(crate) fn of(&self, architecture: &Architecture, default: Fusion) -> Result<Fusion> {
        self.route.apply(self.fusion.unwrap_or(default), architecture)
    }
}

/// Experiments with the router of Qwen's models. Each can also be set as an environment variable: the values 0, false,
/// no, off and the empty string switch it off.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct RouteArgs {
    /// Experiment: choose the experts by the router's logits instead of its probabilities.
    #[arg(
        long,
        help_heading = heading::COMPUTING,
        hide_short_help = true,
        env = "ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS",
        action = ArgAction::SetTrue,
        value_parser = FalseyValueParser::new()
    )]
    qwen_router_argpartition_logits: bool,
    /// Experiment: apply softmax only to the logits of the chosen experts. Needs --qwen-router-argpartition-logits.
    #[arg(
        long,
        help_heading = heading::COMPUTING,
        hide_short_help = true,
        env = "ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS_TOPK",
        action = ArgAction::SetTrue,
        value_parser = FalseyValueParser::new()
    )]
    qwen_router_argpartition_logits_topk: bool,
}

impl RouteArgs {
    /// `fusion` with the routing that the arguments select.
    pub(crate) fn apply(&self, fusion: Fusion, architecture: &Architecture) -> Result<Fusion> {
        let softmax_route = match (
            self.qwen_router_argpartition_logits,
            self.qwen_router_argpartition_logits_topk,
        ) {
            (false, false) => return Ok(fusion),
            (false, true) => bail!(
                "--qwen-router-argpartition-logits-topk (ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS_TOPK) requires \
                     --qwen-router-argpartition-logits (ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS)"
            ),
            (true, false) => SoftmaxRoute::Logits,
            (true, true) => SoftmaxRoute::ChosenLogits,
        };
        let mut routers = architecture.moe_layers().map(|(_, moe)| &moe.router);
        if !routers.any(|router| matches!(router, RouterSpec::SoftmaxTopK { .. })) {
            tracing::warn!(
                "{} has no softmax router: --qwen-router-argpartition-logits has no effect",
                architecture.model_type
            );
        }
        Ok(Fusion { softmax_route, ..fusion })
    }
}

/// How the next token is chosen.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = heading::SAMPLING)]
pub(crate) struct SamplingArgs {
    /// Temperature. 0 always takes the most probable token.
    #[arg(long, visible_alias = "temperature", default_value_t = 0.0, allow_negative_numbers = true)]
    temp: f32,
    /// Choose among the K most probable tokens. 0 means all tokens.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the most probable tokens whose probabilities add up to P.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Choose among the tokens whose probability is at least P times that of the most probable one.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make recent tokens less likely. The penalty is a factor above 1.
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// The number of recent tokens to which the repetition penalty applies.
    #[arg(long, value_name = "N", default_value_t = 20)]
    repetition_context_size: usize,
    /// Seed of the random choices. The same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop before TEXT. Can be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Do not stop at the tokens that end a text (EOS).
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl SamplingArgs {
    /// The sampling parameters, after validation.
    pub(crate) fn params(&self) -> Result<SamplingParams> {
        if self.stop.iter().any(String::is_empty) {
            bail!("--stop: expected a text, got an empty one");
        }
        let params = SamplingParams {
            temperature: self.temp,
            top_k: (self.top_k > 0).then_some(self.top_k),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            repetition_context_size: self.repetition_context_size,
            seed: self.seed,
            ..SamplingParams::greedy()
        };
        params.validate()?;
        Ok(params)
    }
}

/// The beginning of a conversation.
#[derive(Clone, Debug, Args)]
pub(crate) struct TemplateArgs {
    /// The system message of the conversation.
    #[arg(long = "system-prompt", visible_alias = "system", value_name = "TEXT", help_heading = heading::PROMPT)]
    pub(crate) system: Option<String>,
    /// Variables of the chat template as a JSON object, for example '{"enable_thinking": false}'.
    #[arg(long, help_heading = heading::PROMPT, value_name = "JSON", value_parser = json_object)]
    chat_template_config: Option<JsonObject>,
}

impl TemplateArgs {
    /// The variables of the chat template.
    pub(crate) fn kwargs(&self) -> Map<String, Value> {
        self.chat_template_config.clone().map(|o| o.0).unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
struct JsonObject(Map<String, Value>);

fn json_object(text: &str) -> Result<JsonObject, serde_json::Error> {
    serde_json::from_str(text).map(JsonObject)
}
