//! Grouped queries over the keys and values of an earlier layer.

use zmlx_kernels::{AttentionSettings, Backend, Result, Rope};

use super::Rows;
use crate::linear::Linear;

/// `o( attend( rope(norm(q(x))) ) )` over keys and values that another layer has written.
#[derive(Debug)]
pub(crate) struct SharedGqa<W> {
    pub(crate) n_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rope: Rope,
    pub(crate) eps: f32,
    pub(crate) settings: AttentionSettings,
    /// `[n_heads · head_dim, hidden]`.
    pub(crate) q: Linear<W>,
    /// `[head_dim]`.
    pub(crate) q_norm: Option<W>,
    /// `[hidden, n_heads · head_dim]`.
    pub(crate) o: Linear<W>,
}

impl<W> SharedGqa<W> {
    pub(super) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (cache, step): (&B::Cache, &B::Step),
        rows: Rows,
    ) -> Result<B::Tensor> {
        let n_tokens = b.n_tokens(step);
        let mut q = b.reshape(&self.q.forward(b, x)?, &[n_tokens, self.n_heads, self.head_dim])?;
        if let Some(norm) = &self.q_norm {
            q = b.rms_norm(&q, norm, self.eps)?;
        }
        let y = b.attention_shared(&b.rope(&q, step, &self.rope)?, cache, step, &self.settings)?;
        let y = rows.of(b, b.reshape(&y, &[n_tokens, self.n_heads * self.head_dim])?, step)?;
        self.o.forward(b, &y)
    }
}
