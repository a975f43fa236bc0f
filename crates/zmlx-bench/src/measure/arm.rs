//! A model on a backend that is ready to be measured, without the backend's types.

use std::sync::Arc;
use std::time::Instant;

use zmlx_kernels::{Backend, Barriers, CacheKind, Fusion, Hooked, HostNeeds, Instrumented, SampleSettings};
use zmlx_models::{CachePool, Checkpoint, Input, Lead, Logits, Model, PoolOptions, Slot, Tap, TapValue};

use super::check::{Difference, Workload};
use super::probe::{Mode, Part, Phase, Probe, phases};
use crate::{OnProgress, Result, Work, seeded_tokens};

/// Number of tokens in the check before anything is timed: a prompt, and tokens that follow one by one.
const CHECK_PROMPT: usize = 24;
const CHECK_TOKENS: usize = 8;

/// The measurements of a model on a backend.
pub(super) trait Arm {
    /// How each fusion differs from the first one; `None` if the logits of the first one are not all numbers.
    fn check(&self, fusions: &[Fusion]) -> Result<Option<Vec<Difference>>>;

    /// The time from a prompt to the logits of its last token, in seconds.
    fn prompt(&self, fusion: &Fusion, tokens: &[u32]) -> Result<f64>;

    /// Fills the caches of `batch` sequences to `depth` tokens each, once for all measurements at this depth.
    fn fill(
        &mut self,
        fusion: &Fusion,
        depth: usize,
        batch: usize,
        on_progress: OnProgress<'_>,
    ) -> Result<()>;

    /// Runs `n` steps that decode one token of every sequence, as the engine decodes them: if the device chooses the tokens, it
    /// computes a step while the host reads the one before. Afterwards the caches are as before.
    fn decode(&mut self, fusion: &Fusion, n: usize) -> Result<Decoded>;

    /// The number of ops in one such step, with compositions counted as their parts.
    fn count(&mut self, fusion: &Fusion) -> Result<usize>;

    /// The time per step in each phase, in seconds, from `n` steps whose ops are timed one by one.
    fn profile(&mut self, fusion: &Fusion, n: usize) -> Result<Vec<(Phase, f64)>>;

    /// The most bytes that the backend's arrays have taken at once, if it counts them.
    fn peak_memory_bytes(&self) -> Option<u64>;
}

/// The times of decoding.
#[derive(Debug)]
pub(super) struct Decoded {
    /// The time of each step, in seconds, from the results of the step before to its own.
    pub(super) seconds: Vec<f64>,
    /// The barriers of all steps, if the backend counts them.
    pub(super) barriers: Option<Barriers>,
}

type Hook<B> = Hooked<B, Probe>;

/// A model whose backend can count and time its ops.
pub(super) struct Loaded<B: Backend> {
    model: Model<Hook<B>>,
    filled: Filled<Hook<B>>,
}

/// The caches of some sequences at a depth.
struct Filled<B: Backend> {
    pool: CachePool<B>,
    slots: Vec<Slot>,
    /// Snapshots of the sequences at the depth, for caches that cannot be shortened to it.
    kept: Vec<Slot>,
    depth: usize,
    /// Where logits are read to, as in an engine: not into new memory in each step.
    logits: Vec<f32>,
}

impl<B: Backend> Filled<B> {
    /// Empty caches.
    fn new(model: &Model<B>, n_slots: usize) -> Result<Self> {
        let mut pool = model.pool(PoolOptions::default())?;
        let slots = (0..n_slots).map(|_| pool.allocate()).collect::<zmlx_models::Result<_>>()?;
        Ok(Self { pool, slots, kept: Vec::new(), depth: 0, logits: Vec::new() })
    }
}

impl<B: Backend> Loaded<B> {
    pub(super) fn new(
        backend: B,
        checkpoint: &Checkpoint,
        lead: Option<Arc<dyn Lead>>,
        on_progress: OnProgress<'_>,
    ) -> Result<Self> {
        let backend = Hooked::new(backend, Probe::default());
        let mut model =
            Model::load(backend, checkpoint, &mut |done, of| on_progress(Work::Loading, done, of))?;
        if let Some(lead) = lead {
            model.lead(lead);
        }
        let filled = Filled::new(&model, 1)?;
        Ok(Self { model, filled })
    }

    fn probe(&self) -> &Probe {
        self.model.backend().hooks()
    }

    /// Removes the decoded tokens.
    fn rewind(&mut self) -> Result<()> {
        let Filled { pool, slots, kept, depth, .. } = &mut self.filled;
        for (i, slot) in slots.iter_mut().enumerate() {
            match kept.get(i) {
                Some(kept) => {
                    pool.free(*slot)?;
                    *slot = pool.fork(*kept, *depth)?;
                }
                None => pool.truncate(*slot, *depth)?,
            }
        }
        Ok(())
    }
}

