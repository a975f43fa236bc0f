//! From an architecture and a checkpoint's tensors to a backend's weights.

use zmlx_kernels::{Backend, HostWeight};
use zmlx_moe::{ExpertBank, Mlp, MoeBlock, Router};

use crate::architecture::{
    Activation, ExpertsSpec, FeedForwardSpec, GqaSpec, LayerSpec, LinearSpec, MatrixSpec, MixerSpec, MlaSpec,
    MlpSpec, MoeSpec, QuerySpec, RouterSpec, VectorSpec,
};
use crate::attention::{Attention, Gqa, Mla, QueryProjection};
use crate::layer::{FeedForward, Layer};
use crate::linear::Linear;
use crate::{Checkpoint, Result, TensorReader};

/// Called after each layer with the number of layers loaded and of all.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// A reader that uploads what it reads.
pub(crate) struct Loader<'a, B> {
    backend: &'a B,
    pub(crate) reader: TensorReader<'a>,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(backend: &'a B, checkpoint: &'a Checkpoint) -> Self {
        Self { backend, reader: checkpoint.reader() }
    }

    pub(crate) fn matrix(&mut self, spec: &MatrixSpec) -> Result<B::Weight> {
        let weight = self.reader.matrix_of(spec);
        self.upload(weight)
    }

    pub(crate) fn vector(&mut self, spec: &VectorSpec) -> Result<B::Weight> {
        let weight = self.reader.vector_of(spec);
        self.upload(weight)
    }

    pub(crate) fn layer(&mut self, spec: &LayerSpec) -> Result<Layer<B::Weight>> {
        Ok(Layer {
            input_norm: self.vector(&spec.input_norm)?,
            attention: match &spec.mixer {
                MixerSpec::Attention(spec) => Attention::Gqa(self.gqa(spec)?),
                MixerSpec::Latent(spec) => Attention::Mla(self.mla(spec)?),
            },
            post_norm: self.vector(&spec.post_norm)?,
            feed_forward: match &spec.feed_forward {
                FeedForwardSpec::Dense(spec) => FeedForward::Dense(self.mlp(spec)?),
                FeedForwardSpec::Moe(spec) => FeedForward::Moe(self.moe(spec)?),
            },
        })
    }

    pub(crate) fn moe(&mut self, spec: &MoeSpec) -> Result<MoeBlock<B::Weight>> {
        Ok(MoeBlock {
            router: match &spec.router {
                RouterSpec::SoftmaxTopK { gate, settings } => {
                    Router::SoftmaxTopK { gate: self.matrix(gate)?, settings: *settings }
                }
                RouterSpec::NoauxTc { gate, bias, settings } => Router::NoauxTc {
                    gate: self.matrix(gate)?,
                    bias: self.vector(bias)?,
                    settings: *settings,
                },
            },
            experts: self.experts(&spec.experts)?,
            shared: spec.shared.as_ref().map(|spec| self.mlp(spec)).transpose()?,
        })
    }

    fn experts(&mut self, spec: &ExpertsSpec) -> Result<ExpertBank<B::Weight>> {
        let Activation::SwiGlu = spec.activation;
        let [gate, up, down] = self.reader.experts(spec).map(|weight| self.upload(weight));
        Ok(ExpertBank::new(gate?, up?, down?))
    }

    fn mlp(&mut self, spec: &MlpSpec) -> Result<Mlp<B::Weight>> {
        let Activation::SwiGlu = spec.activation;
        Ok(Mlp { gate: self.matrix(&spec.gate)?, up: self.matrix(&spec.up)?, down: self.matrix(&spec.down)? })
    }

    fn gqa(&mut self, spec: &GqaSpec) -> Result<Gqa<B::Weight>> {
        let [q, k, v] = [&spec.q, &spec.k, &spec.v].map(|spec| self.linear(spec));
        let (q, k, v) = (q?, k?, v?);
        Ok(Gqa {
            n_heads: spec.n_heads,
            n_kv_heads: spec.n_kv_heads,
            head_dim: spec.head_dim,
            rope: spec.rope.clone(),
            eps: spec.eps,
            scale: spec.scale,
            qkv: self.concat(&[&q.weight, &k.weight, &v.weight])?,
            q,
            k,
            v,
            o: self.linear(&spec.o)?,
            qk_norm: match &spec.qk_norm {
                Some([q, k]) => Some([self.vector(q)?, self.vector(k)?]),
                None => None,
            },
        })
    }

    fn mla(&mut self, spec: &MlaSpec) -> Result<Mla<B::Weight>> {
        let MlaSpec { n_heads, nope_dim, rope_dim, v_dim, rank, .. } = spec;
        let q = match &spec.q {
            QuerySpec::Direct(q) => QueryProjection::Direct(self.linear(q)?),
            QuerySpec::LowRank { a, norm, b } => {
                QueryProjection::LowRank { a: self.linear(a)?, norm: self.vector(norm)?, b: self.linear(b)? }
            }
        };
        let (embed_q, unembed_out) = self.reader.heads_of(spec);
        Ok(Mla {
            n_heads: *n_heads,
            nope_dim: *nope_dim,
            rope_dim: *rope_dim,
            v_dim: *v_dim,
            rank: *rank,
            rope: spec.rope.clone(),
            eps: spec.eps,
            scale: spec.scale,
            q,
            kv_a: self.linear(&spec.kv_a)?,
            kv_norm: self.vector(&spec.kv_norm)?,
            embed_q: self.upload(embed_q)?,
            unembed_out: self.upload(unembed_out)?,
            o: self.linear(&spec.o)?,
        })
    }

    fn linear(&mut self, spec: &LinearSpec) -> Result<Linear<B::Weight>> {
        let weight = self.matrix(&spec.matrix)?;
        let bias = spec.bias.as_ref().map(|spec| self.vector(spec)).transpose()?;
        Ok(Linear { weight, bias })
    }

    fn upload(&self, weight: HostWeight) -> Result<B::Weight> {
        Ok(self.backend.upload(weight)?)
    }

    /// The rows of all `parts` as one weight. Placeholders of weights that could not be read need not fit together.
    fn concat(&self, parts: &[&B::Weight]) -> Result<B::Weight> {
        if self.reader.has_problems() {
            return Ok(parts[0].clone());
        }
        Ok(self.backend.concat_rows(parts)?)
    }
}
