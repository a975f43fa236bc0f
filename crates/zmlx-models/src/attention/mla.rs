//! Multi-head latent attention: the cache holds one latent and one rotated key per token for all heads.

use zmlx_kernels::{Backend, Fusion, MlaWeights, NormRopeMla, Result, Rope, stock};

use super::Rows;
use crate::linear::Linear;

/// How queries are computed from the hidden state.
#[derive(Debug)]
pub(crate) enum QueryProjection<W> {
    /// One matrix `[n_heads · (nope + rope), hidden]`.
    Direct(Linear<W>),
    /// Two matrices with a normed bottleneck between them: `b(norm(a(x)))`.
    LowRank {
        /// q_lora_rank.
        rank: usize,
        /// `[q_lora_rank, hidden]`.
        a: Linear<W>,
        /// `[q_lora_rank]`.
        norm: W,
        /// `[n_heads · (nope + rope), q_lora_rank]`.
        b: Linear<W>,
    },
}

/// The projections and sizes of a layer.
#[derive(Debug)]
pub(crate) struct Mla<W> {
    pub(crate) n_heads: usize,
    pub(crate) nope_dim: usize,
    pub(crate) rope_dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) rank: usize,
    pub(crate) rope: Rope,
    pub(crate) eps: f32,
    pub(crate) scale: f32,
    pub(crate) q: QueryProjection<W>,
    /// `[rank + rope_dim, hidden]`: the latent, then the shared key.
    pub(crate) kv_a: Linear<W>,
    /// The rows of q's low rank projection `a` and of `kv_a`, for the fused product; none for a direct projection.
    pub(crate) qkv_a: Option<W>,
    /// `[rank]`.
    pub(crate) kv_norm: W,
    /// `n_heads × [rank, nope_dim]`.
    pub(crate) embed_q: W,
    /// `n_heads × [v_dim, rank]`.
    pub(crate) unembed_out: W,
    /// `[hidden, n_heads · v_dim]`.
    pub(crate) o: Linear<W>,
}

impl<W> Mla<W> {
    pub(super) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (cache, step): (&mut B::Cache, &B::Step),
        rows: Rows,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        let n_tokens = b.n_tokens(step);
        let (q, kv_a) = self.project(b, x, fusion)?;
        let q = b.reshape(&q, &[n_tokens, self.n_heads, self.nope_dim + self.rope_dim])?;
        let inputs = NormRopeMla {
            q: &q,
            kv_a: &kv_a,
            kv_norm: &self.kv_norm,
            eps: self.eps,
            rope_dim: self.rope_dim,
            scale: self.scale,
        };
        let weights = MlaWeights { embed_q: &self.embed_q, unembed_out: &self.unembed_out };
        let y = if fusion.qkv.is_on() {
            b.norm_rope_mla(inputs, weights, cache, step, &self.rope)?
        } else {
            stock::norm_rope_mla(b, inputs, weights, cache, step, &self.rope)?
        };
        let y = rows.of(b, b.reshape(&y, &[n_tokens, self.n_heads * self.v_dim])?, step)?;
        self.o.forward(b, &y)
    }

    /// Queries `[n, n_heads · (nope_dim + rope_dim)]`, and the latent beside the shared key.
    fn project<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        fusion: &Fusion,
    ) -> Result<(B::Tensor, B::Tensor)> {
        let (rank, a, norm, up) = match &self.q {
            QueryProjection::Direct(q) => return Ok((q.forward(b, x)?, self.kv_a.forward(b, x)?)),
            QueryProjection::LowRank { rank, a, norm, b: up } => (rank, a, norm, up),
        };
        let (q_a, kv_a) = match self.qkv_a.as_ref().filter(|_| fusion.qkv.is_on()) {
            None => (a.forward(b, x)?, self.kv_a.forward(b, x)?),
            Some(qkv_a) => {
                let [q_a, kv_a] = b.linear_parts(x, qkv_a, [*rank, self.rank + self.rope_dim])?;
                (a.add_bias(b, q_a)?, self.kv_a.add_bias(b, kv_a)?)
            }
        };
        Ok((up.forward(b, &b.rms_norm(&q_a, norm, self.eps)?)?, kv_a))
    }
}