/// The logits of one more token of every sequence; `i` selects the tokens.
fn forward<B: Backend>(
    model: &Model<B>,
    filled: &mut Filled<B>,
    fusion: &Fusion,
    i: usize,
    tap: Option<Tap<'_, B>>,
) -> Result<B::Tensor> {
    // The tokens differ between steps and sequences, so that different experts are chosen. They are the same for every
    // path.
    let tokens = seeded_tokens(0x5eed + i as u64, filled.slots.len(), model.architecture().vocab_size);
    let of = |(slot, tokens): (&Slot, _)| Input { slot: *slot, tokens, logits: Logits::Last };
    let inputs: Vec<_> = filled.slots.iter().zip(tokens.chunks(1)).map(of).collect();
    Ok(model.forward_tapped(&mut filled.pool, &inputs, fusion, tap)?)
}

/// As [`forward`], and waits for the logits.
fn step<B: Backend>(
    model: &Model<B>,
    filled: &mut Filled<B>,
    fusion: &Fusion,
    i: usize,
    tap: Option<Tap<'_, B>>,
) -> Result<()> {
    let y = forward(model, filled, fusion, i, tap)?;
    model.backend().read(&y, &mut filled.logits)?;
    Ok(())
}

/// A step that the device has begun: its logits and the tokens that it chooses.
struct Ahead<B: Backend> {
    logits: B::Tensor,
    ids: Vec<B::Indices>,
}

impl<B: Backend> Ahead<B> {
    /// Waits for the tokens. As the engine does, it reads the logits only if the device does not tell everything about its choices.
    fn read(&self, b: &B, logits: &mut Vec<f32>) -> Result<()> {
        let mut needs_logits = false;
        for id in &self.ids {
            needs_logits |= b.read_choice(id)?.is_none();
        }
        if needs_logits {
            b.read(&self.logits, logits)?;
            for id in &self.ids {
                b.read_indices(id, &mut Vec::new())?;
            }
        }
        Ok(())
    }
}

/// Begins a step as the engine does: the device chooses the next tokens. It is left to the device and returned; where the device
/// cannot choose, it is waited for.
fn begin<B: Backend>(
    model: &Model<B>,
    filled: &mut Filled<B>,
    fusion: &Fusion,
    i: usize,
) -> Result<Option<Ahead<B>>> {
    let b = model.backend();
    let y = forward(model, filled, fusion, i, None)?;
    let settings =
        SampleSettings { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition: None, seed: 0 };
    let rows: Vec<_> = (0..filled.slots.len()).map(|row| (row, settings)).collect();
    let ids = b.sample(&y, &rows)?;
    let Some(ids) = ids.into_iter().collect::<Option<Vec<_>>>() else {
        b.read(&y, &mut filled.logits)?;
        return Ok(None);
    };
    let logits = b.eval_async(y, &ids.iter().collect::<Vec<_>>(), HostNeeds::Choices)?;
    Ok(Some(Ahead { logits, ids }))
}

impl<B: Instrumented> Arm for Loaded<B> {
    fn check(&self, fusions: &[Fusion]) -> Result<Option<Vec<Difference>>> {
        let vocab = self.model.architecture().vocab_size;
        let limit = self.model.architecture().max_position_embeddings;
        let prompt = seeded_tokens(1, CHECK_PROMPT.min(limit.saturating_sub(1)).max(1), vocab);
        let n_tokens = CHECK_TOKENS.min(limit.saturating_sub(prompt.len()));
        let Some(first) = fusions.first() else { return Ok(Some(Vec::new())) };
        let Some(workload) = Workload::greedy(&self.model, prompt, n_tokens, first)? else {
            return Ok(None);
        };
        Ok(Some(fusions.iter().map(|f| workload.compare(&self.model, f)).collect::<Result<_>>()?))
    }

    fn prompt(&self, fusion: &Fusion, tokens: &[u32]) -> Result<f64> {
        let Filled { mut pool, slots, .. } = Filled::new(&self.model, 1)?;
        let started = Instant::now();
        let y = self.model.prefill(&mut pool, slots[0], tokens, fusion, &mut |_, _| ())?;
        self.model.backend().read(&y, &mut Vec::new())?;
        Ok(started.elapsed().as_secs_f64())
    }

    fn fill(
        &mut self,
        fusion: &Fusion,
        depth: usize,
        batch: usize,
        on_progress: OnProgress<'_>,
    ) -> Result<()> {
        let Filled { mut pool, slots, logits, .. } = Filled::new(&self.model, batch)?;
        for (i, slot) in slots.iter().enumerate().filter(|_| depth > 0) {
            let tokens = seeded_tokens(i as u64 + 1, depth, self.model.architecture().vocab_size);
            let mut on_chunk =
                |done: usize, _: usize| on_progress(Work::FillingCaches, i * depth + done, batch * depth);
            self.model.prefill(&mut pool, *slot, &tokens, fusion, &mut on_chunk)?;
        }
        let mut kinds = self.model.architecture().layers.iter().filter_map(|layer| layer.mixer.cache_kind());
        let can_be_shortened =
            kinds.all(|kind| matches!(kind, CacheKind::Full { .. } | CacheKind::Latent { .. }));
        let mut kept = Vec::new();
        if depth > 0 && !can_be_shortened {
            for slot in &slots {
                kept.push(pool.fork(*slot, depth)?);
            }
        }
        self.filled = Filled { pool, slots, kept, depth, logits };
        Ok(())
    }

