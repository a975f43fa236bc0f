//! Grouped-query attention.

use std::ops::Range;

use zmlx_kernels::{AttentionInputs, AttentionSettings, Backend, Fusion, NormRope, Result, Rope};

use super::Rows;
use crate::linear::Linear;

/// `o( attend( rope(norm(q(x))), rope(norm(k(x))), norm(v(x)) ) )`; each norm is optional. With an output gate:
/// `o( attend(…) · sigmoid(gate) )`.
#[derive(Debug)]
pub(crate) struct Gqa<W> {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rope: Rope,
    pub(crate) eps: f32,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    /// `[n_heads · head_dim, hidden]`. With an output gate it has twice as many rows: for each head its queries, then
    /// its gates.
    pub(crate) q: Linear<W>,
    pub(crate) output_gate: bool,
    /// `[n_kv_heads · head_dim, hidden]`.
    pub(crate) k: Linear<W>,
    /// `[n_kv_heads · head_dim, hidden]`. Without it, the values are the results of `k`.
    pub(crate) v: Option<Linear<W>>,
    /// The rows of q, k and v, for the fused product.
    pub(crate) qkv: W,
    /// `[hidden, n_heads · head_dim]`.
    pub(crate) o: Linear<W>,
    pub(crate) q_norm: Option<HeadNorm<W>>,
    pub(crate) k_norm: Option<HeadNorm<W>>,
    /// Ones, `[head_dim]`, if values are normed.
    pub(crate) v_norm: Option<W>,
    /// `[n_heads]`.
    pub(crate) sinks: Option<W>,
}

/// Queries, keys and, if the layer projects them, values.
type Projected<T> = (T, T, Option<T>);

/// A norm of queries or keys, before rope.
#[derive(Debug)]
pub(crate) enum HeadNorm<W> {
    /// Each head is normed on its own, `[head_dim]`.
    Each(W),
    /// All heads are normed at once.
    All {
        /// `[n]`.
        weight: W,
        /// Values of all heads of all ranks.
        n: usize,
        /// Those that this rank has.
        own: Range<usize>,
    },
}

impl<W> Gqa<W> {
    /// Number of rows of `q` for each head.
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
        let y_width = self.n_heads * self.head_dim;
        let (q, k, v) = self.project(b, x, fusion)?;
        let k = self.k.add_bias(b, k)?;
        let v = match (&self.v, v) {
            (Some(linear), Some(v)) => linear.add_bias(b, v)?,
            _ => k.clone(),
        };
        let (q, gate) = self.queries(b, self.q.add_bias(b, q)?)?;
        let (q, k) = self.rotated(b, [q, k], step, fusion)?;
        let mut v = self.heads(b, v, self.n_kv_heads, None)?;
        if let Some(ones) = &self.v_norm {
            v = b.rms_norm(&v, ones, self.eps)?;
        }
        let settings = AttentionSettings { scale: self.scale, window: self.window };
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, sinks: self.sinks.as_ref() };
        let y = b.attention(inputs, cache, step, &settings)?;
        let mut y = rows.of(b, b.reshape(&y, &[n_tokens, y_width])?, step)?;
        if let Some(gate) = gate {
            let gate = rows.of(b, b.reshape(&gate, &[n_tokens, y_width])?, step)?;
            y = b.mul_sigmoid(&y, &gate)?;
        }
        self.o.forward(b, &y)
    }

    /// The queries, keys and, if the layer projects them, values of all heads, without biases.
    fn project<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        fusion: &Fusion,
    ) -> Result<Projected<B::Tensor>> {
        if !fusion.qkv.is_on() {
            let v = self.v.as_ref().map(|v| b.linear(x, &v.weight)).transpose()?;
            return Ok((b.linear(x, &self.q.weight)?, b.linear(x, &self.k.weight)?, v));
        }
        let (q_width, kv_width) = (self.n_heads * self.query_dim(), self.n_kv_heads * self.head_dim);
        if self.v.is_some() {
            let [q, k, v] = b.linear_parts(x, &self.qkv, [q_width, kv_width, kv_width])?;
            return Ok((q, k, Some(v)));
        }
        let [q, k] = b.linear_parts(x, &self.qkv, [q_width, kv_width])?;
        Ok((q, k, None))
    }

    /// The queries and, if there is an output gate, the gates: `[n, n_heads · head_dim]` each.
    fn queries<B: Backend<Weight = W>>(&self, b: &B, q: B::Tensor) -> Result<(B::Tensor, Option<B::Tensor>)> {
        if !self.output_gate {
            return Ok((q, None));
        }
        let n_tokens = b.shape(&q).first().copied().unwrap_or(0);
        let both = b.reshape(&q, &[n_tokens, self.n_heads, self.query_dim()])?;
        let [q, gate] = [0..self.head_dim, self.head_dim..2 * self.head_dim]
            .map(|part| b.reshape(&b.slice_last(&both, part)?, &[n_tokens, self.n_heads * self.head_dim]));
        Ok((q?, Some(gate?)))
    }

    /// Queries and keys as heads, normed and rotated.
    fn rotated<B: Backend<Weight = W>>(
        &self,
        b: &B,
        [q, k]: [B::Tensor; 2],
        step: &B::Step,
        fusion: &Fusion,
    ) -> Result<(B::Tensor, B::Tensor)> {
        if let (Some(HeadNorm::Each(q_norm)), Some(HeadNorm::Each(k_norm))) = (&self.q_norm, &self.k_norm)
            && fusion.qkv.is_on()
        {
            let q = &self.heads(b, q, self.n_heads, None)?;
            let k = &self.heads(b, k, self.n_kv_heads, None)?;
            return b.norm_rope(NormRope { q, k, q_norm, k_norm, eps: self.eps }, step, &self.rope);
        }
        let q = self.heads(b, q, self.n_heads, self.q_norm.as_ref())?;
        let k = self.heads(b, k, self.n_kv_heads, self.k_norm.as_ref())?;
        Ok((b.rope(&q, step, &self.rope)?, b.rope(&k, step, &self.rope)?))
    }

    /// Splits `[n, n_heads · head_dim]` into heads and norms them.
    fn heads<B: Backend<Weight = W>>(
        &self,
        b: &B,
        mut x: B::Tensor,
        n_heads: usize,
        norm: Option<&HeadNorm<W>>,
    ) -> Result<B::Tensor> {
        if let Some(HeadNorm::All { weight, n, own }) = norm {
            let is_whole = own.len() == *n;
            if !is_whole {
                x = b.gather_columns(x, own.len(), *n)?;
            }
            x = b.rms_norm(&x, weight, self.eps)?;
            if !is_whole {
                x = b.slice_last(&x, own.clone())?;
            }
        }
        let n_tokens = b.shape(&x).first().copied().unwrap_or(0);
        let x = b.reshape(&x, &[n_tokens, n_heads, self.head_dim])?;
        match norm {
            Some(HeadNorm::Each(weight)) => b.rms_norm(&x, weight, self.eps),
            _ => Ok(x),
        }
    }
}
