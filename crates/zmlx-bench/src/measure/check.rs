//! Checks that the paths agree on a fixed token sequence. Otherwise nothing is timed.
//!
//! A path may round differently from the first one. If two experts are nearly equal, this changes the choice of a
//! router, and in a model with many layers that happens to some token. Its results then differ widely, which is not an
//! error. So tokens are compared layer by layer, as long as they go to the same experts. A layer in which one token did
//! not passes on the first path's result.

use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{CachePool, Input, Logits, Model, PoolOptions, Slot, TapValue};
use zmlx_oracle::compare::{differing_expert_sets, max_or_nan, rel_rms};

use crate::{Result, greedy};

/// The results of a path for a prompt and for the tokens that it chose after it, one by one.
pub(super) struct Workload<B: Backend> {
    steps: Vec<(Vec<u32>, Pass<B>)>,
}

/// The results of a path for some tokens.
struct Pass<B: Backend> {
    layers: Vec<Layer<B>>,
    /// The logits of the last token.
    logits: Vec<f32>,
}

/// The results of a layer.
struct Layer<B: Backend> {
    /// The chosen experts; empty if the layer has none.
    experts: Vec<u32>,
    out: B::Tensor,
    values: Vec<f32>,
}

/// The difference between a path and the first one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference {
    /// The largest relative root mean square of a layer's result for a token that goes to the same experts, or of the
    /// logits; NaN if there is a NaN.
    pub(super) rel_rms: f64,
    /// The fraction of all choices, over tokens and layers, that are other experts.
    pub(super) other_experts: f64,
}

impl<B: Backend> Workload<B> {
    /// Continues the prompt greedily with `fusion`; `None` if its logits are not all finite.
    pub(super) fn greedy(
        model: &Model<B>,
        prompt: Vec<u32>,
        n_tokens: usize,
        fusion: &Fusion,
    ) -> Result<Option<Self>> {
        let mut pool = model.pool(PoolOptions::default())?;
        let slot = pool.allocate()?;
        let mut steps = Vec::new();
        let mut tokens = prompt;
        loop {
            let pass = Pass::run(model, (&mut pool, slot), &tokens, fusion, |_, _| None)?;
            let Some(next) = greedy::choose(&pass.logits) else { return Ok(None) };
            steps.push((std::mem::replace(&mut tokens, vec![next.token]), pass));
            if steps.len() > n_tokens {
                return Ok(Some(Self { steps }));
            }
        }
    }

    /// Compares `fusion` with it on the same tokens.
    pub(super) fn compare(&self, model: &Model<B>, fusion: &Fusion) -> Result<Difference> {
        let mut pool = model.pool(PoolOptions::default())?;
        let slot = pool.allocate()?;
        let (mut worst, mut n_choices, mut n_other) = (0.0f64, 0, 0);
        let mut note = |difference: f64| worst = max_or_nan(worst, difference);
        for (tokens, want) in &self.steps {
            let pass = Pass::run(model, (&mut pool, slot), tokens, fusion, |i, layer| {
                let want = &want.layers[i];
                // The last layer computes only the last token.
                let n = model.backend().shape(&want.out)[0];
                let (top_k, width) = (want.experts.len() / n, want.values.len() / n);
                let other = match top_k {
                    0 => Vec::new(),
                    _ => differing_expert_sets(&layer.experts, &want.experts, top_k),
                };
                let rows = layer.values.chunks(width).zip(want.values.chunks(width));
                let same = rows.enumerate().filter(|(row, _)| !other.contains(row));
                same.for_each(|(_, (got, want))| note(rel_rms(got, want)));
                n_choices += if top_k > 0 { n } else { 0 };
                n_other += other.len();
                (!other.is_empty()).then(|| want.out.clone())
            })?;
            note(rel_rms(&pass.logits, &want.logits));
        }
        Ok(Difference { rel_rms: worst, other_experts: n_other as f64 / n_choices.max(1) as f64 })
    }
}

