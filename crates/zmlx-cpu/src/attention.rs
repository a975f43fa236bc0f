//! Causal attention over a growing cache: separate keys and values, or one latent that serves as both.

mod cache;
mod cells;
mod codes;
mod kernel;
mod pages;
mod softmax;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::level::Level;
use super::pool::{CpuTensor, Shape};
use super::sync_ptr::SyncPtr;
use super::team::{Kind, Work};
use super::{CpuBackend, CpuCache, CpuStep, CpuWeight, lock, team};
use zmlx_core::check::ensure;
use zmlx_core::{AttentionInputs, AttentionSettings, CacheKind, MlaInputs, Result, Span};

pub(crate) use cache::TokenCache;
use cells::WIDE;
pub(super) use kernel::Partial;
use kernel::{JOB_ROWS, Keys, QueryRows, ROWS, Seen, attend};

/// Multiply-adds that make a job worth its overhead: about ten microseconds.
const MIN_PART: usize = 1 << 20;

impl CpuBackend {
    pub(super) fn attention_heads(
        &self,
        inputs: AttentionInputs<'_, CpuTensor, CpuWeight>,
        cache: &mut CpuCache,
        step: &CpuStep,
        settings: &AttentionSettings,
    ) -> Result<CpuTensor> {
        const OP: &str = "attention";
        let cache = cache.tokens(OP)?;
        let (n_kv_heads, head_dim) = check_kind(OP, cache, settings)?;
        let AttentionInputs { q, k, v, sinks } = inputs;
        let n_tokens = q.dims()[0];
        let kv_shape = [n_tokens, n_kv_heads, head_dim];
        ensure(
            k.dims() == kv_shape && v.dims() == kv_shape,
            OP,
            "k, v",
            format_args!("{kv_shape:?}"),
            (k, v),
        )?;
        let sinks = match (sinks, q.dims()) {
            (Some(sinks), &[_, n_heads, _]) => Some(sinks.vector(OP, n_heads)?),
            // Other numbers of dimensions are refused below.
            _ => None,
        };
        self.check_queries(OP, q, cache, step)?;
        cache.append(step.spans(), k, v)?;
        self.attend_spans(OP, [q, q], cache, step, (settings.scale, sinks))
    }

    pub(super) fn attention_to_others(
        &self,
        q: &CpuTensor,
        cache: &CpuCache,
        step: &CpuStep,
        settings: &AttentionSettings,
    ) -> Result<CpuTensor> {
        const OP: &str = "attention_shared";
        let cache = cache.written_tokens(OP)?;
        check_kind(OP, cache, settings)?;
        self.check_queries(OP, q, cache, step)?;
        cache.check_room(OP, step.spans())?;
        self.attend_spans(OP, [q, q], cache, step, (settings.scale, None))
    }

    pub(super) fn attention_latent(
        &self,
        inputs: MlaInputs<'_, CpuTensor>,
        cache: &mut CpuCache,
        step: &CpuStep,
        scale: f32,
    ) -> Result<CpuTensor> {
        const OP: &str = "latent_attention";
        let cache = cache.tokens(OP)?;
        let CacheKind::Latent { rank, rope_dim } = cache.kind else {
            return ensure(false, OP, "cache", "a latent", cache.kind).map(|()| unreachable!());
        };
        let MlaInputs { q_nope, q_pe, kv, k_pe } = inputs;
        let &[n_tokens, n_heads, _] = q_nope.dims() else {
            return ensure(false, OP, "q_nope", "[n, n_heads, rank]", q_nope).map(|()| unreachable!());
        };
        ensure(
            q_nope.dims() == [n_tokens, n_heads, rank],
            OP,
            "q_nope",
            format_args!("[n, n_heads, {rank}]"),
            q_nope,
        )?;
        ensure(
            q_pe.dims() == [n_tokens, n_heads, rope_dim],
            OP,
            "q_pe",
            format_args!("[n, n_heads, {rope_dim}]"),
            q_pe,
        )?;
        ensure(kv.dims() == [n_tokens, rank], OP, "kv", format_args!("[n, {rank}]"), kv)?;
        ensure(k_pe.dims() == [n_tokens, rope_dim], OP, "k_pe", format_args!("[n, {rope_dim}]"), k_pe)?;
        self.check_queries(OP, q_nope, cache, step)?;
        cache.append(step.spans(), kv, k_pe)?;
        self.attend_spans(OP, [q_nope, q_pe], cache, step, (scale, None))
    }

