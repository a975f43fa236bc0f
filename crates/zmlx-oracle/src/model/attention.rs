//! The attention modules: grouped-query with normed heads, and latent in its expanded form.
//!
//! Both end in [`crate::ops::attention`] over cached keys and values. Latent attention caches the expanded keys and
//! values of each head: more memory than the latent, but a different way to the result than absorbed kernels take.

use candle_core::Tensor;

use super::layers::{Linear, Norm, to_f32, to_slice, to_tensor};
use crate::Result;
use crate::checkpoint::{
    Checkpoint, Glm4MoeLiteConfig, KvBSplit, MlaProjections, ModelConfig, Qwen3MoeConfig,
};
use crate::ops::{Attention, Rope, RopeLayout, attention, rope};

/// Keys `[n_kv, n_kv_heads, head_dim]` and values `[n_kv, n_kv_heads, v_head_dim]`.
#[derive(Debug, Default)]
pub(super) struct KvCache {
    k: Vec<f32>,
    v: Vec<f32>,
}

/// An attention module of either kind.
#[derive(Debug)]
pub(super) enum AttentionLayer {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
}

impl AttentionLayer {
    pub(super) fn load(checkpoint: &Checkpoint, path: &str, split: KvBSplit) -> Result<Self> {
        Ok(match checkpoint.config() {
            ModelConfig::Qwen3Moe(config) => Self::Gqa(Box::new(Gqa::load(checkpoint, path, config)?)),
            ModelConfig::Glm4MoeLite(config) => {
                Self::Mla(Box::new(Mla::load(checkpoint, path, config, split)?))
            }
        })
    }

    /// `x [n_tokens, hidden]`, already normed, → `[n_tokens, hidden]`; the cache grows by `n_tokens`.
    pub(super) fn forward(&self, x: &Tensor, positions: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        match self {
            Self::Gqa(gqa) => gqa.forward(x, positions, cache),
            Self::Mla(mla) => mla.forward(x, positions, cache),
        }
    }
}

/// Grouped-query attention of `qwen3_moe`:
/// ```text
/// q = rope(rms_norm(q_proj(x)));  k = rope(rms_norm(k_proj(x)));  v = v_proj(x)      norms per head
/// y = o_proj(attention(q, k, v))
/// ```
#[derive(Debug)]
pub(super) struct Gqa {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Norm,
    k_norm: Norm,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    rope: Rope,
}

