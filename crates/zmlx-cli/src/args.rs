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

/// Which checkpoint.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// A checkpoint folder, or the name (org/name or org/name@revision) of a model on the Hugging Face hub, which is
    /// downloaded unless the cache has it. Without it, the tiny model that is built in.
    #[arg(long, value_name = "DIR|ID")]
    pub(crate) model: Option<PathBuf>,
    /// A branch, a tag or a commit of the model on the hub.
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// Download nothing: the model is in the cache. HF_HUB_OFFLINE=1 says the same.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Which checkpoint, also without a flag.
#[derive(Clone, Debug, Args)]
pub(crate) struct NamedModelArgs {
    /// As --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    positional: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

impl NamedModelArgs {
    pub(crate) fn model(&self) -> ModelArgs {
        let mut model = self.model.clone();
        model.model = self.positional.clone().or(model.model);
        model
    }
}

/// What computes, and how.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct BackendArgs {
    /// What computes. By default mlx where MLX has Metal, else cuda where there is an NVIDIA GPU, else cpu.
    #[arg(long, value_enum)]
    pub(crate) backend: Option<BackendKind>,
    #[command(flatten)]
    pub(crate) cpu: CpuArgs,
}

/// How the CPU backend computes.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct CpuArgs {
    /// Threads of the CPU backend; by default one per physical core.
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub(crate) threads: Option<usize>,
    /// What the CPU backend rounds activations to where they meet quantised weights.
    #[arg(long, value_enum, value_name = "TYPE", default_value = "int16")]
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
    /// Tokens as with f32: the error of a product is about 2e-5.
    Int16,
    /// Faster, above all with prompts; the error of a product is about 5e-3, which may change tokens.
    Int8,
}

/// Counts of which there must be at least one.
pub(crate) fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 24)
}

/// The backends, in this build or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    /// SIMD kernels on the processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// MLX: Apple's GPU through Metal, elsewhere MLX's own CPU kernels.
    Mlx,
}

/// Which fused ops.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct FusionArgs {
    /// Fused ops: stock, concat or fused, then single ones switched as in `fused,-route,-qkv`. By default what suits the
    /// backend and the model.
    #[arg(long, value_name = "PRESET[,±OP]")]
    fusion: Option<Fusion>,
    #[command(flatten)]
    route: RouteArgs,
}

impl FusionArgs {
    /// The fused ops for a model, `default` if none were named.
    pub(crate) fn of(&self, architecture: &Architecture, default: Fusion) -> Result<Fusion> {
        self.route.apply(self.fusion.unwrap_or(default), architecture)
    }
}

/// Experiments with the router of Qwen's models. As environment variables they are read by value: empty, 0, false, no
/// and off are off.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct RouteArgs {
    /// Experiment: choose the experts from the router's logits instead of their probabilities.
    #[arg(
        long,
        env = "ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS",
        action = ArgAction::SetTrue,
        value_parser = FalseyValueParser::new()
    )]
    qwen_router_argpartition_logits: bool,
    /// Experiment: softmax over the chosen logits only. Needs --qwen-router-argpartition-logits.
    #[arg(
        long,
        env = "ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS_TOPK",
        action = ArgAction::SetTrue,
        value_parser = FalseyValueParser::new()
    )]
    qwen_router_argpartition_logits_topk: bool,
}

impl RouteArgs {
    /// The fusion with the route that was asked for.
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
                "{} has no softmax router: --qwen-router-argpartition-logits changes nothing",
                architecture.model_type
            );
        }
        Ok(Fusion { softmax_route, ..fusion })
    }
}

/// How tokens are chosen.
#[derive(Clone, Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 takes the most probable token.
    #[arg(long, visible_alias = "temperature", default_value_t = 0.0, allow_negative_numbers = true)]
    temp: f32,
    /// Choose among the K most probable tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the most probable tokens that together reach this probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Choose among tokens at least this fraction as probable as the most probable one.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens that were just used less likely: above 1.
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// How many of the last tokens the penalty looks at.
    #[arg(long, value_name = "N", default_value_t = 20)]
    repetition_context_size: usize,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Go on after the tokens that end a text.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl SamplingArgs {
    /// The parameters, checked.
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

/// What a conversation begins with.
#[derive(Clone, Debug, Args)]
pub(crate) struct TemplateArgs {
    /// The system message of the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Variables of the chat template as a JSON object: {"enable_thinking": false}.
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    chat_template_config: Option<JsonObject>,
}

impl TemplateArgs {
    /// Variables of the chat template.
    pub(crate) fn kwargs(&self) -> Map<String, Value> {
        self.chat_template_config.clone().map(|o| o.0).unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
struct JsonObject(Map<String, Value>);

fn json_object(text: &str) -> Result<JsonObject, serde_json::Error> {
    serde_json::from_str(text).map(JsonObject)
}
