//! Grouped-query attention.

use candle_core::Tensor;

use super::layers::{KvCache, Linear, Norm, Rotation, to_f32, to_slice, to_tensor};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::{Attention, Sight, attention_with, mul_sigmoid, rms_norm};
use crate::plan::{GqaPlan, HeadNorms};

/// ```text
/// q = rope(rms_norm(q_proj(x)));  k = rope(rms_norm(k_proj(x)));  v = v_proj(x)      norms if any
/// y = o_proj(attention(q, k, v)), with an output gate of y · sigmoid(gate)
/// ```
#[derive(Debug)]
pub(super) struct Gqa {
    q_proj: Linear,
    /// `None` if keys and values are another layer's.
    k_proj: Option<Linear>,
    /// `None` if values are the raw keys.
    v_proj: Option<Linear>,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    output_gate: bool,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    rotation: Rotation,
    scale: f64,
    window: Option<usize>,
    /// One for each head; empty if there are no sinks.
    sinks: Vec<f32>,
    /// The epsilon of the norm of values; `None` if values are not normed.
    v_norm: Option<f64>,
}

impl Gqa {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        (plan, hidden, eps): (&GqaPlan, usize, f64),
    ) -> Result<Self> {
        let GqaPlan { n_heads, n_kv_heads, head_dim, qk_norm, scale, output_gate, .. } = *plan;
        let per_query = if output_gate { 2 } else { 1 };
        let at = |part: &str| format!("{path}.{part}");
        let linear = |part: &str, out, input| Linear::load(checkpoint, &at(part), out, input);
        let norm = |part: &str, n_heads: usize| -> Result<Option<Norm>> {
            let len = match qk_norm {
                HeadNorms::None => return Ok(None),
                HeadNorms::Each => head_dim,
                HeadNorms::All => n_heads * head_dim,
            };
            Norm::load(checkpoint, &at(part), len, eps).map(Some)
        };
        let own = plan.shares.is_none();
        Ok(Self {
            q_proj: linear("q_proj", per_query * n_heads * head_dim, hidden)?,
            k_proj: own.then(|| linear("k_proj", n_kv_heads * head_dim, hidden)).transpose()?,
            v_proj: (own && !plan.k_is_v)
                .then(|| linear("v_proj", n_kv_heads * head_dim, hidden))
                .transpose()?,
            o_proj: linear("o_proj", hidden, n_heads * head_dim)?,
            q_norm: norm("q_norm", n_heads)?,
            k_norm: if own { norm("k_norm", n_kv_heads)? } else { None },
            output_gate,
            n_heads,
            n_kv_heads,
            head_dim,
            rotation: Rotation { head_dim, plan: plan.rope.clone() },
            scale,
            window: plan.window,
            v_norm: plan.v_norm.then_some(eps),
            sinks: if plan.sinks { checkpoint.floats(&at("sinks"), &[n_heads])? } else { Vec::new() },
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
        let q = self.rotation.apply(&q, positions, n_heads);
        if let Some(k_proj) = &self.k_proj {
            let raw = k_proj.forward(x)?;
            let k = normed(raw.clone(), &self.k_norm)?;
            cache.k.extend(to_f32(&self.rotation.apply(&k, positions, n_kv_heads)));
            let v = self.v_proj.as_ref().map_or(Ok(raw), |v_proj| v_proj.forward(x))?;
            let mut v = to_slice(&v)?;
            if let Some(eps) = self.v_norm {
                v = to_f32(&rms_norm(&v, &vec![1.0f32; head_dim], eps));
            }
            cache.v.extend(v);
        }
        let sizes = Attention {
            n_tokens,
            n_kv: cache.k.len() / (n_kv_heads * head_dim),
            n_heads,
            n_kv_heads,
            head_dim,
            v_head_dim: head_dim,
            scale: self.scale,
        };
        let sight = Sight { window: self.window, sinks: &self.sinks };
        let y = attention_with(&q, &cache.k, &cache.v, sizes, sight);
        let y = gate.map_or_else(|| y.clone(), |gate| mul_sigmoid(&y, &gate));
        self.o_proj.forward(&to_tensor(&y, &[n_tokens, n_heads * head_dim])?)
    }
}