impl Gqa {
    fn load(checkpoint: &Checkpoint, path: &str, config: &Qwen3MoeConfig) -> Result<Self> {
        let (hidden, head_dim, eps) = (config.hidden_size, config.head_dim(), config.rms_norm_eps);
        let (n_heads, n_kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let at = |part: &str| format!("{path}.{part}");
        let linear = |part: &str, out, input| Linear::load(checkpoint, &at(part), out, input);
        Ok(Self {
            q_proj: linear("q_proj", n_heads * head_dim, hidden)?,
            k_proj: linear("k_proj", n_kv_heads * head_dim, hidden)?,
            v_proj: linear("v_proj", n_kv_heads * head_dim, hidden)?,
            o_proj: linear("o_proj", hidden, n_heads * head_dim)?,
            q_norm: Norm::load(checkpoint, &at("q_norm"), head_dim, eps)?,
            k_norm: Norm::load(checkpoint, &at("k_norm"), head_dim, eps)?,
            n_heads,
            n_kv_heads,
            head_dim,
            rope: Rope {
                n_tokens: 0,
                n_heads: 0,
                head_dim,
                n_rot: head_dim,
                theta: config.rope.theta()?,
                position_scale: config.rope.position_scale()?,
                layout: RopeLayout::HalfSplit,
            },
        })
    }

    fn forward(&self, x: &Tensor, positions: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let Self { n_heads, n_kv_heads, head_dim, .. } = *self;
        let n_tokens = positions.len();
        let sizes = |n_heads| Rope { n_tokens, n_heads, ..self.rope };
        let q = self.q_norm.rows(&to_slice(&self.q_proj.forward(x)?)?);
        let k = self.k_norm.rows(&to_slice(&self.k_proj.forward(x)?)?);
        let q = rope(&q, positions, sizes(n_heads));
        cache.k.extend(to_f32(&rope(&k, positions, sizes(n_kv_heads))));
        cache.v.extend(to_slice(&self.v_proj.forward(x)?)?);
        let sizes = Attention {
            n_tokens,
            n_kv: cache.k.len() / (n_kv_heads * head_dim),
            n_heads,
            n_kv_heads,
            head_dim,
            v_head_dim: head_dim,
            scale: 1.0 / (head_dim as f64).sqrt(),
        };
        let y = attention(&q, &cache.k, &cache.v, sizes);
        self.o_proj.forward(&to_tensor(&y, &[n_tokens, n_heads * head_dim])?)
    }
}

/// Latent attention of `glm4_moe_lite`:
/// ```text
/// q = q_b_proj(rms_norm(q_a_proj(x))), or q_proj(x)      → heads × (q_nope | q_pe)
/// ckv | k_pe = kv_a_proj_with_mqa(x);  kv = rms_norm(ckv);  rope on q_pe and k_pe
/// k = (kv · embed_q) | k_pe;  v = unembed_out · kv       for every head
/// y = o_proj(attention(q, k, v))
/// ```
#[derive(Debug)]
pub(super) struct Mla {
    q: QueryProjection,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: Norm,
    /// `[n_heads, kv_lora_rank, qk_nope_head_dim]`
    embed_q: Tensor,
    /// `[n_heads, v_head_dim, kv_lora_rank]`
    unembed_out: Tensor,
    o_proj: Linear,
    sizes: MlaProjections,
    scale: f64,
    /// For q_pe and k_pe; `head_dim` is `qk_rope_head_dim`.
    rope: Rope,
}

#[derive(Debug)]
enum QueryProjection {
    Plain(Linear),
    LowRank { q_a_proj: Linear, q_a_layernorm: Norm, q_b_proj: Linear },
}

impl Mla {
    fn load(
        checkpoint: &Checkpoint,
        path: &str,
        config: &Glm4MoeLiteConfig,
        split: KvBSplit,
    ) -> Result<Self> {
        let (hidden, rank, eps) = (config.hidden_size, config.kv_lora_rank, config.rms_norm_eps);
        let (n_heads, pe, v_head_dim) =
            (config.num_attention_heads, config.qk_rope_head_dim, config.v_head_dim);
        let at = |part: &str| format!("{path}.{part}");
        let linear = |part: &str, out, input| Linear::load(checkpoint, &at(part), out, input);
        let n_q = n_heads * (config.qk_nope_head_dim + pe);
        let q = match config.q_lora_rank {
            None => QueryProjection::Plain(linear("q_proj", n_q, hidden)?),
            Some(q_rank) => QueryProjection::LowRank {
                q_a_proj: linear("q_a_proj", q_rank, hidden)?,
                q_a_layernorm: Norm::load(checkpoint, &at("q_a_layernorm"), q_rank, eps)?,
                q_b_proj: linear("q_b_proj", n_q, q_rank)?,
            },
        };
        let sizes = MlaProjections {
            n_heads,
            qk_nope_head_dim: config.qk_nope_head_dim,
            v_head_dim,
            kv_lora_rank: rank,
        };
        let (embed_q, unembed_out) = checkpoint.mla_projections(path, sizes, split)?;
        Ok(Self {
            q,
            kv_a_proj_with_mqa: linear("kv_a_proj_with_mqa", rank + pe, hidden)?,
            kv_a_layernorm: Norm::load(checkpoint, &at("kv_a_layernorm"), rank, eps)?,
            embed_q,
            unembed_out,
            o_proj: linear("o_proj", hidden, n_heads * v_head_dim)?,
            sizes,
            scale: config.attention_scale(),
            rope: Rope {
                n_tokens: 0,
                n_heads: 0,
                head_dim: pe,
                n_rot: pe,
                theta: config.rope.theta()?,
                position_scale: config.rope.position_scale()?,
                layout: RopeLayout::Interleaved,
            },
        })
    }

    fn forward(&self, x: &Tensor, positions: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let MlaProjections { n_heads, qk_nope_head_dim: nope, v_head_dim, kv_lora_rank: rank } = self.sizes;
        let (n_tokens, pe) = (positions.len(), self.rope.head_dim);
        let rotate = |x: &Tensor, n_heads| -> Result<Tensor> {
            let rotated = rope(&to_slice(x)?, positions, Rope { n_tokens, n_heads, ..self.rope });
            to_tensor(&rotated, &[n_tokens, n_heads, pe])
        };
        let q = match &self.q {
            QueryProjection::Plain(q_proj) => q_proj.forward(x)?,
            QueryProjection::LowRank { q_a_proj, q_a_layernorm, q_b_proj } => {
                q_b_proj.forward(&q_a_layernorm.forward(&q_a_proj.forward(x)?)?)?
            }
        };
        let q = q.reshape((n_tokens, n_heads, nope + pe))?;
        let q = Tensor::cat(&[q.narrow(2, 0, nope)?, rotate(&q.narrow(2, nope, pe)?, n_heads)?], 2)?;
        let ckv_pe = self.kv_a_proj_with_mqa.forward(x)?;
        let k_pe = rotate(&ckv_pe.narrow(1, rank, pe)?, 1)?.repeat((1, n_heads, 1))?;
        let kv = self.kv_a_layernorm.forward(&ckv_pe.narrow(1, 0, rank)?)?;
        let kv = kv.unsqueeze(0)?.repeat((n_heads, 1, 1))?;
        let k_nope = kv.matmul(&self.embed_q)?.transpose(0, 1)?;
        let v = kv.matmul(&self.unembed_out.transpose(1, 2)?)?.transpose(0, 1)?;
        cache.k.extend(to_slice(&Tensor::cat(&[k_nope, k_pe], 2)?)?);
        cache.v.extend(to_slice(&v)?);
        let sizes = Attention {
            n_tokens,
            n_kv: cache.k.len() / (n_heads * (nope + pe)),
            n_heads,
            n_kv_heads: n_heads,
            head_dim: nope + pe,
            v_head_dim,
            scale: self.scale,
        };
        let y = attention(&to_slice(&q)?, &cache.k, &cache.v, sizes);
        self.o_proj.forward(&to_tensor(&y, &[n_tokens, n_heads * v_head_dim])?)
    }
}
