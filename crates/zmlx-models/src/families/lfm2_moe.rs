//! `lfm2_moe`: LFM2-8B-A1B, LFM2-24B-A2B, LFM2.5-8B-A1B. They have short convolutions between layers of grouped-query
//! attention, and a router without auxiliary loss.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{NoauxTc, Rope, RopePairing};

use super::keys::{self, Frame, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{
    Architecture, ConvSpec, ExpertsSpec, FeedForwardSpec, GqaSpec, LayerExtras, LayerSpec, LinearSpec,
    MatrixSpec, MixerSpec, MlpSpec, MoeSpec, RouterSpec, ShortConvSpec, Storage, VectorSpec,
};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "lfm2_moe";

/// An upper bound of the taps of a convolution.
const MAX_KERNEL: usize = 1024;

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    layer_types: Vec<&'static str>,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(rename = "conv_L_cache")]
    conv_l_cache: usize,
    conv_bias: bool,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    num_dense_layers: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
    use_expert_bias: bool,
    routed_scaling_factor: f64,
    norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    max_position_embeddings: usize,
}

const ATTENTION: &str = "full_attention";
const CONV: &str = "conv";

/// The kind of each layer: `layer_types`, or attention at `full_attn_idxs`.
fn layer_types(f: &Fields<'_>, n_layers: usize) -> Result<Vec<&'static str>> {
    const KEY: &str = "layer_types";
    let Some(types) = f.get(KEY) else {
        let attention = f.counts("full_attn_idxs")?;
        return Ok((0..n_layers).map(|i| if attention.contains(&i) { ATTENTION } else { CONV }).collect());
    };
    let kind = |v: &Value| [ATTENTION, CONV].into_iter().find(|kind| v.as_str() == Some(*kind));
    let kinds = types.as_array().and_then(|types| types.iter().map(kind).collect::<Option<Vec<_>>>());
    let want = format!("{n_layers} of {CONV:?} and {ATTENTION:?}");
    kinds
        .filter(|kinds| kinds.len() == n_layers)
        .ok_or_else(|| f.wrong(KEY, want, crate::config::short(types)))
}

impl Config {
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>) -> Result<Self> {
        rope.whole_heads()?;
        let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
        let (hidden_size, num_hidden_layers) = (f.dim("hidden_size")?, keys::n_layers(f)?);
        let want = format!("an even multiple of the {num_attention_heads} heads");
        let fits = hidden_size.is_multiple_of(2 * num_attention_heads);
        f.ensure(fits, "hidden_size", want, hidden_size)?;
        let num_experts = f.dim("num_experts")?;
        let num_experts_per_tok = keys::top_k(f, ("num_experts", num_experts))?;
        let norm_topk_prob = f.bool_or("norm_topk_prob", true)?;
        // A single score would be divided by itself.
        let want = "at least two, whose scores are divided by their sum";
        f.ensure(
            num_experts_per_tok > 1 || !norm_topk_prob,
            "num_experts_per_tok",
            want,
            num_experts_per_tok,
        )?;
        let conv_l_cache = f.dim("conv_L_cache")?;
        let want = format!("a whole number from 2 to {MAX_KERNEL}");
        f.ensure((2..=MAX_KERNEL).contains(&conv_l_cache), "conv_L_cache", want, conv_l_cache)?;
        Ok(Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size,
            num_hidden_layers,
            layer_types: layer_types(f, num_hidden_layers)?,
            num_attention_heads,
            num_key_value_heads,
            conv_l_cache,
            conv_bias: f.bool_or("conv_bias", false)?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            num_dense_layers: f.count("num_dense_layers")?,
            num_experts,
            num_experts_per_tok,
            norm_topk_prob,
            use_expert_bias: f.bool_or("use_expert_bias", true)?,
            routed_scaling_factor: f.positive_or("routed_scaling_factor", 1.0)?,
            norm_eps: f.positive("norm_eps")?,
            rope_theta: rope.theta(Some(1e6))?,
            rope_scaling: rope.scaling(),
            max_position_embeddings: f.dim("max_position_embeddings")?,
        })
    }

    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn attention(&self, path: &str, rope: &Rope) -> GqaSpec {
        let (hidden, head_dim) = (self.hidden_size, self.head_dim());
        let linear = |name: &str, n_out| LinearSpec::new(format!("{path}.{name}"), n_out, hidden);
        let norm = |name: &str| VectorSpec::new(format!("{path}.{name}.weight"), head_dim);
        GqaSpec {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim,
            q: linear("q_proj", hidden),
            output_gate: false,
            k: linear("k_proj", self.num_key_value_heads * head_dim),
            v: Some(linear("v_proj", self.num_key_value_heads * head_dim)),
            o: linear("out_proj", hidden),
            q_norm: Some(norm("q_layernorm")),
            k_norm: Some(norm("k_layernorm")),
            norms_values: false,
            eps: self.norm_eps as f32,
            rope: rope.clone(),
            scale: (head_dim as f32).sqrt().recip(),
            window: None,
            sinks: None,
        }
    }

    fn conv(&self, path: &str) -> ShortConvSpec {
        let hidden = self.hidden_size;
        let linear = if self.conv_bias { LinearSpec::biased } else { LinearSpec::new };
        let at = |name: &str| format!("{path}.{name}");
        let bias = self.conv_bias.then(|| VectorSpec::new(at("conv.bias"), hidden));
        ShortConvSpec {
            input: linear(at("in_proj"), 3 * hidden, hidden),
            conv: ConvSpec { path: at("conv"), n_channels: hidden, kernel: self.conv_l_cache, bias },
            out: linear(at("out_proj"), hidden, hidden),
        }
    }

    fn moe(&self, path: String) -> MoeSpec {
        let (n_experts, hidden) = (self.num_experts, self.hidden_size);
        let bias = || VectorSpec::new(format!("{path}.expert_bias"), n_experts);
        let settings = NoauxTc {
            top_k: self.num_experts_per_tok,
            n_group: 1,
            topk_group: 1,
            renormalize: keys::renormalize(self.norm_topk_prob),
            eps: 1e-6,
            routed_scaling_factor: self.routed_scaling_factor as f32,
        };
        MoeSpec {
            router: RouterSpec::NoauxTc {
                gate: MatrixSpec::new(format!("{path}.gate"), n_experts, hidden).stored(Storage::EightBit),
                bias: self.use_expert_bias.then(bias),
                settings,
            },
            shared: None,
            shared_gate: None,
            experts: ExpertsSpec::swiglu(path, n_experts, [self.moe_intermediate_size, hidden]),
        }
    }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let c = Config::parse(f, &rope)?;
    let rope =
        rope.rope(RopeOf { dims: c.head_dim(), theta: c.rope_theta, pairing: RopePairing::HalfSplit })?;
    let hidden = c.hidden_size;
    let layer = |(layer_idx, kind): (usize, &&str)| {
        let at = |name: &str| format!("model.layers.{layer_idx}.{name}");
        LayerSpec {
            input_norm: VectorSpec::new(at("operator_norm.weight"), hidden),
            mixer: if *kind == ATTENTION {
                MixerSpec::Attention(c.attention(&at("self_attn"), &rope))
            } else {
                MixerSpec::ShortConv(c.conv(&at("conv")))
            },
            post_norm: VectorSpec::new(at("ffn_norm.weight"), hidden),
            feed_forward: if layer_idx < c.num_dense_layers {
                FeedForwardSpec::dense(MlpSpec::swiglu(&at("feed_forward"), c.intermediate_size, hidden))
            } else {
                FeedForwardSpec::moe(c.moe(at("feed_forward")))
            },
            extras: LayerExtras::default(),
        }
    };
    let frame = Frame {
        vocab_size: c.vocab_size,
        hidden_size: hidden,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.norm_eps,
        tie_word_embeddings: true,
    };
    Ok(Architecture {
        norm: VectorSpec::new("model.embedding_norm.weight", hidden),
        ..frame.around(MODEL_TYPE, &c, c.layer_types.iter().enumerate().map(layer).collect())
    })
}
