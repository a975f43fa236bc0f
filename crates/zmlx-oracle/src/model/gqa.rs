//! Grouped-query attention.

use candle_core::Tensor;

use super::layers::{KvCache, Linear, Norm, Rotation, to_f32, to_slice, to_tensor};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::{Attention, attention, mul_sigmoid};
use crate::plan::GqaPlan;

/// ```text
/// q = rope(rms_norm(q_proj(x)));  k = rope(rms_norm(k_proj(x)));  v = v_proj(x)      norms per head, if any
/// y = o_proj(attention(q, k, v)), with an output gate of y · sigmoid(gate)
/// ```
#[derive(Debug)]
pub(super) struct Gqa {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    output_gate: bool,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    rotation: Rotation,
}

impl Gqa {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        (plan, hidden, eps): (&GqaPlan, usize, f64),
    ) -> Result<Self> {
        let GqaPlan { n_heads, n_kv_heads, head_dim, qk_norm, output_gate, .. } = *plan;
        let per_query = if output_gate { 2 } else { 1 };
        let at = |part: &str| format!("{path}.{part}");
        let linear = |part: &str, out, input| Linear::load(checkpoint, &at(part), out, input);
        let norm = |part: &str| -> Result<Option<Norm>> {
            qk_norm.then(|| Norm::load(checkpoint, &at(part), head_dim, eps)).transpose()
        };
        Ok(Self {
            q_proj: linear("q_proj", per_query * n_heads * head_dim, hidden)?,
            k_proj: linear("k_proj", n_kv_heads * head_dim, hidden)?,
            v_proj: linear("v_proj", n_kv_heads * head_dim, hidden)?,
            o_proj: linear("o_proj", hidden, n_heads * head_dim)?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            output_gate,
            n_heads,
            n_kv_heads,
            head_dim,
            rotation: Rotation { head_dim, plan: plan.rope.clone() },
        })
    }

    pub(super) fn forward(&self, x: &Tensor, positions: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let Self { n_heads, n_kv_heads, head_dim, .. } = *self;
        let n_tokens = positions.len();
        let normed = |x: Tensor, norm: &Option<Norm>| -> Result<Vec<f64>> {
            let x = to_slice(&x)?;
            Ok(norm.as_ref().map_or_else(|| x.iter().map(|&x| x.into()).collect(), |norm| norm.rows(&x)))
        };
        let q = self.q_proj.forward(x)?;
        let (q, gate) = if self.output_gate {
            let both = q.reshape((n_tokens * n_heads, 2 * head_dim))?;
            let part = |first: usize| both.narrow(1, first, head_dim)?.contiguous();
            (part(0)?, Some(to_slice(&part(head_dim)?)?))
        } else {
            (q, None)
        };
        let q = normed(q, &self.q_norm)?;
        let k = normed(self.k_proj.forward(x)?, &self.k_norm)?;
        let q = self.rotation.apply(&q, positions, n_heads);
        cache.k.extend(to_f32(&self.rotation.apply(&k, positions, n_kv_heads)));
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
        let y = gate.map_or_else(|| y.clone(), |gate| mul_sigmoid(&y, &gate));
        self.o_proj.forward(&to_tensor(&y, &[n_tokens, n_heads * head_dim])?)
    }
}