impl<B: Backend> Pass<B> {
    /// Appends the tokens to a sequence. `passed_on` gets the number and the results of each layer. What it returns
    /// goes to the next layer.
    fn run(
        model: &Model<B>,
        (pool, slot): (&mut CachePool<B>, Slot),
        tokens: &[u32],
        fusion: &Fusion,
        mut passed_on: impl FnMut(usize, &Layer<B>) -> Option<B::Tensor>,
    ) -> Result<Self> {
        let b = model.backend();
        let (mut layers, mut experts, mut failed) = (Vec::new(), Vec::new(), None);
        let mut tap = |name: &str, value: TapValue<'_, B>| match value {
            TapValue::Indices(chosen) => {
                failed = failed.take().or(b.read_indices(chosen, &mut experts).err());
                None
            }
            TapValue::Tensor(out) if name.starts_with("layers.") && name.ends_with(".out") => {
                let mut values = Vec::new();
                failed = failed.take().or(b.read(out, &mut values).err());
                let layer = Layer { experts: std::mem::take(&mut experts), out: out.clone(), values };
                let other = passed_on(layers.len(), &layer);
                layers.push(layer);
                other
            }
            TapValue::Tensor(_) => None,
        };
        let input = Input { slot, tokens, logits: Logits::Last };
        let y = model.forward_tapped(pool, &[input], fusion, Some(&mut tap))?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let mut logits = Vec::new();
        b.read(&y, &mut logits)?;
        Ok(Self { layers, logits })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use zmlx_kernels::cpu::CpuBackend;
    use zmlx_kernels::{GateUp, Hooked, Hooks, NoauxTc};
    use zmlx_models::Checkpoint;

    use super::*;

    /// An error that is made on purpose.
    #[derive(Debug)]
    enum Wrong {
        Nothing,
        /// SiLU is applied to up instead of gate.
        GateAndUpSwapped,
        /// In this call of the router the first token goes to another expert.
        OtherExpert(AtomicUsize),
    }

    impl<B: Backend> Hooks<B> for Wrong {
        fn around<R>(
            &self,
            _: &'static str,
            run: impl FnOnce() -> zmlx_kernels::Result<R>,
        ) -> zmlx_kernels::Result<R> {
            run()
        }

        fn gather_qmm_swiglu(
            &self,
            backend: &B,
            x: &B::Tensor,
            weights: GateUp<'_, B::Weight>,
            experts: &B::Indices,
        ) -> zmlx_kernels::Result<B::Tensor> {
            let weights = match self {
                Self::GateAndUpSwapped => GateUp { gate: weights.up, up: weights.gate, ..weights },
                _ => weights,
            };
            backend.gather_qmm_swiglu(x, weights, experts)
        }

        fn route_noaux_tc(
            &self,
            backend: &B,
            logits: &B::Tensor,
            bias: &B::Weight,
            settings: &NoauxTc,
        ) -> zmlx_kernels::Result<(B::Indices, B::Tensor)> {
            let (experts, weights) = backend.route_noaux_tc(logits, bias, settings)?;
            let Self::OtherExpert(call) = self else { return Ok((experts, weights)) };
            if call.fetch_sub(1, Ordering::Relaxed) != 0 {
                return Ok((experts, weights));
            }
            let mut chosen = Vec::new();
            backend.read_indices(&experts, &mut chosen)?;
            let other = (0..).find(|e| !chosen[..settings.top_k].contains(e));
            chosen[0] = other.unwrap_or_default();
            Ok((backend.indices(&chosen, &backend.shape(&weights))?, weights))
        }
    }

    fn difference(wrong: Wrong, n_tokens: u32) -> Difference {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/austen-glm4-moe-lite-4bit");
        let backend = Hooked::new(CpuBackend::new(Some(1)).unwrap(), wrong);
        let model = Model::load(backend, &Checkpoint::open(dir.as_ref()).unwrap(), &mut |_, _| ()).unwrap();
        let workload =
            Workload::greedy(&model, (1..=n_tokens).collect(), 4, &Fusion::STOCK).unwrap().unwrap();
        assert_eq!(workload.steps.len(), 5);
        workload.compare(&model, &Fusion::FUSED).unwrap()
    }

    #[test]
    fn paths_that_agree() {
        let Difference { rel_rms, other_experts } = difference(Wrong::Nothing, 19);
        assert_eq!((rel_rms, other_experts), (0.0, 0.0));
    }

    #[test]
    fn a_wrong_op_is_found() {
        let found = difference(Wrong::GateAndUpSwapped, 19);
        assert!(found.rel_rms > 0.1, "{found:?}");
    }

    /// Such a token is recognised, and its effect on later tokens is undone. There are so few tokens that an expert
    /// uses the same kernels for the others with or without this one, so their bits are equal.
    #[test]
    fn another_choice_is_not_a_difference() {
        for call in 0..4 {
            let found = difference(Wrong::OtherExpert(call.into()), 4);
            assert_eq!(found.rel_rms, 0.0, "call {call}: {found:?}");
            assert!(found.other_experts > 0.0 && found.other_experts < 0.05, "call {call}: {found:?}");
        }
    }
}
