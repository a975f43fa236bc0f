//! Latent attention in its expanded form.
//!
//! The cache holds the expanded keys and values of each head. This needs more memory than the latent, but it computes
//! the result differently from absorbed kernels.

use candle_core::Tensor;

use super::layers::{KvCache, Linear, Norm, Rotation, to_slice, to_tensor};
use crate::Result;
use crate::checkpoint::{Checkpoint, KvBSplit};
use crate::ops::{Attention, attention};
use crate::plan::{MlaPlan, MlaProjections};

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
    /// The rotation of q_pe and k_pe.
    rotation: Rotation,
}

#[derive(Debug)]
enum QueryProjection {
    Plain(Linear),
    LowRank { q_a_proj: Linear, q_a_layernorm: Norm, q_b_proj: Linear },
}

impl Mla {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        (plan, hidden): (&MlaPlan, usize),
        split: KvBSplit,
    ) -> Result<Self> {
        let MlaProjections { n_heads, qk_nope_head_dim, v_head_dim, kv_lora_rank: rank } = plan.sizes;
        let (pe, eps) = (plan.qk_rope_head_dim, plan.eps);
        let at = |part: &str| format!("{path}.{part}");
        let linear = |part: &str, out, input| Linear::load(checkpoint, &at(part), out, input);
        let n_q = n_heads * (qk_nope_head_dim + pe);
        let q = match plan.q_lora_rank {
            None => QueryProjection::Plain(linear("q_proj", n_q, hidden)?),
            Some(q_rank) => QueryProjection::LowRank {
                q_a_proj: linear("q_a_proj", q_rank, hidden)?,
                q_a_layernorm: Norm::load(checkpoint, &at("q_a_layernorm"), q_rank, eps)?,
                q_b_proj: linear("q_b_proj", n_q, q_rank)?,
            },
        };
        let (embed_q, unembed_out) = checkpoint.mla_projections(path, plan.sizes, split)?;
        Ok(Self {
            q,
            kv_a_proj_with_mqa: linear("kv_a_proj_with_mqa", rank + pe, hidden)?,
            kv_a_layernorm: Norm::load(checkpoint, &at("kv_a_layernorm"), rank, eps)?,
            embed_q,
            unembed_out,
            o_proj: linear("o_proj", hidden, n_heads * v_head_dim)?,
            sizes: plan.sizes,
            scale: plan.scale,
            rotation: Rotation { head_dim: pe, plan: plan.rope.clone() },
        })
    }

    pub(super) fn forward(&self, x: &Tensor, positions: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let MlaProjections { n_heads, qk_nope_head_dim: nope, v_head_dim, kv_lora_rank: rank } = self.sizes;
        let (n_tokens, pe) = (positions.len(), self.rotation.head_dim);
        let rotate = |x: &Tensor, n_heads| -> Result<Tensor> {
            let rotated = self.rotation.apply(&to_slice(x)?, positions, n_heads);
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
