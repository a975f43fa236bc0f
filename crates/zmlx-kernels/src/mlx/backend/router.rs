//! The routers of mlx-lm, op for op: which experts, in which order, rounded where.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops};

use super::arrays::scalar;
use super::compiled::{self, Function};
use super::{MlxIndices, f};
use crate::mlx::{Runtime, raw};
use crate::{NoauxTc, Renormalize, Result, SoftmaxTopK};

/// Columns `from..to` of the last dimension.
pub(super) fn columns(op: &'static str, x: &Array, from: usize, to: usize) -> Result<Array> {
    let mut start = vec![0; x.ndim()];
    let mut stop = x.shape().to_vec();
    if let (Some(start), Some(stop)) = (start.last_mut(), stop.last_mut()) {
        (*start, *stop) = (from as i32, to as i32);
    }
    raw::slice(op, x, &start, &stop)
}

/// `Qwen3MoeSparseMoeBlock`: the last `top_k` of a partition, in the order in which it leaves them.
pub(super) fn softmax_top_k(logits: &Array, settings: &SoftmaxTopK) -> Result<(MlxIndices, Array)> {
    const OP: &str = "route_softmax_top_k";
    let n_experts = logits.shape()[1] as usize;
    let top_k = settings.top_k;
    let p = ops::softmax_axis(logits, -1, true).map_err(f(OP))?;
    let order = ops::argpartition_axis(&p, -(top_k as i32), -1).map_err(f(OP))?;
    let experts = columns(OP, &order, n_experts - top_k, n_experts)?;
    let mut weights = p.take_along_axis(&experts, -1).map_err(f(OP))?;
    if settings.renormalize == Renormalize::Yes {
        weights = weights.sum_axis(-1, true).and_then(|sum| weights.divide(sum)).map_err(f(OP))?;
    }
    Ok((MlxIndices::computed(OP, experts, n_experts)?, weights))
}

/// `group_expert_select`: in f32, whatever the logits' type; compiled, as mlx-lm has it.
pub(super) fn noaux_tc(
    runtime: &Runtime,
    logits: &Array,
    bias: &Array,
    settings: &NoauxTc,
) -> Result<(MlxIndices, Array)> {
    const OP: &str = "route_noaux_tc";
    let settings = *settings;
    let [experts, weights] = if runtime.compiles() {
        let body = move |args: &[Array]| {
            let results = choose(&args[0], &args[1], &settings);
            results.map(Vec::from).map_err(|e| Exception::custom(e.to_string()))
        };
        compiled::call(OP, Function::NoauxTc(settings), [logits, bias], body)?
    } else {
        choose(logits, bias, &settings)?
    };
    Ok((MlxIndices::computed(OP, experts, logits.shape()[1] as usize)?, weights))
}

/// The chosen experts and their weights.
fn choose(logits: &Array, bias: &Array, settings: &NoauxTc) -> Result<[Array; 2]> {
    const OP: &str = "route_noaux_tc";
    let top_k = settings.top_k;
    let scores = logits.as_dtype(Dtype::Float32).and_then(ops::sigmoid).map_err(f(OP))?;
    let mut sel = scores.add(bias).map_err(f(OP))?;
    if settings.n_group > 1 {
        sel = keep_top_groups(OP, &sel, settings.n_group, settings.topk_group, Pick::Partition)?;
    }
    let order =
        sel.negative().and_then(|s| ops::argpartition_axis(s, top_k as i32 - 1, -1)).map_err(f(OP))?;
    let experts = columns(OP, &order, 0, top_k)?;
    let mut weights = scores.take_along_axis(&experts, -1).map_err(f(OP))?;
    if top_k > 1 && settings.renormalize == Renormalize::Yes {
        let sum = weights.sum_axis(-1, true).and_then(|s| s.add(Array::from_f32(settings.eps)));
        weights = sum.and_then(|sum| weights.divide(sum)).map_err(f(OP))?;
    }
    let factor = scalar(settings.routed_scaling_factor, Dtype::Float32)?;
    Ok([experts, weights.multiply(factor).map_err(f(OP))?])
}

/// How the groups that are dropped are found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    /// As mlx-lm: of equal groups, any.
    Partition,
    /// By a stable order: of equal groups, the first stay.
    FirstOfEqual,
}

/// Scores of all but the best groups set to 0; a group's score is the sum of its two best.
pub(super) fn keep_top_groups(
    op: &'static str,
    x: &Array,
    n_group: usize,
    topk_group: usize,
    pick: Pick,
) -> Result<Array> {
    let n_drop = n_group - topk_group;
    if n_drop == 0 {
        return Ok(x.clone());
    }
    let shape = [x.shape()[0], n_group as i32, x.shape()[1] / n_group as i32];
    let groups = x.reshape(&shape).map_err(f(op))?;
    let best = mlx_rs::ops::indexing::topk_axis(&groups, 2, -1).and_then(|b| b.sum_axis(-1, true));
    let best = best.map_err(f(op))?;
    let dropped = match pick {
        Pick::Partition => {
            let order = ops::argpartition_axis(&best, n_drop as i32 - 1, -2).map_err(f(op))?;
            raw::slice(op, &order, &[0; 3], &[shape[0], n_drop as i32, 1])?
        }
        Pick::FirstOfEqual => {
            let order = best.negative().and_then(|b| ops::argsort_axis(b, -2)).map_err(f(op))?;
            raw::slice(op, &order, &[0, topk_group as i32, 0], &[shape[0], n_group as i32, 1])?
        }
    };
    let kept = groups.put_along_axis(&dropped, scalar(0.0, x.dtype())?, -2);
    kept.and_then(|g| g.reshape(x.shape())).map_err(f(op))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As with activations: MLX's CPU device runs g++.
    #[test]
    fn the_compiled_router_has_the_bits_of_its_ops() {
        Runtime::start().unwrap();
        let values = |n: usize, seed: usize| {
            (0..n).map(|i| ((i * 29 + seed) % 23) as f32 * 0.3 - 3.0).collect::<Vec<_>>()
        };
        let bias = Array::from_slice(&values(16, 5), &[16]);
        for (n_group, topk_group) in [(1, 1), (4, 2)] {
            let settings = NoauxTc {
                top_k: 4,
                n_group,
                topk_group,
                renormalize: Renormalize::Yes,
                routed_scaling_factor: 1.8,
                eps: 1e-20,
            };
            let body = move |args: &[Array]| Ok(Vec::from(choose(&args[0], &args[1], &settings).unwrap()));
            for n in [1, 3] {
                let logits =
                    Array::from_slice(&values(16 * n, 1), &[n as i32, 16]).as_dtype(Dtype::Bfloat16).unwrap();
                let want = choose(&logits, &bias, &settings).unwrap();
                let got: [Array; 2] =
                    compiled::call("test", Function::NoauxTc(settings), [&logits, &bias], body).unwrap();
                for (got, want) in got.iter().zip(&want) {
                    assert!(got.eq_exact(want).unwrap(), "{settings:?}, {n} rows");
                }
            }
        }
    }
}
