//! Linear attention by the gated delta rule.

use candle_core::Tensor;

use super::layers::{KvCache, Linear, to_f32, to_slice, to_tensor};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::{CausalConv, DeltaInputs, GatedDelta, causal_conv, gated_delta, rms_norm_gated};
use crate::plan::{DeltaPlan, DeltaProjections};

/// ```text
/// q | k | v = silu(causal_conv(qkv));   y = gated_delta(q, k, v, a, b)
/// out = out_proj(rms_norm(y, norm) · silu(z))
/// ```
#[derive(Debug)]
pub(super) struct Delta {
    projections: Projections,
    /// `[n_channels, kernel]`
    conv: Vec<f32>,
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: Vec<f32>,
    out_proj: Linear,
    plan: DeltaPlan,
    eps: f64,
}

#[derive(Debug)]
enum Projections {
    Apart { in_proj_qkv: Linear, in_proj_z: Linear, in_proj_b: Linear, in_proj_a: Linear },
    ByHead { in_proj_qkvz: Linear, in_proj_ba: Linear },
}

/// The results of the projections, with a row for each token.
struct Projected {
    qkv: Vec<f32>,
    z: Vec<f32>,
    b: Vec<f32>,
    a: Vec<f32>,
}

impl Delta {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        (plan, hidden, eps): (&DeltaPlan, usize, f64),
    ) -> Result<Self> {
        let GatedDelta { n_k_heads, n_v_heads, k_dim, v_dim, .. } = plan.sizes(0);
        let (n_channels, n_values) = (plan.sizes(0).n_channels(), n_v_heads * v_dim);
        let at = |part: &str| format!("{path}.{part}");
        let linear = |part: &str, out, input| Linear::load(checkpoint, &at(part), out, input);
        let projections = match plan.projections {
            DeltaProjections::Apart => Projections::Apart {
                in_proj_qkv: linear("in_proj_qkv", n_channels, hidden)?,
                in_proj_z: linear("in_proj_z", n_values, hidden)?,
                in_proj_b: linear("in_proj_b", n_v_heads, hidden)?,
                in_proj_a: linear("in_proj_a", n_v_heads, hidden)?,
            },
            DeltaProjections::ByHead => Projections::ByHead {
                in_proj_qkvz: linear("in_proj_qkvz", 2 * n_k_heads * k_dim + 2 * n_values, hidden)?,
                in_proj_ba: linear("in_proj_ba", 2 * n_v_heads, hidden)?,
            },
        };
        Ok(Self {
            projections,
            conv: checkpoint.conv(&at("conv1d.weight"), n_channels, plan.kernel)?,
            a_log: checkpoint.floats(&at("A_log"), &[n_v_heads])?,
            dt_bias: checkpoint.floats(&at("dt_bias"), &[n_v_heads])?,
            norm: checkpoint.floats(&at("norm.weight"), &[v_dim])?,
            out_proj: linear("out_proj", hidden, n_values)?,
            plan: *plan,
            eps,
        })
    }

    fn project(&self, x: &Tensor) -> Result<Projected> {
        let of = |linear: &Linear| to_slice(&linear.forward(x)?);
        match &self.projections {
            Projections::Apart { in_proj_qkv, in_proj_z, in_proj_b, in_proj_a } => Ok(Projected {
                qkv: of(in_proj_qkv)?,
                z: of(in_proj_z)?,
                b: of(in_proj_b)?,
                a: of(in_proj_a)?,
            }),
            Projections::ByHead { in_proj_qkvz, in_proj_ba } => {
                let GatedDelta { n_k_heads, n_v_heads, k_dim, v_dim, .. } = self.plan.sizes(0);
                let per_k_head = n_v_heads / n_k_heads;
                let mut projected = Projected { qkv: vec![], z: vec![], b: vec![], a: vec![] };
                let (n, n_values) = (2 * k_dim + 2 * per_k_head * v_dim, per_k_head * v_dim);
                for token in of(in_proj_qkvz)?.chunks_exact(n_k_heads * n) {
                    let part = |from: usize, len: usize, out: &mut Vec<f32>| {
                        token.chunks_exact(n).for_each(|head| out.extend_from_slice(&head[from..from + len]));
                    };
                    part(0, k_dim, &mut projected.qkv);
                    part(k_dim, k_dim, &mut projected.qkv);
                    part(2 * k_dim, n_values, &mut projected.qkv);
                    part(2 * k_dim + n_values, n_values, &mut projected.z);
                }
                for head in of(in_proj_ba)?.chunks_exact(2 * per_k_head) {
                    projected.b.extend_from_slice(&head[..per_k_head]);
                    projected.a.extend_from_slice(&head[per_k_head..]);
                }
                Ok(projected)
            }
        }
    }

    pub(super) fn forward(&self, x: &Tensor, n_tokens: usize, cache: &mut KvCache) -> Result<Tensor> {
        let Projected { qkv, z, b, a } = self.project(x)?;
        let sizes = self.plan.sizes(n_tokens);
        let u = convolve(cache, &qkv, (&self.conv, &[]), (sizes.n_channels(), self.plan.kernel, true));
        cache.state.resize(sizes.state_len(), 0.0);
        let inputs =
            DeltaInputs { qkv: &to_f32(&u), a: &a, b: &b, a_log: &self.a_log, dt_bias: &self.dt_bias };
        let y = gated_delta(inputs, &mut cache.state, sizes);
        let y = rms_norm_gated(&y, &z, &self.norm, self.eps);
        self.out_proj.forward(&to_tensor(&y, &[n_tokens, sizes.n_v_heads * sizes.v_dim])?)
    }
}

/// Convolves new inputs after those in the cache, and then stores the last ones in it.
pub(super) fn convolve(
    cache: &mut KvCache,
    x: &[f32],
    (weight, bias): (&[f32], &[f32]),
    (n_channels, kernel, silu): (usize, usize, bool),
) -> Vec<f64> {
    let n_before = (kernel - 1) * n_channels;
    // Before the first token the inputs are zeros.
    cache.conv.resize(n_before, 0.0);
    let all = [&cache.conv[..], x].concat();
    let sizes = CausalConv { n_tokens: all.len() / n_channels, n_channels, kernel, silu };
    cache.conv = all[all.len() - n_before..].to_vec();
    causal_conv(&all, weight, bias, sizes).split_off(n_before)
}
