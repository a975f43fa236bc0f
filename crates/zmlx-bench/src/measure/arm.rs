//! A model on a backend that is ready to be measured, without the backend's types.

use std::time::Instant;

use zmlx_kernels::{Backend, Barriers, CacheKind, Fusion, Hooked, Instrumented};
use zmlx_models::{CachePool, Checkpoint, Input, Logits, Model, PoolOptions, Slot, Tap, TapValue};

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

    /// Runs `n` steps that decode one token of every sequence. Afterwards the caches are as before.
    fn decode(&mut self, fusion: &Fusion, n: usize) -> Result<Decoded>;

    /// The number of ops in one such step, with compositions counted as their parts.
    fn count(&mut self, fusion: &Fusion) -> Result<usize>;

    /// The time per step in each phase, in seconds, from `n` steps whose ops are timed one by one.
    fn profile(&mut self, fusion: &Fusion, n: usize) -> Result<Vec<(Phase, f64)>>;
}

/// The times of decoding.
#[derive(Debug)]
pub(super) struct Decoded {
    /// The time of each step, in seconds.
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
}

impl<B: Backend> Filled<B> {
    /// Empty caches.
    fn new(model: &Model<B>, n_slots: usize) -> Result<Self> {
        let mut pool = model.pool(PoolOptions::default())?;
        let slots = (0..n_slots).map(|_| pool.allocate()).collect::<zmlx_models::Result<_>>()?;
        Ok(Self { pool, slots, kept: Vec::new(), depth: 0 })
    }
}

impl<B: Backend> Loaded<B> {
    pub(super) fn new(backend: B, checkpoint: &Checkpoint, on_progress: OnProgress<'_>) -> Result<Self> {
        let backend = Hooked::new(backend, Probe::default());
        let model = Model::load(backend, checkpoint, &mut |done, of| on_progress(Work::Loading, done, of))?;
        let filled = Filled::new(&model, 1)?;
        Ok(Self { model, filled })
    }

    fn probe(&self) -> &Probe {
        self.model.backend().hooks()
    }

    /// Removes the decoded tokens.
    fn rewind(&mut self) -> Result<()> {
        let Filled { pool, slots, kept, depth } = &mut self.filled;
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

/// Decodes one token of every sequence; `i` selects the tokens.
fn step<B: Backend>(
    model: &Model<B>,
    filled: &mut Filled<B>,
    fusion: &Fusion,
    i: usize,
    tap: Option<Tap<'_, B>>,
) -> Result<()> {
    // The tokens differ between steps and sequences, so that different experts are chosen. They are the same for every
    // path.
    let tokens = seeded_tokens(0x5eed + i as u64, filled.slots.len(), model.architecture().vocab_size);
    let of = |(slot, tokens): (&Slot, _)| Input { slot: *slot, tokens, logits: Logits::Last };
    let inputs: Vec<_> = filled.slots.iter().zip(tokens.chunks(1)).map(of).collect();
    let y = model.forward_tapped(&mut filled.pool, &inputs, fusion, tap)?;
    // Reading waits for the device.
    model.backend().read(&y, &mut Vec::new())?;
    Ok(())
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
        let Filled { mut pool, slots, .. } = Filled::new(&self.model, batch)?;
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
        self.filled = Filled { pool, slots, kept, depth };
        Ok(())
    }

    fn decode(&mut self, fusion: &Fusion, n: usize) -> Result<Decoded> {
        let mut seconds = Vec::with_capacity(n);
        let before = self.model.backend().barriers();
        for i in 0..n {
            let started = Instant::now();
            step(&self.model, &mut self.filled, fusion, i, None)?;
            seconds.push(started.elapsed().as_secs_f64());
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
}
