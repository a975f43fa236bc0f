//! `glm4_moe_lite`: GLM-4.7-Flash. Latent attention, the router without auxiliary loss, shared experts.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{NoauxTc, RopePairing};

use super::keys::{self, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{
    Activation, Architecture, ExpertsSpec, FeedForwardSpec, HeadSpec, LayerSpec, LinearSpec, MatrixSpec,
    MixerSpec, MlaSpec, MlpSpec, MoeSpec, QuerySpec, RouterSpec, Storage, VectorSpec,
};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "glm4_moe_lite";

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// `None`: queries come from one plain `q_proj`.
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    n_routed_experts: usize,
    /// 0: no shared expert.
    n_shared_experts: usize,
    num_experts_per_tok: usize,
    n_group: usize,
    topk_group: usize,
    norm_topk_prob: bool,
    routed_scaling_factor: f64,
    first_k_dense_replace: usize,
    moe_layer_freq: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    /// What multiplies the attention scores: `(nope + rope)^-1/2`, times `mscale²` where the scaling asks for it.
    attention_scale: f64,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Config {
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>) -> Result<(Self, NoauxTc)> {
        f.only("hidden_act", "silu")?;
        f.off("attention_bias")?;
        rope.whole_heads()?;
        // The key must be there, its value may be null: a default would turn a truncated file into another model.
        let q_lora_rank = match f.get("q_lora_rank") {
            None if f.contains("q_lora_rank") => None,
            _ => Some(f.dim("q_lora_rank")?),
        };
        // Null means none; absent means the reference's 1.
        let n_shared = usize::from(!f.contains("n_shared_experts") || f.get("n_shared_experts").is_some());
        let (nope, rope_dim) = (f.dim("qk_nope_head_dim")?, keys::even_dim(f, "qk_rope_head_dim")?);
        let n_routed_experts = f.dim(f.named(&["n_routed_experts", "num_local_experts"]))?;
        let norm_topk_prob = f.bool_or("norm_topk_prob", true)?;
        let factor = f.positive_or("routed_scaling_factor", 1.8)?;
        let router = keys::noaux_tc(f, n_routed_experts, (norm_topk_prob, factor, 1e-20))?;
        let config = Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers: keys::n_layers(f)?,
            num_attention_heads: f.dim("num_attention_heads")?,
            q_lora_rank,
            kv_lora_rank: f.dim("kv_lora_rank")?,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope_dim,
            v_head_dim: f.dim("v_head_dim")?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            n_routed_experts,
            n_shared_experts: f.count_or("n_shared_experts", n_shared)?,
            num_experts_per_tok: router.top_k,
            n_group: router.n_group,
            topk_group: router.topk_group,
            norm_topk_prob,
            routed_scaling_factor: factor,
            first_k_dense_replace: f.count_or("first_k_dense_replace", 1)?,
            moe_layer_freq: f.dim_or("moe_layer_freq", 1)?,
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta: rope.theta(Some(1e6))?,
            rope_scaling: rope.scaling(),
            attention_scale: ((nope + rope_dim) as f64).powf(-0.5) * rope.score_factor()?,
            max_position_embeddings: f.dim_or("max_position_embeddings", 202_752)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        };
        Ok((config, router))
    }

    /// True if the layer has experts, false if its MLP is dense.
    fn is_moe_layer(&self, layer_idx: usize) -> bool {
        layer_idx >= self.first_k_dense_replace && layer_idx.is_multiple_of(self.moe_layer_freq)
    }

    fn moe(&self, path: String, settings: NoauxTc) -> MoeSpec {
        let (n_experts, hidden, inter) =
            (self.n_routed_experts, self.hidden_size, self.moe_intermediate_size);
        let shared_inter = self.n_shared_experts * inter;
        let gate = format!("{path}.gate");
        MoeSpec {
            router: RouterSpec::NoauxTc {
                bias: Some(VectorSpec::new(format!("{gate}.e_score_correction_bias"), n_experts)),
                gate: MatrixSpec::new(gate, n_experts, hidden).stored(Storage::Dense),
                settings,
            },
            shared_gate: None,
            shared: (shared_inter > 0)
                .then(|| MlpSpec::swiglu(&format!("{path}.shared_experts"), shared_inter, hidden)),
            experts: ExpertsSpec { path, n_experts, inter, hidden, activation: Activation::SwiGlu },
        }
    }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let (c, router) = Config::parse(f, &rope)?;
    let (theta, pairing) = (c.rope_theta, RopePairing::Interleaved);
    let rope = rope.rope(RopeOf { dims: c.qk_rope_head_dim, theta, pairing })?;
    let (hidden, n_heads, rank) = (c.hidden_size, c.num_attention_heads, c.kv_lora_rank);
    let layer = |layer_idx: usize| {
        let at = |name: &str| format!("model.layers.{layer_idx}.{name}");
        let linear = |name: &str, n_out, n_in| LinearSpec::new(at(&format!("self_attn.{name}")), n_out, n_in);
        let norm = |name: &str, len| VectorSpec::new(at(&format!("{name}.weight")), len);
        let q_width = n_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim);
        let attention = MlaSpec {
            path: at("self_attn"),
            n_heads,
            nope_dim: c.qk_nope_head_dim,
            rope_dim: c.qk_rope_head_dim,
            v_dim: c.v_head_dim,
            rank,
            q: match c.q_lora_rank {
                None => QuerySpec::Direct(linear("q_proj", q_width, hidden)),
                Some(q_rank) => QuerySpec::LowRank {
                    a: linear("q_a_proj", q_rank, hidden),
                    norm: norm("self_attn.q_a_layernorm", q_rank),
                    b: linear("q_b_proj", q_width, q_rank),
                },
            },
            kv_a: linear("kv_a_proj_with_mqa", rank + c.qk_rope_head_dim, hidden),
            kv_norm: norm("self_attn.kv_a_layernorm", rank),
            o: linear("o_proj", hidden, n_heads * c.v_head_dim),
            eps: c.rms_norm_eps as f32,
            rope: rope.clone(),
            scale: c.attention_scale as f32,
        };
        LayerSpec {
            input_norm: norm("input_layernorm", hidden),
            mixer: MixerSpec::Latent(attention),
            post_norm: norm("post_attention_layernorm", hidden),
            feed_forward: if c.is_moe_layer(layer_idx) {
                FeedForwardSpec::Moe(c.moe(at("mlp"), router))
            } else {
                FeedForwardSpec::Dense(MlpSpec::swiglu(&at("mlp"), c.intermediate_size, hidden))
            },
        }
    };
    Ok(Architecture {
        model_type: MODEL_TYPE,
        config: super::display(&c),
        vocab_size: c.vocab_size,
        hidden_size: hidden,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        embed: MatrixSpec::new("model.embed_tokens", c.vocab_size, hidden),
        layers_path: "model.layers",
        layers: (0..c.num_hidden_layers).map(layer).collect(),
        norm: VectorSpec::new("model.norm.weight", hidden),
        head: HeadSpec::lm_head(c.tie_word_embeddings, c.vocab_size, hidden),
        left_over: &["rotary_emb"],
    })
}