    /// Checks the queries against the cache and the step, and the step against the cache.
    fn check_queries(
        &self,
        op: &'static str,
        q: &CpuTensor,
        cache: &TokenCache,
        step: &CpuStep,
    ) -> Result<()> {
        let (width, n_kv_heads) = (cache.widths()[0], cache.n_heads());
        let fits =
            matches!(*q.dims(), [_, n_heads, dim] if dim == width && n_heads.is_multiple_of(n_kv_heads));
        ensure(fits, op, "q", format_args!("[n, a multiple of {n_kv_heads}, {width}]"), q)?;
        step.check(op, "q", q)?;
        cache.check(op, step.spans())
    }

    /// Attends to everything in the cache up to the end of the step's spans. The arguments have been checked.
    fn attend_spans(
        &self,
        op: &'static str,
        q: [&CpuTensor; 2],
        cache: &TokenCache,
        step: &CpuStep,
        (scale, sinks): (f32, Option<&[f32]>),
    ) -> Result<CpuTensor> {
        let &[n_tokens, n_heads, _] = q[0].dims() else {
            return ensure(false, op, "q", "three dimensions", q[0]).map(|()| unreachable!());
        };
        let spans = step.spans();
        let jobs = Jobs::new(cache, spans, n_heads, self.n_threads());
        let shape = Shape::new(op, &[n_tokens, n_heads, jobs.v_dim])?;
        let mut out = self.floats.take(op, shape.len())?;
        let n_states = if jobs.n_parts > 1 { jobs.len() * jobs.state_len() } else { 0 };
        let mut states = self.floats.take(op, n_states)?;
        let (out_ptr, states_ptr) = (SyncPtr::new(&mut out), SyncPtr::new(&mut states));
        let attend = attend(self.level);
        // Each row is one head of one token.
        let sink = |job: &Job<'_>, r: usize| sinks.map(|sinks| sinks[job.rows[r] % n_heads]);
        let next = AtomicUsize::new(0);
        lock(&self.team).run(Work::new(Kind::Attention, jobs.work()), &|m| {
            let mut memory = lock(&self.scratch[m.idx()]);
            let Partial { scratch, state: own } = &mut memory.attention;
            if jobs.n_parts == 1 {
                own.resize(jobs.state_len(), 0.0);
            }
            let mut last_whole = None;
            loop {
                // The last rows see the most positions. They go first, so that the short jobs fill the gaps at the end.
                let idx = next.fetch_add(1, Ordering::Relaxed);
                if idx >= jobs.len() {
                    break;
                }
                let idx = jobs.len() - 1 - idx;
                let job = jobs.get(idx);
                let queries = job.queries(q, scale);
                // Parts of the same rows follow each other.
                let is_new = last_whole.replace(idx / jobs.n_parts) != Some(idx / jobs.n_parts);
                let queries = is_new.then_some(&queries);
                let state = match jobs.n_parts {
                    1 => &mut own[..job.state_len()],
                    // SAFETY: each job has its own part of the buffer.
                    _ => unsafe { states_ptr.slice(idx * jobs.state_len(), job.state_len()) },
                };
                // SAFETY: the level was detected when the backend was made; buffers are as the job says.
                unsafe { attend(&job.keys, queries, job.seen(), job.positions.clone(), scratch, state) };
                if jobs.n_parts == 1 {
                    for r in 0..job.n_rows {
                        // SAFETY: each row of the output belongs to one job.
                        let out = unsafe { out_ptr.slice(job.rows[r] * jobs.v_dim, jobs.v_dim) };
                        job.finish(self.level, std::iter::once(&*state), r, sink(&job, r), out);
                    }
                }
            }
            if jobs.n_parts > 1 {
                m.barrier();
                for from in (0..jobs.len()).step_by(jobs.n_parts) {
                    let job = jobs.get(from);
                    // SAFETY: no state is written any more.
                    let states = (from..from + jobs.n_parts)
                        .map(|idx| unsafe { states_ptr.read(idx * jobs.state_len(), job.state_len()) });
                    for r in (m.idx()..job.n_rows).step_by(m.n_members()) {
                        // SAFETY: each row of the output belongs to one job, and each job's row to one member.
                        let out = unsafe { out_ptr.slice(job.rows[r] * jobs.v_dim, jobs.v_dim) };
                        job.finish(self.level, states.clone(), r, sink(&job, r), out);
                    }
                }
            }
        });
        Ok(CpuTensor::new(shape, out))
    }
}

