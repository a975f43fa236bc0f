//! Turns an architecture and the tensors of a checkpoint into a backend's weights.

use std::cell::Cell;

use zmlx_kernels::{AttentionSettings, Backend, DeltaDims, HostWeight};
use zmlx_moe::{ExpertBank, Mlp, MoeBlock, Router};

use crate::architecture::{
    ConvSpec, DeltaProjections, DeltaSpec, ExpertSplit, ExpertsSpec, FeedForwardSpec, GqaSpec, LayerExtras,
    LayerSpec, LinearSpec, MatrixSpec, MixerSpec, MlaSpec, MlpSpec, MoeSpec, PerLayerInputSpec,
    PerLayerInputsSpec, QuerySpec, RouterSpec, ScaledNorm, SharedGqaSpec, ShortConvSpec, VectorSpec,
};
use crate::attention::{Attention, Delta, Gqa, HeadNorm, Mla, QueryProjection, SharedGqa, ShortConv};
use crate::layer::{Beside, Extras, FeedForward, Layer, PerLayerInput, PerLayerInputs};
use crate::linear::Linear;
use crate::{Checkpoint, Result, TensorReader};

/// Called after each layer with the number of layers loaded so far and their total number.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// Reads weights and uploads them.
pub(crate) struct Loader<'a, B> {
    backend: &'a B,
    pub(crate) reader: TensorReader<'a>,
    n_bytes: Cell<u64>,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(backend: &'a B, checkpoint: &'a Checkpoint) -> Self {
        Self { backend, reader: checkpoint.reader(), n_bytes: Cell::new(0) }
    }

    /// Bytes of the weights that the backend was given.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes.get()
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
                MixerSpec::Shared(spec) => Attention::Shared(self.shared(spec)?),
                MixerSpec::Delta(spec) => Attention::Delta(self.delta(spec)?),
                MixerSpec::ShortConv(spec) => Attention::ShortConv(self.short_conv(spec)?),
            },
            post_norm: self.vector(&spec.post_norm)?,
            feed_forward: match &spec.feed_forward {
                FeedForwardSpec::Dense(spec) => FeedForward::Dense(self.mlp(spec)?),
                FeedForwardSpec::Moe(spec) => FeedForward::Moe(self.moe(spec)?),
                FeedForwardSpec::Beside(spec) => FeedForward::Beside(Box::new(Beside {
                    mlp: self.mlp(&spec.mlp)?,
                    mlp_norm: self.vector(&spec.mlp_norm)?,
                    moe: self.moe(&spec.moe)?,
                    moe_input_norm: self.vector(&spec.moe_input_norm)?,
                    moe_norm: self.vector(&spec.moe_norm)?,
                })),
            },
            extras: self.extras(&spec.extras)?,
        })
    }

    fn extras(&mut self, spec: &LayerExtras) -> Result<Extras<B::Weight>> {
        let per_layer_input = match &spec.per_layer_input {
            Some(PerLayerInputSpec { gate, projection, norm }) => Some(PerLayerInput {
                gate: self.matrix(gate)?,
                projection: self.matrix(projection)?,
                norm: self.vector(norm)?,
            }),
            None => None,
        };
        let factor = spec.factor.as_ref().map(|spec| self.reader.vector_of(spec).to_f32_vec());
        Ok(Extras {
            mixer_norm: self.optional(spec.mixer_norm.as_ref())?,
            feed_forward_norm: self.optional(spec.feed_forward_norm.as_ref())?,
            per_layer_input,
            factor: factor.and_then(|values| values.first().copied()),
        })
    }

    fn optional(&mut self, spec: Option<&VectorSpec>) -> Result<Option<B::Weight>> {
        spec.map(|spec| self.vector(spec)).transpose()
    }

    pub(crate) fn per_layer_inputs(
        &mut self,
        spec: &PerLayerInputsSpec,
    ) -> Result<PerLayerInputs<B::Weight>> {
        Ok(PerLayerInputs {
            width: spec.width,
            table: self.matrix(&spec.table)?,
            projection: self.matrix(&spec.projection)?,
            norm: self.vector(&spec.norm)?,
        })
    }

    pub(crate) fn moe(&mut self, spec: &MoeSpec) -> Result<MoeBlock<B::Weight>> {
        Ok(MoeBlock {
            router: match &spec.router {
                RouterSpec::SoftmaxTopK { gate, settings } => {
                    Router::SoftmaxTopK { gate: self.matrix(gate)?, settings: *settings }
                }
                RouterSpec::SoftmaxOfChosen(spec) => {
                    let Linear { weight: gate, bias } = self.linear(&spec.gate)?;
                    let norm = match &spec.norm {
                        Some(norm) => Some((self.scaled(norm)?, norm.eps)),
                        None => None,
                    };
                    let factors = self.optional(spec.factors.as_ref())?;
                    Router::SoftmaxOfChosen { gate, bias, norm, factors, top_k: spec.top_k }
                }
                RouterSpec::NoauxTc { gate, bias, settings } => Router::NoauxTc {
                    gate: self.matrix(gate)?,
                    bias: match bias {
                        Some(bias) => self.vector(bias)?,
                        None => self.upload(HostWeight::from_f32(&vec![0.0; gate.n_out], 1, gate.n_out)?)?,
                    },
                    settings: *settings,
                },
            },
            experts: self.experts(&spec.experts)?,
            shared: spec.shared.as_ref().map(|spec| self.mlp(spec)).transpose()?,
            shared_gate: spec.shared_gate.as_ref().map(|spec| self.matrix(spec)).transpose()?,
        })
    }

    fn experts(&mut self, spec: &ExpertsSpec) -> Result<ExpertBank<B::Weight>> {
        let [gate, up, down] = self.reader.experts(spec).map(|weight| self.upload(weight));
        let mut bank = ExpertBank::new(gate?, up?, down?).joined_by(spec.activation);
        if let ExpertSplit::Experts(part) = spec.split {
            bank = bank.holding(part.range(spec.n_experts));
        }
        if !spec.is_biased {
            return Ok(bank);
        }
        let [gate, up, down] = self.reader.expert_biases(spec);
        // Another rank may be the one that adds it to the sum.
        let adds_down = !matches!(spec.split, ExpertSplit::Width(part) if part.start > 0);
        let down = adds_down.then(|| self.upload(down)).transpose()?;
        Ok(bank.with_biases([self.upload(gate)?, self.upload(up)?], down))
    }

    fn mlp(&mut self, spec: &MlpSpec) -> Result<Mlp<B::Weight>> {
        Ok(Mlp {
            gate: self.matrix(&spec.gate)?,
            up: self.matrix(&spec.up)?,
            down: self.matrix(&spec.down)?,
            activation: spec.activation,
        })
    }

    fn gqa(&mut self, spec: &GqaSpec) -> Result<Gqa<B::Weight>> {
        let (mut q, mut k) = (self.linear(&spec.q)?, self.linear(&spec.k)?);
        let mut v = spec.v.as_ref().map(|spec| self.linear(spec)).transpose()?;
        let qkv =
            self.join([Some(&mut q), Some(&mut k), v.as_mut()].into_iter().flatten().map(|l| &mut l.weight))?;
        Ok(Gqa {
            n_heads: spec.n_heads,
            n_kv_heads: spec.n_kv_heads,
            head_dim: spec.head_dim,
            rope: spec.rope.clone(),
            eps: spec.eps,
            scale: spec.scale,
            window: spec.window,
            output_gate: spec.output_gate,
            qkv,
            q,
            k,
            v,
            o: self.linear(&spec.o)?,
            q_norm: self.head_norm(spec.q_norm.as_ref(), spec.head_dim)?,
            k_norm: self.head_norm(spec.k_norm.as_ref(), spec.head_dim)?,
            v_norm: if spec.norms_values { Some(self.ones(spec.head_dim)?) } else { None },
            sinks: spec.sinks.as_ref().map(|spec| self.vector(spec)).transpose()?,
        })
    }

    fn head_norm(
        &mut self,
        spec: Option<&VectorSpec>,
        head_dim: usize,
    ) -> Result<Option<HeadNorm<B::Weight>>> {
        let Some(spec) = spec else { return Ok(None) };
        let weight = self.vector(spec)?;
        if spec.len == head_dim {
            return Ok(Some(HeadNorm::Each(weight)));
        }
        Ok(Some(HeadNorm::All { weight, n: spec.len, own: self.backend.shard().range(spec.len) }))
    }

    /// The vector times its factor.
    fn scaled(&mut self, spec: &ScaledNorm) -> Result<B::Weight> {
        let values = self.reader.vector_of(&spec.weight).to_f32_vec();
        let values: Vec<f32> = values.into_iter().map(|v| v * spec.factor).collect();
        self.upload(HostWeight::from_f32(&values, 1, values.len())?)
    }

    fn shared(&mut self, spec: &SharedGqaSpec) -> Result<SharedGqa<B::Weight>> {
        for unused in ["k_proj", "v_proj", "k_norm", "v_norm"] {
            self.reader.ignore(&format!("{}.{unused}", spec.path));
        }
        Ok(SharedGqa {
            n_heads: spec.n_heads,
            head_dim: spec.head_dim,
            rope: spec.rope.clone(),
            eps: spec.eps,
            settings: AttentionSettings { scale: spec.scale, window: spec.window },
            q: self.linear(&spec.q)?,
            q_norm: self.optional(spec.q_norm.as_ref())?,
            o: self.linear(&spec.o)?,
        })
    }

    /// A vector of ones, for a norm without a weight.
    fn ones(&self, len: usize) -> Result<B::Weight> {
        self.upload(HostWeight::from_f32(&vec![1.0; len], 1, len)?)
    }

    fn mla(&mut self, spec: &MlaSpec) -> Result<Mla<B::Weight>> {
        let MlaSpec { n_heads, nope_dim, rope_dim, v_dim, rank, .. } = spec;
        let mut q = match &spec.q {
            QuerySpec::Direct(q) => QueryProjection::Direct(self.linear(q)?),
            QuerySpec::LowRank { a, norm, b } => {
                let rank = a.matrix.n_out;
                let (a, norm, b) = (self.linear(a)?, self.vector(norm)?, self.linear(b)?);
                QueryProjection::LowRank { rank, a, norm, b }
            }
        };
        let mut kv_a = self.linear(&spec.kv_a)?;
        let qkv_a = match &mut q {
            QueryProjection::Direct(_) => None,
            QueryProjection::LowRank { a, .. } => {
                Some(self.join([&mut a.weight, &mut kv_a.weight].into_iter())?)
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
            kv_a,
            qkv_a,
            kv_norm: self.vector(&spec.kv_norm)?,
            embed_q: self.upload(embed_q)?,
            unembed_out: self.upload(unembed_out)?,
            o: self.linear(&spec.o)?,
        })
    }

    fn delta(&mut self, spec: &DeltaSpec) -> Result<Delta<B::Weight>> {
        let projections = match &spec.projections {
            DeltaProjections::Apart { qkv, z, b, a } => [qkv, z, b, a].map(|spec| self.matrix(spec)),
            DeltaProjections::ByHead { qkvz, ba } => self.by_head(spec.dims, [qkvz, ba])?.map(Ok),
        };
        let [qkv, z, b, a] = projections;
        let mut projections = [qkv?, z?, b?, a?];
        let all = self.join(projections.iter_mut())?;
        Ok(Delta {
            dims: spec.dims,
            eps: spec.eps,
            projections,
            all,
            taps: self.taps(&spec.conv)?,
            a_log: self.vector(&spec.a_log)?,
            dt_bias: self.vector(&spec.dt_bias)?,
            norm: self.vector(&spec.norm)?,
            out: self.matrix(&spec.out)?,
        })
    }

    /// Projections whose rows are stored head by head. Their rows are copied, in the order of [`Delta::projections`].
    fn by_head(&mut self, dims: DeltaDims, [qkvz, ba]: [&MatrixSpec; 2]) -> Result<[B::Weight; 4]> {
        let DeltaDims { n_k_heads, n_v_heads, k_dim, v_dim, .. } = dims;
        let per_head = n_v_heads / n_k_heads;
        let (qkvz, ba) = (self.reader.matrix_of(qkvz), self.reader.matrix_of(ba));
        // For each head, the `n` rows from `from` on.
        let of_heads = |n_rows: usize, from: usize, n: usize| {
            (0..n_k_heads).map(move |head| head * n_rows + from..head * n_rows + from + n)
        };
        let (n_values, has_problems) = (per_head * v_dim, self.reader.has_problems());
        let n_rows = 2 * k_dim + 2 * n_values;
        let values = |from: usize| of_heads(n_rows, from, n_values);
        let qkv = of_heads(n_rows, 0, k_dim).chain(of_heads(n_rows, k_dim, k_dim)).chain(values(2 * k_dim));
        let part = |weight: &HostWeight, ranges: Vec<std::ops::Range<usize>>| {
            // A placeholder does not have these rows.
            let rows = if has_problems { Ok(weight.clone()) } else { weight.gather_rows(&ranges) };
            self.upload(rows?)
        };
        Ok([
            part(&qkvz, qkv.collect())?,
            part(&qkvz, values(2 * k_dim + n_values).collect())?,
            part(&ba, of_heads(2 * per_head, 0, per_head).collect())?,
            part(&ba, of_heads(2 * per_head, per_head, per_head).collect())?,
        ])
    }

    fn short_conv(&mut self, spec: &ShortConvSpec) -> Result<ShortConv<B::Weight>> {
        Ok(ShortConv {
            n_channels: spec.conv.n_channels,
            input: self.linear(&spec.input)?,
            taps: self.taps(&spec.conv)?,
            bias: spec.conv.bias.as_ref().map(|spec| self.vector(spec)).transpose()?,
            out: self.linear(&spec.out)?,
        })
    }

    fn taps(&mut self, spec: &ConvSpec) -> Result<B::Weight> {
        let weight = self.reader.conv_of(spec);
        self.upload(weight)
    }

    fn linear(&mut self, spec: &LinearSpec) -> Result<Linear<B::Weight>> {
        let weight = self.matrix(&spec.matrix)?;
        let bias = spec.bias.as_ref().map(|spec| self.vector(spec)).transpose()?;
        Ok(Linear { weight, bias })
    }

    fn upload(&self, weight: HostWeight) -> Result<B::Weight> {
        self.n_bytes.set(self.n_bytes.get() + (weight.n_mats() * weight.mat_bytes()) as u64);
        Ok(self.backend.upload(weight)?)
    }

    /// The rows of all `parts` as one weight, which the parts then share where the backend would copy. Placeholders of weights
    /// that could not be read need not fit together.
    fn join<'w>(&self, parts: impl Iterator<Item = &'w mut B::Weight>) -> Result<B::Weight>
    where
        B::Weight: 'w,
    {
        let mut parts: Vec<&mut B::Weight> = parts.collect();
        let own: Vec<B::Weight> = parts.iter().map(|w| (**w).clone()).collect();
        if self.reader.has_problems() {
            return Ok(own[0].clone());
        }
        let (whole, shared) = self.backend.join_rows(own)?;
        parts.iter_mut().zip(shared).for_each(|(part, shared)| **part = shared);
        Ok(whole)
    }
}
