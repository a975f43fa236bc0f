//! Grouped-query attention.

use zmlx_kernels::{AttentionInputs, AttentionSettings, Backend, Fusion, Result, Rope};

use super::Rows;
use crate::linear::Linear;

/// `o( attend( rope(norm(q(x))), rope(norm(k(x))), v(x) ) )`, the norms if there are any; with an output gate
/// `o( attend(…) · sigmoid(gate) )`.
#[derive(Debug)]
pub(crate) struct Gqa<W> {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rope: Rope,
    pub(crate) eps: f32,
    pub(crate) scale: f32,
    /// `[n_heads · head_dim, hidden]`; with an output gate twice as many rows, for each head its queries, then its gates.
    pub(crate) q: Linear<W>,
    pub(crate) output_gate: bool,
    /// `[n_kv_heads · head_dim, hidden]`.
    pub(crate) k: Linear<W>,
    /// `[n_kv_heads · head_dim, hidden]`.
    pub(crate) v: Linear<W>,
    /// The rows of q, k and v, for the fused product.
    pub(crate) qkv: W,
    /// `[hidden, n_heads · head_dim]`.
    pub(crate) o: Linear<W>,
    /// Of each head's query and key before rope, `[head_dim]`.
    pub(crate) qk_norm: Option<[W; 2]>,
}

impl<W> Gqa<W> {
    /// Rows of `q` for each head.
    pub(crate) fn query_dim(&self) -> usize {
        if self.output_gate { 2 * self.head_dim } else { self.head_dim }
    }

    pub(super) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (cache, step): (&mut B::Cache, &B::Step),
        rows: Rows,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        let n_tokens = b.n_tokens(step);
        let (y_width, kv_width) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let q_width = self.n_heads * self.query_dim();
        let [q, k, v] = if fusion.qkv.is_on() {
            let qkv = b.linear(x, &self.qkv)?;
            let (k_at, v_at) = (q_width, q_width + kv_width);
            [0..k_at, k_at..v_at, v_at..v_at + kv_width].map(|range| b.slice_last(&qkv, range))
        } else {
            [&self.q, &self.k, &self.v].map(|linear| b.linear(x, &linear.weight))
        };
        let heads = |x: B::Tensor, linear: &Linear<W>, n: usize, dim: usize| {
            b.reshape(&linear.add_bias(b, x)?, &[n_tokens, n, dim])
        };
        let mut q = heads(q?, &self.q, self.n_heads, self.query_dim())?;
        let mut k = heads(k?, &self.k, self.n_kv_heads, self.head_dim)?;
        let v = heads(v?, &self.v, self.n_kv_heads, self.head_dim)?;
        let mut gate = None;
        if self.output_gate {
            gate = Some(b.slice_last(&q, self.head_dim..2 * self.head_dim)?);
            q = b.slice_last(&q, 0..self.head_dim)?;
        }
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (q, k) = (b.rms_norm(&q, q_norm, self.eps)?, b.rms_norm(&k, k_norm, self.eps)?);
        }
        let (q, k) = (b.rope(&q, step, &self.rope)?, b.rope(&k, step, &self.rope)?);
        let settings = AttentionSettings { scale: self.scale, window: None };
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, sinks: None };
        let y = b.attention(inputs, cache, step, &settings)?;
        let mut y = rows.of(b, b.reshape(&y, &[n_tokens, y_width])?, step)?;
        if let Some(gate) = gate {
            let gate = rows.of(b, b.reshape(&gate, &[n_tokens, y_width])?, step)?;
            y = b.mul_sigmoid(&y, &gate)?;
        }
        self.o.forward(b, &y)
    }
}
