//! Grouped-query attention with normed queries and keys.

use zmlx_kernels::{AttentionInputs, AttentionSettings, Backend, CacheKind, Fusion, Result, Rope};

use super::Rows;

/// `o( attend( rope(norm(q(x))), rope(norm(k(x))), v(x) ) )`.
#[derive(Debug)]
pub(crate) struct Gqa<W> {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rope: Rope,
    pub(crate) eps: f32,
    /// `[n_heads · head_dim, hidden]`.
    pub(crate) q: W,
    /// `[n_kv_heads · head_dim, hidden]`.
    pub(crate) k: W,
    /// `[n_kv_heads · head_dim, hidden]`.
    pub(crate) v: W,
    /// The rows of q, k and v, for the fused product.
    pub(crate) qkv: W,
    /// `[hidden, n_heads · head_dim]`.
    pub(crate) o: W,
    /// `[head_dim]`, before rope.
    pub(crate) q_norm: W,
    /// `[head_dim]`, before rope.
    pub(crate) k_norm: W,
}

impl<W> Gqa<W> {
    pub(super) fn cache_kind(&self) -> CacheKind {
        CacheKind::Full { n_kv_heads: self.n_kv_heads, head_dim: self.head_dim }
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
        let (q_width, kv_width) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let [q, k, v] = if fusion.qkv.is_on() {
            let qkv = b.linear(x, &self.qkv)?;
            let (k_at, v_at) = (q_width, q_width + kv_width);
            [0..k_at, k_at..v_at, v_at..v_at + kv_width].map(|range| b.slice_last(&qkv, range))
        } else {
            [&self.q, &self.k, &self.v].map(|w| b.linear(x, w))
        };
        let heads = |x: B::Tensor, n: usize| b.reshape(&x, &[n_tokens, n, self.head_dim]);
        let (q, k, v) = (heads(q?, self.n_heads)?, heads(k?, self.n_kv_heads)?, heads(v?, self.n_kv_heads)?);
        let q = b.rope(&b.rms_norm(&q, &self.q_norm, self.eps)?, step, &self.rope)?;
        let k = b.rope(&b.rms_norm(&k, &self.k_norm, self.eps)?, step, &self.rope)?;
        let settings = AttentionSettings { scale: (self.head_dim as f32).sqrt().recip(), window: None };
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, sinks: None };
        let y = b.attention(inputs, cache, step, &settings)?;
        let y = rows.of(b, b.reshape(&y, &[n_tokens, q_width])?, step)?;
        b.linear(&y, &self.o)
    }
}
