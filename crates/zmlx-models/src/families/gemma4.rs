//! `gemma4`: Gemma 4, with experts (26B-A4B), dense (12B, 31B), and with embeddings for each layer (E2B, E4B). It has
//! windows in most layers, norms before and after each part, and GeGLU.

mod layers;

use serde::Serialize;
use serde_json::Value;

use super::keys::{self, Frame, LayerType, RopeKeys};
use crate::Result;
use crate::architecture::{Architecture, MatrixSpec, ModelExtras, PerLayerInputsSpec, VectorSpec};
use crate::fields::Fields;
use layers::Layers;

pub(super) const MODEL_TYPE: &str = "gemma4";

/// Tensors of the text model that are ignored: the ranges to which linear layers were clipped in training.
const LEFT_OVER: &[&str] = &[
    "rotary_emb",
    "vision_tower",
    "vision_embedder",
    "audio_tower",
    "embed_vision",
    "embed_audio",
    "multi_modal_projector",
    "input_max",
    "input_min",
    "output_max",
    "output_min",
];

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    /// The number of key heads in layers that see all tokens and use their keys as values.
    num_global_key_value_heads: usize,
    head_dim: usize,
    global_head_dim: usize,
    attention_k_eq_v: bool,
    sliding_window: usize,
    layer_types: Vec<LayerType>,
    /// The number of layers at the end that have no keys and values of their own.
    num_kv_shared_layers: usize,
    intermediate_size: usize,
    use_double_wide_mlp: bool,
    enable_moe_block: bool,
    moe_intermediate_size: usize,
    num_experts: usize,
    top_k_experts: usize,
    /// The width of each layer's own embedding; 0 if there is none.
    hidden_size_per_layer_input: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    final_logit_softcapping: Option<f64>,
    rms_norm_eps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_parameters: Option<Value>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

/// A count. Null means 0, and a missing key means the default.
fn count_or(f: &Fields<'_>, key: &str, default: usize) -> Result<usize> {
    f.count_or(key, if f.contains(key) { 0 } else { default })
}

impl Config {
    fn parse(f: &Fields<'_>) -> Result<Self> {
        f.only("hidden_activation", "gelu_pytorch_tanh")?;
        f.off("attention_bias")?;
        let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
        let num_hidden_layers = keys::n_layers(f)?;
        let attention_k_eq_v = f.bool_or("attention_k_eq_v", false)?;
        let enable_moe_block = f.bool_or("enable_moe_block", false)?;
        let of_moe = |key: &str| if enable_moe_block { f.dim(key) } else { Ok(0) };
        let (num_experts, top_k_experts) = (of_moe("num_experts")?, of_moe("top_k_experts")?);
        let want = format!("at most num_experts = {num_experts}");
        f.ensure(top_k_experts <= num_experts, "top_k_experts", want, top_k_experts)?;
        let pattern = f.dim_or("sliding_window_pattern", 5)?;
        let in_pattern =
            |i: usize| if (i + 1).is_multiple_of(pattern) { LayerType::Full } else { LayerType::Sliding };
        let num_global_key_value_heads = f.dim_or("num_global_key_value_heads", num_key_value_heads)?;
        let want = format!("a divisor of the {num_attention_heads} heads");
        let divides = num_attention_heads.is_multiple_of(num_global_key_value_heads);
        f.ensure(divides, "num_global_key_value_heads", want, num_global_key_value_heads)?;
        let final_logit_softcapping = match f.contains("final_logit_softcapping") {
            false => Some(30.0),
            true if f.get("final_logit_softcapping").is_none() => None,
            true => Some(f.positive("final_logit_softcapping")?),
        };
        Ok(Self {
            vocab_size: f.dim_or("vocab_size", 262_144)?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            num_global_key_value_heads,
            head_dim: even_or(f, "head_dim", 256)?,
            global_head_dim: even_or(f, "global_head_dim", 512)?,
            attention_k_eq_v,
            sliding_window: f.dim_or("sliding_window", 512)?,
            layer_types: keys::layer_types(f, num_hidden_layers, in_pattern)?,
            num_kv_shared_layers: count_or(f, "num_kv_shared_layers", 20)?,
            intermediate_size: f.dim("intermediate_size")?,
            use_double_wide_mlp: f.bool_or("use_double_wide_mlp", true)?,
            enable_moe_block,
            moe_intermediate_size: of_moe("moe_intermediate_size")?,
            num_experts,
            top_k_experts,
            hidden_size_per_layer_input: count_or(f, "hidden_size_per_layer_input", 256)?,
            final_logit_softcapping,
            rms_norm_eps: f.positive_or("rms_norm_eps", 1e-6)?,
            rope_parameters: f.get("rope_parameters").cloned(),
            max_position_embeddings: f.dim_or("max_position_embeddings", 131_072)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", true)?,
        })
    }
}

fn even_or(f: &Fields<'_>, key: &str, default: usize) -> Result<usize> {
    if f.get(key).is_some() { keys::even_dim(f, key) } else { Ok(default) }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let c = Config::parse(f)?;
    let ropes = [
        layers::rope(&RopeKeys::of_layers(f, "sliding_attention")?, c.head_dim, LayerType::Sliding)?,
        layers::rope(&RopeKeys::of_layers(f, "full_attention")?, c.global_head_dim, LayerType::Full)?,
    ];
    let (hidden, width) = (c.hidden_size, c.hidden_size_per_layer_input);
    // The layers' own embeddings have a table of their own.
    let n_own = f.dim_or("vocab_size_per_layer_input", c.vocab_size)?;
    let want = format!("vocab_size = {}", c.vocab_size);
    f.ensure(width == 0 || n_own == c.vocab_size, "vocab_size_per_layer_input", want, n_own)?;
    let all = c.num_hidden_layers.saturating_mul(width);
    let per_layer_inputs = (width > 0).then(|| PerLayerInputsSpec {
        width,
        table: MatrixSpec::new("model.embed_tokens_per_layer", c.vocab_size, all),
        projection: MatrixSpec::new("model.per_layer_model_projection", all, hidden),
        norm: VectorSpec::new("model.per_layer_projection_norm.weight", width),
    });
    let layers = Layers { config: &c, ropes }.all(f)?;
    let frame = Frame {
        vocab_size: c.vocab_size,
        hidden_size: hidden,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
    };
    Ok(Architecture {
        extras: ModelExtras {
            embed_factor: Some((hidden as f32).sqrt()),
            logit_cap: c.final_logit_softcapping.map(|cap| cap as f32),
            per_layer_inputs,
            ..ModelExtras::default()
        },
        left_over: LEFT_OVER,
        ..frame.around(MODEL_TYPE, &c, layers)
    })
}
