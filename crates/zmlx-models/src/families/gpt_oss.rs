//! `gpt_oss`: gpt-oss-20b and -120b. They have grouped queries with sinks and a window in every other layer, and
//! experts with biases and a clamped SwiGLU.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::RopePairing;

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, LayerType, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{
    Activation, Architecture, ExpertsSpec, FeedForwardSpec, GqaSpec, LinearSpec, MixerSpec, MoeSpec,
    RouterSpec, SoftmaxOfChosen, Storage, VectorSpec,
};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "gpt_oss";

/// The reference uses these values, whatever `swiglu_limit` says.
const ACTIVATION: Activation = Activation::ClampedSwiGlu { alpha: 1.702, limit: 7.0 };

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    /// Width of an expert.
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    sliding_window: usize,
    layer_types: Vec<LayerType>,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Config {
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>) -> Result<Self> {
        f.only("hidden_act", "silu")?;
        rope.whole_heads()?;
        let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
        let num_local_experts = f.dim("num_local_experts")?;
        let num_hidden_layers = keys::n_layers(f)?;
        let top_k = f.named(&["num_experts_per_tok", "experts_per_token"]);
        let num_experts_per_tok = f.dim(top_k)?;
        let want = format!("at most num_local_experts = {num_local_experts}");
        f.ensure(num_experts_per_tok <= num_local_experts, top_k, want, num_experts_per_tok)?;
        let alternating = |i: usize| if i.is_multiple_of(2) { LayerType::Sliding } else { LayerType::Full };
        Ok(Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: keys::even_dim(f, "head_dim")?,
            intermediate_size: f.dim("intermediate_size")?,
            num_local_experts,
            num_experts_per_tok,
            sliding_window: f.dim("sliding_window")?,
            layer_types: keys::layer_types(f, num_hidden_layers, alternating)?,
            rms_norm_eps: f.positive_or("rms_norm_eps", 1e-5)?,
            rope_theta: rope.theta(Some(150_000.0))?,
            rope_scaling: rope.scaling(),
            max_position_embeddings: f.dim_or("max_position_embeddings", 131_072)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        })
    }

    fn moe(&self, path: String) -> MoeSpec {
        let (n_experts, hidden) = (self.num_local_experts, self.hidden_size);
        let gate = LinearSpec::biased(format!("{path}.router"), n_experts, hidden);
        MoeSpec {
            router: RouterSpec::SoftmaxOfChosen(Box::new(SoftmaxOfChosen {
                gate: LinearSpec { matrix: gate.matrix.stored(Storage::EightBit), ..gate },
                norm: None,
                factors: None,
                top_k: self.num_experts_per_tok,
            })),
            experts: ExpertsSpec {
                module: "experts",
                activation: ACTIVATION,
                is_biased: true,
                ..ExpertsSpec::swiglu(path, n_experts, [self.intermediate_size, hidden])
            },
            shared: None,
            shared_gate: None,
        }
    }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let c = Config::parse(f, &rope)?;
    let (theta, pairing) = (c.rope_theta, RopePairing::HalfSplit);
    let hidden = c.hidden_size;
    let attention = Grouped {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        hidden,
        biases: Biases::All,
        norms: HeadNorms::None,
        eps: c.rms_norm_eps as f32,
        rope: rope.rope(RopeOf { dims: c.head_dim, theta, pairing })?,
    };
    let frame = Frame {
        vocab_size: c.vocab_size,
        hidden_size: hidden,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
    };
    let layer = |(layer_idx, layer_type): (usize, &LayerType)| {
        let at = |name: &str| format!("model.layers.{layer_idx}.{name}");
        frame.layer(
            layer_idx,
            MixerSpec::Attention(GqaSpec {
                window: (*layer_type == LayerType::Sliding).then_some(c.sliding_window),
                sinks: Some(VectorSpec::new(at("self_attn.sinks"), c.num_attention_heads)),
                ..attention.at(&at("self_attn"))
            }),
            FeedForwardSpec::moe(c.moe(at("mlp"))),
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, c.layer_types.iter().enumerate().map(layer).collect()))
}