/// Number of heads and their width in a cache of keys and values. Its window must be that of the settings.
fn check_kind(op: &'static str, cache: &TokenCache, settings: &AttentionSettings) -> Result<(usize, usize)> {
    let (n_kv_heads, head_dim, window) = match cache.kind {
        CacheKind::Full { n_kv_heads, head_dim } => (n_kv_heads, head_dim, None),
        CacheKind::Window { n_kv_heads, head_dim, window } => (n_kv_heads, head_dim, Some(window)),
        _ => {
            return ensure(false, op, "cache", "keys and values", cache.kind).map(|()| unreachable!());
        }
    };
    let want = format_args!("that of the cache, {window:?}");
    ensure(settings.window == window, op, "window", want, settings.window)?;
    Ok((n_kv_heads, head_dim))
}

/// The work of one call. A job is some query rows of one span and kv head, against all positions or, if that gives too
/// few jobs for the team, against a part of them.
struct Jobs<'a> {
    cache: &'a TokenCache,
    spans: &'a [Span],
    n_heads: usize,
    /// Query heads per kv head.
    group: usize,
    n_parts: usize,
    /// Number of elements in a result.
    v_dim: usize,
    /// Jobs of all spans, before positions are split into parts.
    n_whole: usize,
}

/// Some query rows against some positions of one kv head.
struct Job<'a> {
    keys: Keys<'a>,
    /// The index of each row among all rows of queries and of results.
    rows: [usize; JOB_ROWS],
    n_rows: usize,
    /// The positions that each row sees. Rows that do not exist see nothing.
    seen: [Seen; JOB_ROWS],
    positions: Range<usize>,
    q_widths: [usize; 2],
}

impl<'a> Jobs<'a> {
    fn new(cache: &'a TokenCache, spans: &'a [Span], n_heads: usize, n_threads: usize) -> Self {
        let group = n_heads / cache.n_heads();
        // The number of elements in a result, and the multiply-adds of a row with one position.
        let (v_dim, row_work) = match cache.kind {
            CacheKind::Latent { rank, rope_dim } => (rank, 2 * rank + rope_dim),
            _ => (cache.widths()[0], 2 * cache.widths()[0]),
        };
        let mut jobs = Self { cache, spans, n_heads, group, n_parts: 1, v_dim, n_whole: 0 };
        jobs.n_whole = spans.iter().map(|s| jobs.n_of(s)).sum();
        let n_positions = |s: &Span| s.start + s.n_tokens - cache.sees_from(s.start + 1).min(s.start);
        let n_positions = spans.iter().map(n_positions).max().unwrap_or(0);
        if n_threads > 1 && jobs.n_whole > 0 {
            let work = n_positions * jobs.most_rows() * row_work;
            // Four jobs for each thread, so that no thread waits long for the last ones.
            jobs.n_parts = (4 * n_threads).div_ceil(jobs.n_whole).min(work / MIN_PART).max(1);
        }
        jobs
    }

    /// The approximate number of multiply-adds of all jobs.
    fn work(&self) -> usize {
        let [first, second] = self.cache.widths();
        let of = |s: &Span| s.n_tokens * (s.start + s.n_tokens);
        self.spans.iter().map(of).sum::<usize>().saturating_mul(self.n_heads * (first + second))
    }

