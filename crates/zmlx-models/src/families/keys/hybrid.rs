//! Qwen's models in which three of four layers are linear attention with the gated delta rule, and the others are gated
//! attention.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{DeltaDims, Rope, RopePairing, SoftmaxTopK};

use super::{Frame, RopeKeys, RopeOf, heads, n_layers, renormalize, top_k};
use crate::Result;
use crate::architecture::{
    Architecture, ConvSpec, DeltaProjections, DeltaSpec, ExpertsSpec, FeedForwardSpec, GqaSpec, LayerExtras,
    LayerSpec, LinearSpec, MatrixSpec, MixerSpec, MlpSpec, MoeSpec, RouterSpec, Storage, VectorSpec,
};
use crate::fields::Fields;

/// The largest number of taps of a convolution.
const MAX_KERNEL: usize = 1024;

/// The differences between the families.
pub(in crate::families) struct HybridFamily {
    /// The value of `model_type`.
    pub(in crate::families) model_type: &'static str,
    /// How the projections of linear attention are stored.
    pub(in crate::families) layout: DeltaLayout,
    /// The value of `norm_topk_prob` if the config does not contain it.
    pub(in crate::families) norm_topk_prob: bool,
    /// Whether `mlp_only_layers` and `decoder_sparse_step` are read.
    pub(in crate::families) sparse_keys: SparseKeys,
}

