//! Checks that the fused paths use fused ops and that the baselines use none.

use std::cell::RefCell;
use std::collections::BTreeMap;

use zmlx_kernels::{Backend, ExpertFusion, Hooked, Hooks, Instrumented, Op, Result};
use zmlx_models::Model;

use super::Path;
use zmlx_bench::capsule::validate::{Engagement, Verdict};

/// Counts calls by op.
#[derive(Debug, Default)]
pub(super) struct Counter(RefCell<BTreeMap<&'static str, u64>>);

impl<B: Backend> Hooks<B> for Counter {
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        *self.0.borrow_mut().entry(op).or_default() += 1;
        run()
    }
}

/// The calls of one path.
#[derive(Debug, Default)]
pub(super) struct Engaged {
    /// The number of calls of every op.
    calls: BTreeMap<&'static str, u64>,
    /// For each fused op, how many calls ran as one kernel.
    runs: BTreeMap<&'static str, u64>,
}

impl Engaged {
    /// Counts the ops that `work` on the model calls.
    pub(super) fn watch<B: Instrumented, R>(
        &mut self,
        model: &Model<Hooked<B, Counter>>,
        work: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<R> {
        let runs = || -> Vec<_> { Op::switched().map(|op| model.backend().kernel_runs(op.name)).collect() };
        let counter = model.backend().hooks();
        counter.0.take();
        let before = runs();
        let result = work()?;
        let calls = counter.0.take();
        for ((op, before), after) in Op::switched().zip(before).zip(runs()) {
            let n_calls = calls.get(op.name).copied().unwrap_or(0);
            let n_runs = before.zip(after).map_or(n_calls, |(before, after)| after - before);
            *self.runs.entry(op.name).or_default() += n_runs;
        }
        for (op, n) in calls {
            *self.calls.entry(op).or_default() += n;
        }
        Ok(result)
    }

    fn calls(&self, op: &Op) -> u64 {
        self.calls.get(op.name).copied().unwrap_or(0)
    }

    fn runs(&self, op: &Op) -> u64 {
        self.runs.get(op.name).copied().unwrap_or(0)
    }
}

/// The fused ops that each path called. `has_kernels` means that the backend has kernels for them, so that some must
/// have run.
pub(super) fn judge(paths: &[Path], engaged: &[Engaged], has_kernels: bool) -> Vec<Engagement> {
    let mut all = Vec::new();
    for (path, engaged) in paths.iter().zip(engaged) {
        let has_experts = [Op::GATHER_LINEAR, Op::GATHER_QMM_SWIGLU].iter().any(|op| engaged.calls(op) > 0);
        let is_idle = has_kernels && Op::switched().all(|op| engaged.runs(op) == 0);
        for op in Op::switched() {
            let calls = engaged.calls(op);
            let is_missing = has_experts
                && *op == Op::GATHER_QMM_SWIGLU
                && path.fusion.experts == ExpertFusion::Fused
                && calls == 0;
            if calls == 0 && !is_missing {
                continue;
            }
            let is_wrong = is_missing || path.is_baseline || is_idle;
            all.push(Engagement {
                fusion: path.name.to_owned(),
                op: op.name.to_owned(),
                calls,
                runs: engaged.runs(op),
                verdict: if is_wrong { Verdict::Fail } else { Verdict::Pass },
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use zmlx_kernels::Fusion;

    #[test]
    fn verdicts() {
        let baseline = Path { name: "stock", fusion: Fusion::STOCK, is_baseline: true };
        let fused = Path { name: "fused", fusion: Fusion::FUSED, is_baseline: false };
        let engaged = |ops: &[(&'static str, u64, u64)]| Engaged {
            calls: ops.iter().map(|&(op, calls, _)| (op, calls)).collect(),
            runs: ops.iter().map(|&(op, _, runs)| (op, runs)).collect(),
        };
        let verdict = |path, ops: &[_], has_kernels| {
            judge(&[path], &[engaged(ops)], has_kernels).iter().map(|e| e.verdict).max()
        };
        let stock = [("gather_linear", 9, 0), ("gated", 3, 0)];
        let kernels = [("gather_qmm_swiglu", 3, 2), ("add_rms_norm", 3, 0)];
        let composed = [("gather_qmm_swiglu", 3, 0)];
        assert_eq!(verdict(baseline, &stock, true), None);
        assert_eq!(verdict(baseline, &kernels, true), Some(Verdict::Fail));
        assert_eq!(verdict(fused, &kernels, true), Some(Verdict::Pass));
        assert_eq!(verdict(fused, &composed, true), Some(Verdict::Fail));
        assert_eq!(
            verdict(fused, &composed, false),
            Some(Verdict::Pass),
            "a device without kernels reports that"
        );
        assert_eq!(verdict(fused, &stock, true), Some(Verdict::Fail));
        assert_eq!(verdict(fused, &stock, false), Some(Verdict::Fail));
    }
}