    fn decode(&mut self, fusion: &Fusion, n: usize) -> Result<Decoded> {
        let mut seconds = Vec::with_capacity(n);
        let b = self.model.backend();
        let before = b.barriers();
        let (mut since, mut ahead) = (Instant::now(), None::<Ahead<Hook<B>>>);
        for i in 0..=n {
            let next = if i < n { begin(&self.model, &mut self.filled, fusion, i)? } else { None };
            let is_waited_for = i < n && next.is_none();
            // The device computes step `i` while the one before is read.
            let done = std::mem::replace(&mut ahead, next);
            if let Some(done) = &done {
                done.read(b, &mut self.filled.logits)?;
            }
            if done.is_some() || is_waited_for {
                seconds.push(since.elapsed().as_secs_f64());
                since = Instant::now();
            }
        }
        let after = self.model.backend().barriers();
        self.rewind()?;
        let since = |(before, after): (Barriers, Barriers)| Barriers {
            n: after.n - before.n,
            waited: after.waited - before.waited,
        };
        Ok(Decoded { seconds, barriers: before.zip(after).map(since) })
    }

    fn count(&mut self, fusion: &Fusion) -> Result<usize> {
        self.probe().set(Mode::Count);
        let done = step(&self.model, &mut self.filled, fusion, 0, None);
        // Reading launches nothing.
        let n_ops = self.probe().take().iter().filter(|r| !r.op.starts_with("read")).count();
        self.probe().set(Mode::Off);
        done?;
        self.rewind()?;
        Ok(n_ops)
    }

    fn profile(&mut self, fusion: &Fusion, n: usize) -> Result<Vec<(Phase, f64)>> {
        let mut seconds = [0.0; Phase::ALL.len()];
        let mut total = 0.0;
        self.probe().set(Mode::Time);
        let probe = self.model.backend().hooks();
        for i in 0..n {
            let mut parts = Vec::new();
            let mut tap = |name: &str, _: TapValue<'_, Hook<B>>| {
                if let Some(part) = Part::ending_at(name) {
                    parts.push((part, probe.take()));
                }
                None
            };
            let started = Instant::now();
            step(&self.model, &mut self.filled, fusion, i, Some(&mut tap))?;
            total += started.elapsed().as_secs_f64();
            parts.push((Part::Head, probe.take()));
            for (part, ran) in parts {
                for (phase, r) in phases(part, &ran).into_iter().zip(&ran) {
                    seconds[phase as usize] += r.time.as_secs_f64();
                }
            }
        }
        self.probe().set(Mode::Off);
        self.rewind()?;
        let inside: f64 = seconds.iter().sum();
        seconds[Phase::Sync as usize] = (total - inside).max(0.0);
        Ok(Phase::ALL.into_iter().map(|p| (p, seconds[p as usize] / n.max(1) as f64)).collect())
    }

    fn peak_memory_bytes(&self) -> Option<u64> {
        self.model.backend().peak_memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use zmlx_kernels::Hooks;
    use zmlx_kernels::cpu::CpuBackend;

    use super::*;

    type Result<T> = zmlx_kernels::Result<T>;

    /// The CPU as a device that chooses tokens, and what of a step began or was read when.
    #[derive(Default)]
    struct Choosing {
        log: RefCell<Vec<&'static str>>,
    }

    impl Hooks<CpuBackend> for Choosing {
        fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
            if ["embed", "read", "read_indices"].contains(&op) {
                self.log.borrow_mut().push(op);
            }
            run()
        }

        fn sample(
            &self,
            backend: &CpuBackend,
            _: &<CpuBackend as Backend>::Tensor,
            rows: &[(usize, SampleSettings<'_, <CpuBackend as Backend>::Indices>)],
        ) -> Result<Vec<Option<<CpuBackend as Backend>::Indices>>> {
            rows.iter().map(|_| backend.indices(&[1], &[1]).map(Some)).collect()
        }
    }

    #[test]
    fn the_next_step_begins_before_the_host_reads() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/austen-qwen3-moe-4bit");
        let checkpoint = Checkpoint::open(dir.as_ref()).unwrap();
        let backend = Hooked::new(CpuBackend::new(Some(1)).unwrap(), Choosing::default());
        let mut arm = Loaded::new(backend, &checkpoint, None, &mut |_, _, _| ()).unwrap();
        let log = |arm: &Loaded<Hooked<CpuBackend, Choosing>>| {
            arm.model.backend().inner().hooks().log.take().join(" ")
        };
        assert_eq!(arm.decode(&Fusion::STOCK, 3).unwrap().seconds.len(), 3);
        let read = "read read_indices";
        assert_eq!(log(&arm), format!("embed embed {read} embed {read} {read}"));
        // The same for several sequences.
        arm.fill(&Fusion::STOCK, 0, 2, &mut |_, _, _| ()).unwrap();
        assert_eq!(arm.decode(&Fusion::STOCK, 2).unwrap().seconds.len(), 2);
        let read = "read read_indices read_indices";
        assert_eq!(log(&arm), format!("embed embed {read} {read}"));
    }
}