    /// Number of rows in the largest job.
    fn most_rows(&self) -> usize {
        let most = self.spans.iter().map(|s| s.n_tokens * self.group).max().unwrap_or(0);
        most.next_multiple_of(ROWS).min(JOB_ROWS)
    }

    /// Number of jobs in a span.
    fn n_of(&self, span: &Span) -> usize {
        (span.n_tokens * self.group).div_ceil(JOB_ROWS) * self.cache.n_heads()
    }

    fn len(&self) -> usize {
        self.n_whole * self.n_parts
    }

    /// Number of floats in the largest job's state.
    fn state_len(&self) -> usize {
        kernel::state_len(self.most_rows(), cells::stride(self.v_dim))
    }

    fn get(&self, idx: usize) -> Job<'a> {
        let (mut whole, part) = (idx / self.n_parts, idx % self.n_parts);
        let mut first_token = 0;
        let mut spans = self.spans.iter();
        let span = loop {
            let span = spans.next().expect("jobs are counted from the spans");
            let n = self.n_of(span);
            if whole < n {
                break span;
            }
            whole -= n;
            first_token += span.n_tokens;
        };
        let n_kv_heads = self.cache.n_heads();
        let (block, kv_head) = (whole / n_kv_heads, whole % n_kv_heads);
        let first = block * JOB_ROWS;
        let n_rows = JOB_ROWS.min(span.n_tokens * self.group - first);
        let (mut rows, mut seen) = ([0; JOB_ROWS], [Seen::default(); JOB_ROWS]);
        for i in 0..n_rows {
            // Row r is token r / group and head r % group in the group of this kv head.
            let r = first + i;
            rows[i] = (first_token + r / self.group) * self.n_heads + kv_head * self.group + r % self.group;
            let to = span.start + r / self.group + 1;
            seen[i] = Seen { from: self.cache.sees_from(to), to };
        }
        // Start at the beginning of a tile.
        let start = seen[0].from / WIDE * WIDE;
        let Range { start: from, end: to } =
            team::part(seen[n_rows - 1].to - start, WIDE, self.n_parts, part);
        let positions = start + from..start + to;
        let [first, second] = [0, 1].map(|part| self.cache.rows(span.slot, kv_head, part));
        let widths = self.cache.widths();
        let (keys, q_widths) = match self.cache.kind {
            CacheKind::Latent { .. } => {
                (Keys { parts: [Some(first), Some(second)], widths, values: None }, widths)
            }
            _ => (Keys { parts: [Some(first), None], widths, values: Some(second) }, [widths[0], 0]),
        };
        Job { keys, rows, n_rows, seen, positions, q_widths }
    }
}

impl Job<'_> {
    /// What the rows see, padded with rows that see nothing to the number that the kernel needs.
    fn seen(&self) -> &[Seen] {
        &self.seen[..self.n_rows.next_multiple_of(ROWS)]
    }

    /// Number of floats in its state: for each row the sums of the values, the largest score and the sum of the
    /// weights.
    fn state_len(&self) -> usize {
        kernel::state_len(self.seen().len(), self.keys.v_stride())
    }

    /// The rows' queries with the factor `scale`. `q` has the two parts of the queries, or the same tensor twice.
    fn queries<'q>(&'q self, q: [&'q CpuTensor; 2], scale: f32) -> QueryRows<'q> {
        let parts = q.map(CpuTensor::values);
        QueryRows { parts, widths: self.q_widths, rows: &self.rows[..self.n_rows], scale }
    }

    /// The result of row `r`, computed from the states of all parts.
    fn finish<'p>(
        &self,
        level: Level,
        states: impl Iterator<Item = &'p [f32]> + Clone,
        r: usize,
        sink: Option<f32>,
        out: &mut [f32],
    ) {
        let (n_rows, v_stride) = (self.seen().len(), self.keys.v_stride());
        level.vectorize(
            #[inline(always)]
            || kernel::finish(states, (r, n_rows), v_stride, sink, out),
        );
    }
}
