//! `minimax_m2`: MiniMax-M2, M2.1 and M2.5. They have grouped queries with norms over all heads at once, rope on a part
//! of each head, and sigmoid routing with a bias.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{NoauxTc, Renormalize, RopePairing};

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{
    Architecture, ExpertsSpec, FeedForwardSpec, MatrixSpec, MixerSpec, MoeSpec, RouterSpec, Storage,
    VectorSpec,
};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "minimax_m2";

/// Added to the sum of the chosen scores before the division.
const EPS: f32 = 1e-20;

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    use_qk_norm: bool,
    /// Width of an expert.
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
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
        f.only("scoring_func", "sigmoid")?;
        let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
        let num_local_experts = f.dim("num_local_experts")?;
        let hidden_size = f.dim("hidden_size")?;
        let head_dim = f.dim_or("head_dim", hidden_size / num_attention_heads)?;
        let rotary_dim = keys::even_dim(f, "rotary_dim")?;
        f.ensure(rotary_dim <= head_dim, "rotary_dim", format!("at most head_dim = {head_dim}"), rotary_dim)?;
        let num_experts_per_tok = keys::top_k(f, ("num_local_experts", num_local_experts))?;
        // A single score would be divided by itself.
        let want = "at least two, whose scores are divided by their sum";
        f.ensure(num_experts_per_tok > 1, "num_experts_per_tok", want, num_experts_per_tok)?;
        Ok(Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size,
            num_hidden_layers: keys::n_layers(f)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rotary_dim,
            use_qk_norm: f.bool_or("use_qk_norm", true)?,
            intermediate_size: f.dim("intermediate_size")?,
            num_local_experts,
            num_experts_per_tok,
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta: rope.theta(None)?,
            rope_scaling: rope.scaling(),
            max_position_embeddings: f.dim("max_position_embeddings")?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        })
    }

    fn moe(&self, path: String) -> MoeSpec {
        let (n_experts, hidden, inter) = (self.num_local_experts, self.hidden_size, self.intermediate_size);
        MoeSpec {
            router: RouterSpec::NoauxTc {
                gate: MatrixSpec::new(format!("{path}.gate"), n_experts, hidden).stored(Storage::EightBit),
                bias: Some(VectorSpec::new(format!("{path}.e_score_correction_bias"), n_experts)),
                settings: NoauxTc {
                    top_k: self.num_experts_per_tok,
                    n_group: 1,
                    topk_group: 1,
                    renormalize: Renormalize::Yes,
                    eps: EPS,
                    routed_scaling_factor: 1.0,
                },
            },
            shared: None,
            shared_gate: None,
            experts: ExpertsSpec::swiglu(path, n_experts, [inter, hidden]),
        }
    }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let c = Config::parse(f, &rope)?;
    let (theta, pairing) = (c.rope_theta, RopePairing::HalfSplit);
    let rope = rope.rope(RopeOf { dims: c.rotary_dim, theta, pairing })?;
    let hidden = c.hidden_size;
    let attention = Grouped {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        hidden,
        biases: Biases::None,
        norms: if c.use_qk_norm { HeadNorms::All } else { HeadNorms::None },
        eps: c.rms_norm_eps as f32,
        rope,
    };
    let frame = Frame {
        vocab_size: c.vocab_size,
        hidden_size: hidden,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
    };
    let layer = |layer_idx: usize| {
        let at = |name: &str| format!("model.layers.{layer_idx}.{name}");
        frame.layer(
            layer_idx,
            MixerSpec::Attention(attention.at(&at("self_attn"))),
            FeedForwardSpec::moe(c.moe(at("block_sparse_moe"))),
        )
    };
    Ok(Architecture {
        left_over: keys::LEFT_OVER,
        ..frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect())
    })
}
