//! `glm4_moe_lite`: GLM-4.7-Flash and its family.

use zmlx_kernels::{Backend, NoauxTc, Renormalize, Rope, RopePairing};
use zmlx_moe::{MoeBlock, Router};

use crate::attention::{Attention, Mla, QueryProjection};
use crate::config::Glm4MoeLiteConfig;
use crate::decoder::{FeedForward, Layer};
use crate::loader::Loader;
use crate::{KvBDims, Result};

/// Layer `layer_idx`.
pub(crate) fn layer<B: Backend>(
    loader: &mut Loader<'_, B>,
    c: &Glm4MoeLiteConfig,
    layer_idx: usize,
) -> Result<Layer<B::Weight>> {
    let path = format!("model.layers.{layer_idx}");
    let feed_forward = if c.is_moe_layer(layer_idx) {
        FeedForward::Moe(moe(loader, c, layer_idx)?)
    } else {
        FeedForward::Dense(loader.mlp(&format!("{path}.mlp"), c.intermediate_size, c.hidden_size)?)
    };
    Ok(Layer {
        input_norm: loader.vector(&format!("{path}.input_layernorm.weight"), c.hidden_size)?,
        attention: Attention::Mla(attention(loader, c, &format!("{path}.self_attn"))?),
        post_norm: loader.vector(&format!("{path}.post_attention_layernorm.weight"), c.hidden_size)?,
        feed_forward,
    })
}

/// The experts of layer `layer_idx`.
pub(crate) fn moe<B: Backend>(
    loader: &mut Loader<'_, B>,
    c: &Glm4MoeLiteConfig,
    layer_idx: usize,
) -> Result<MoeBlock<B::Weight>> {
    let path = format!("model.layers.{layer_idx}.mlp");
    let (hidden, inter) = (c.hidden_size, c.moe_intermediate_size);
    let settings = NoauxTc {
        top_k: c.num_experts_per_tok,
        n_group: c.n_group,
        topk_group: c.topk_group,
        renormalize: if c.norm_topk_prob { Renormalize::Yes } else { Renormalize::No },
        routed_scaling_factor: c.routed_scaling_factor as f32,
    };
    let shared_inter = c.n_shared_experts * inter;
    Ok(MoeBlock {
        router: Router::NoauxTc {
            gate: loader.matrix(&format!("{path}.gate"), c.n_routed_experts, hidden)?,
            bias: loader.vector(&format!("{path}.gate.e_score_correction_bias"), c.n_routed_experts)?,
            settings,
        },
        experts: loader.experts(&path, [c.n_routed_experts, inter, hidden])?,
        shared: match shared_inter {
            0 => None,
            _ => Some(loader.mlp(&format!("{path}.shared_experts"), shared_inter, hidden)?),
        },
    })
}

fn attention<B: Backend>(
    loader: &mut Loader<'_, B>,
    c: &Glm4MoeLiteConfig,
    path: &str,
) -> Result<Mla<B::Weight>> {
    let n_heads = c.num_attention_heads;
    let (rank, rope_dim) = (c.kv_lora_rank, c.qk_rope_head_dim);
    let q_width = n_heads * c.qk_head_dim();
    let q = match c.q_lora_rank {
        None => QueryProjection::Direct(loader.matrix(&format!("{path}.q_proj"), q_width, c.hidden_size)?),
        Some(q_rank) => QueryProjection::LowRank {
            a: loader.matrix(&format!("{path}.q_a_proj"), q_rank, c.hidden_size)?,
            norm: loader.vector(&format!("{path}.q_a_layernorm.weight"), q_rank)?,
            b: loader.matrix(&format!("{path}.q_b_proj"), q_width, q_rank)?,
        },
    };
    let old_layout = format!("{path}.kv_b_proj");
    let (embed_q, unembed_out) = if loader.reader.contains(&format!("{old_layout}.weight")) {
        let dims = KvBDims {
            n_heads,
            qk_nope_head_dim: c.qk_nope_head_dim,
            v_head_dim: c.v_head_dim,
            kv_lora_rank: rank,
        };
        loader.reader.kv_b_proj(&old_layout, dims)
    } else {
        (
            loader.reader.heads(&format!("{path}.embed_q"), n_heads, rank, c.qk_nope_head_dim),
            loader.reader.heads(&format!("{path}.unembed_out"), n_heads, c.v_head_dim, rank),
        )
    };
    Ok(Mla {
        n_heads,
        nope_dim: c.qk_nope_head_dim,
        rope_dim,
        v_dim: c.v_head_dim,
        rank,
        rope: Rope { dims: rope_dim, theta: c.rope_theta as f32, pairing: RopePairing::Interleaved },
        eps: c.rms_norm_eps as f32,
        scale: c.attention_scale as f32,
        q,
        kv_a: loader.matrix(&format!("{path}.kv_a_proj_with_mqa"), rank + rope_dim, c.hidden_size)?,
        kv_norm: loader.vector(&format!("{path}.kv_a_layernorm.weight"), rank)?,
        embed_q: loader.upload(embed_q)?,
        unembed_out: loader.upload(unembed_out)?,
        o: loader.matrix(&format!("{path}.o_proj"), c.hidden_size, n_heads * c.v_head_dim)?,
    })
}
