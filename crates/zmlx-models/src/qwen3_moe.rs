//! `qwen3_moe`: Qwen3-30B-A3B and its family.

use zmlx_kernels::{Backend, Renormalize, Rope, RopePairing, SoftmaxTopK};
use zmlx_moe::{MoeBlock, Router};

use crate::Result;
use crate::attention::{Attention, Gqa};
use crate::config::Qwen3MoeConfig;
use crate::decoder::{FeedForward, Layer};
use crate::loader::Loader;

/// Layer `layer_idx`.
pub(crate) fn layer<B: Backend>(
    loader: &mut Loader<'_, B>,
    c: &Qwen3MoeConfig,
    layer_idx: usize,
) -> Result<Layer<B::Weight>> {
    let path = format!("model.layers.{layer_idx}");
    let hidden = c.hidden_size;
    let feed_forward = if c.is_moe_layer(layer_idx) {
        FeedForward::Moe(moe(loader, c, layer_idx)?)
    } else {
        FeedForward::Dense(loader.mlp(&format!("{path}.mlp"), c.intermediate_size, hidden)?)
    };
    Ok(Layer {
        input_norm: loader.vector(&format!("{path}.input_layernorm.weight"), hidden)?,
        attention: attention(loader, c, &format!("{path}.self_attn"))?,
        post_norm: loader.vector(&format!("{path}.post_attention_layernorm.weight"), hidden)?,
        feed_forward,
    })
}

/// The experts of layer `layer_idx`.
pub(crate) fn moe<B: Backend>(
    loader: &mut Loader<'_, B>,
    c: &Qwen3MoeConfig,
    layer_idx: usize,
) -> Result<MoeBlock<B::Weight>> {
    let path = format!("model.layers.{layer_idx}.mlp");
    let hidden = c.hidden_size;
    let renormalize = if c.norm_topk_prob { Renormalize::Yes } else { Renormalize::No };
    Ok(MoeBlock {
        router: Router::SoftmaxTopK {
            gate: loader.matrix(&format!("{path}.gate"), c.num_experts, hidden)?,
            settings: SoftmaxTopK { top_k: c.num_experts_per_tok, renormalize },
        },
        experts: loader.experts(&path, [c.num_experts, c.moe_intermediate_size, hidden])?,
        shared: None,
    })
}

fn attention<B: Backend>(
    loader: &mut Loader<'_, B>,
    c: &Qwen3MoeConfig,
    path: &str,
) -> Result<Attention<B::Weight>> {
    let (q_width, kv_width) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let q = loader.matrix(&format!("{path}.q_proj"), q_width, c.hidden_size)?;
    let k = loader.matrix(&format!("{path}.k_proj"), kv_width, c.hidden_size)?;
    let v = loader.matrix(&format!("{path}.v_proj"), kv_width, c.hidden_size)?;
    Ok(Attention::Gqa(Gqa {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        rope: Rope { dims: c.head_dim, theta: c.rope_theta as f32, pairing: RopePairing::HalfSplit },
        eps: c.rms_norm_eps as f32,
        qkv: loader.concat(&[&q, &k, &v])?,
        q,
        k,
        v,
        o: loader.matrix(&format!("{path}.o_proj"), c.hidden_size, q_width)?,
        q_norm: loader.vector(&format!("{path}.q_norm.weight"), c.head_dim)?,
        k_norm: loader.vector(&format!("{path}.k_norm.weight"), c.head_dim)?,
    }))
}