/// How the projections of linear attention are stored.
#[derive(Clone, Copy)]
pub(in crate::families) enum DeltaLayout {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b`, `in_proj_a`.
    Apart,
    /// `in_proj_qkvz` and `in_proj_ba`, with rows ordered by key head.
    ByHead,
}

/// Which keys say which layers have experts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::families) enum SparseKeys {
    /// Only `num_experts`.
    None,
    /// Also `mlp_only_layers` and `decoder_sparse_step`.
    Read,
}

/// The hyperparameters, with the names of Hugging Face.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    full_attention_interval: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    attention_bias: bool,
    partial_rotary_factor: f64,
    linear_num_key_heads: usize,
    linear_num_value_heads: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    linear_conv_kernel_dim: usize,
    /// 0 if the key is missing.
    intermediate_size: usize,
    #[serde(flatten)]
    experts: Option<ExpertKeys>,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

#[derive(Serialize)]
struct ExpertKeys {
    num_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    shared_expert_intermediate_size: usize,
    norm_topk_prob: bool,
    decoder_sparse_step: usize,
    mlp_only_layers: Vec<usize>,
}

impl ExpertKeys {
    /// Reads the config. Returns `None` if all layers are dense.
    fn parse(f: &Fields<'_>, family: &HybridFamily) -> Result<Option<Self>> {
        let num_experts = f.count_or("num_experts", 0)?;
        if num_experts == 0 {
            return Ok(None);
        }
        let reads = family.sparse_keys == SparseKeys::Read;
        let has_list = reads && f.get("mlp_only_layers").is_some();
        Ok(Some(Self {
            num_experts,
            num_experts_per_tok: top_k(f, ("num_experts", num_experts))?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            shared_expert_intermediate_size: f.dim("shared_expert_intermediate_size")?,
            norm_topk_prob: f.bool_or("norm_topk_prob", family.norm_topk_prob)?,
            decoder_sparse_step: if reads { f.dim_or("decoder_sparse_step", 1)? } else { 1 },
            mlp_only_layers: if has_list { f.counts("mlp_only_layers")? } else { Vec::new() },
        }))
    }

    fn are_in(&self, layer_idx: usize) -> bool {
        !self.mlp_only_layers.contains(&layer_idx) && (layer_idx + 1).is_multiple_of(self.decoder_sparse_step)
    }

    fn moe(&self, path: String, hidden: usize) -> MoeSpec {
        let n_experts = self.num_experts;
        let row = |name: &str, n_out| {
            MatrixSpec::new(format!("{path}.{name}"), n_out, hidden).stored(Storage::EightBit)
        };
        let settings =
            SoftmaxTopK { top_k: self.num_experts_per_tok, renormalize: renormalize(self.norm_topk_prob) };
        let shared = format!("{path}.shared_expert");
        MoeSpec {
            router: RouterSpec::SoftmaxTopK { gate: row("gate", n_experts), settings },
            shared: Some(MlpSpec::swiglu(&shared, self.shared_expert_intermediate_size, hidden)),
            shared_gate: Some(row("shared_expert_gate", 1)),
            experts: ExpertsSpec::swiglu(path, n_experts, [self.moe_intermediate_size, hidden]),
        }
    }
}

impl Config {
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>, family: &HybridFamily) -> Result<Self> {
        f.only("hidden_act", "silu")?;
        let (num_attention_heads, num_key_value_heads) = heads(f)?;
        let hidden_size = f.dim("hidden_size")?;
        Ok(Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size,
            num_hidden_layers: n_layers(f)?,
            full_attention_interval: f.dim_or("full_attention_interval", 4)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: f.dim_or("head_dim", (hidden_size / num_attention_heads).max(1))?,
            attention_bias: f.bool_or("attention_bias", false)?,
            partial_rotary_factor: rope.partial_rotary_factor()?.unwrap_or(0.25),
            linear_num_key_heads: f.dim_or("linear_num_key_heads", 16)?,
            linear_num_value_heads: f.dim_or("linear_num_value_heads", 64)?,
            linear_key_head_dim: f.dim_or("linear_key_head_dim", 192)?,
            linear_value_head_dim: f.dim_or("linear_value_head_dim", 128)?,
            linear_conv_kernel_dim: f.dim_or("linear_conv_kernel_dim", 4)?,
            intermediate_size: f.count_or("intermediate_size", 0)?,
            experts: ExpertKeys::parse(f, family)?,
            rms_norm_eps: f.positive_or("rms_norm_eps", 1e-6)?,
            rope_theta: rope.theta(Some(100_000.0))?,
            rope_scaling: rope.scaling(),
            max_position_embeddings: f.dim_or("max_position_embeddings", 131_072)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        })
    }

    /// The number of leading dimensions of each head that are rotated.
    fn n_rotated(&self, f: &Fields<'_>) -> Result<usize> {
        let n = (self.head_dim as f64 * self.partial_rotary_factor) as usize;
        let fits = n > 0 && n.is_multiple_of(2) && n <= self.head_dim;
        f.ensure(fits, "partial_rotary_factor", "an even part of head_dim", n)?;
        Ok(n)
    }

    fn delta_dims(&self, f: &Fields<'_>) -> Result<DeltaDims> {
        let (n_k_heads, n_v_heads, kernel) =
            (self.linear_num_key_heads, self.linear_num_value_heads, self.linear_conv_kernel_dim);
        let want = format!("a divisor of linear_num_value_heads = {n_v_heads}");
        f.ensure(n_v_heads.is_multiple_of(n_k_heads), "linear_num_key_heads", want, n_k_heads)?;
        let want = format!("a whole number from 2 to {MAX_KERNEL}");
        f.ensure((2..=MAX_KERNEL).contains(&kernel), "linear_conv_kernel_dim", want, kernel)?;
        let (k_dim, v_dim) = (self.linear_key_head_dim, self.linear_value_head_dim);
        Ok(DeltaDims { n_k_heads, n_v_heads, k_dim, v_dim, kernel })
    }

    fn attention(&self, path: &str, rope: &Rope) -> GqaSpec {
        let (hidden, width) = (self.hidden_size, |n_heads: usize| n_heads * self.head_dim);
        let biased = if self.attention_bias { LinearSpec::biased } else { LinearSpec::new };
        let linear = |name: &str, n_out, n_in| biased(format!("{path}.{name}"), n_out, n_in);
        let norm = |name: &str| VectorSpec::from_one(format!("{path}.{name}.weight"), self.head_dim);
        GqaSpec {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            q: linear("q_proj", 2 * width(self.num_attention_heads), hidden),
            output_gate: true,
            k: linear("k_proj", width(self.num_key_value_heads), hidden),
            v: Some(linear("v_proj", width(self.num_key_value_heads), hidden)),
            o: linear("o_proj", hidden, width(self.num_attention_heads)),
            q_norm: Some(norm("q_norm")),
            k_norm: Some(norm("k_norm")),
            norms_values: false,
            eps: self.rms_norm_eps as f32,
            rope: rope.clone(),
            scale: (self.head_dim as f32).sqrt().recip(),
            window: None,
            sinks: None,
        }
    }

    fn linear_attention(&self, path: &str, dims: DeltaDims, layout: DeltaLayout) -> DeltaSpec {
        let DeltaDims { n_k_heads, n_v_heads, k_dim, v_dim, kernel } = dims;
        let (hidden, n_channels, n_values) = (self.hidden_size, dims.n_channels(), n_v_heads * v_dim);
        let at = |name: &str| format!("{path}.{name}");
        let matrix = |name: &str, n_out| MatrixSpec::new(at(name), n_out, hidden);
        DeltaSpec {
            dims,
            projections: match layout {
                DeltaLayout::Apart => DeltaProjections::Apart {
                    qkv: matrix("in_proj_qkv", n_channels),
                    z: matrix("in_proj_z", n_values),
                    b: matrix("in_proj_b", n_v_heads),
                    a: matrix("in_proj_a", n_v_heads),
                },
                DeltaLayout::ByHead => DeltaProjections::ByHead {
                    qkvz: matrix("in_proj_qkvz", 2 * n_k_heads * k_dim + 2 * n_values),
                    ba: matrix("in_proj_ba", 2 * n_v_heads),
                },
            },
            conv: ConvSpec { path: at("conv1d"), n_channels, kernel, bias: None },
            a_log: VectorSpec::new(at("A_log"), n_v_heads),
            dt_bias: VectorSpec::new(at("dt_bias"), n_v_heads),
            norm: VectorSpec::new(at("norm.weight"), v_dim),
            eps: self.rms_norm_eps as f32,
            out: MatrixSpec::new(at("out_proj"), hidden, n_values),
        }
    }
}

/// The architecture of a model of such a family.
pub(in crate::families) fn hybrid(f: &Fields<'_>, family: &HybridFamily) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let c = Config::parse(f, &rope, family)?;
    let dims = c.delta_dims(f)?;
    let of = RopeOf { dims: c.n_rotated(f)?, theta: c.rope_theta, pairing: RopePairing::HalfSplit };
    let rope = rope.rope(of)?;
    let hidden = c.hidden_size;
    let layer = |layer_idx: usize| -> Result<LayerSpec> {
        let at = |name: &str| format!("model.layers.{layer_idx}.{name}");
        let is_full = (layer_idx + 1).is_multiple_of(c.full_attention_interval);
        let experts = c.experts.as_ref().filter(|experts| experts.are_in(layer_idx));
        Ok(LayerSpec {
            input_norm: VectorSpec::from_one(at("input_layernorm.weight"), hidden),
            mixer: if is_full {
                MixerSpec::Attention(c.attention(&at("self_attn"), &rope))
            } else {
                MixerSpec::Delta(c.linear_attention(&at("linear_attn"), dims, family.layout))
            },
            post_norm: VectorSpec::from_one(at("post_attention_layernorm.weight"), hidden),
            feed_forward: match experts {
                Some(experts) => FeedForwardSpec::moe(experts.moe(at("mlp"), hidden)),
                None => {
                    FeedForwardSpec::dense(MlpSpec::swiglu(&at("mlp"), f.dim("intermediate_size")?, hidden))
                }
            },
            extras: LayerExtras::default(),
        })
    };
    let frame = Frame {
        vocab_size: c.vocab_size,
        hidden_size: hidden,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
    };
    Ok(Architecture {
        norm: VectorSpec::from_one("model.norm.weight", hidden),
        left_over: super::LEFT_OVER,
        ..frame.around(family.model_type, &c, (0..c.num_hidden_layers).map(layer).collect::<Result<_>>()?)
    })
}
