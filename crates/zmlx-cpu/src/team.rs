//! A persistent team of threads with a barrier cheap enough to separate the phases of one token.
//!
//! The caller is member 0; the others are long-lived workers. Between jobs and at barriers a member spins, then
//! yields, then (workers only) parks, so that an idle process uses no processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use zmlx_core::Barriers;

/// Spins before the first yield: a barrier of the team takes less.
const SPINS: u32 = 500;
/// Yields before a worker parks.
const YIELDS: u32 = 4_000;

/// A job: called once per member with its [`Member`].
type TeamJob<'a> = dyn Fn(&Member<'_>) + Sync + 'a;

struct TeamState {
    n_members: usize,
    /// Number of jobs started; workers wait for it to change.
    epoch: AtomicUsize,
    /// The job of this epoch: a pointer to a `&TeamJob` on the caller's stack, valid until every member has finished.
    job: AtomicPtr<&'static TeamJob<'static>>,
    /// Workers that finished the job of this epoch.
    n_finished: AtomicUsize,
    /// Members that arrived at the current barrier, and the number of barriers passed.
    n_arrived: AtomicUsize,
    barrier: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Barriers that the caller passed, the end of a job being one, and the nanoseconds that it waited there.
    n_passed: AtomicU64,
    waited: AtomicU64,
}

impl TeamState {
    /// Waits while `is_pending`.
    fn wait(&self, is_caller: bool, is_pending: impl Fn() -> bool) {
        if is_caller {
            self.n_passed.fetch_add(1, Ordering::Relaxed);
        }
        if !is_pending() {
            return;
        }
        // Only a thread that waits anyway looks at the clock.
        let since = is_caller.then(Instant::now);
        let mut wait = Wait::default();
        while is_pending() {
            wait.pause();
        }
        if let Some(since) = since {
            self.waited.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

/// Of `n_items`, parted evenly into `n` parts that begin at multiples of `unit`, part `idx`.
pub(crate) fn part(n_items: usize, unit: usize, n: usize, idx: usize) -> std::ops::Range<usize> {
    let n_units = n_items.div_ceil(unit);
    let at = |i: usize| (n_units * i / n * unit).min(n_items);
    at(idx)..at(idx + 1)
}

/// One thread's place in the team during a job.
pub(crate) struct Member<'a> {
    idx: usize,
    shared: &'a TeamState,
}

impl Member<'_> {
    /// This member's share of `n_items` items in multiples of `unit`: the shares of all members cover them once.
    pub(crate) fn share(&self, n_items: usize, unit: usize) -> std::ops::Range<usize> {
        part(n_items, unit, self.shared.n_members, self.idx)
    }

    /// This member's number: 0 is the caller.
    pub(crate) fn idx(&self) -> usize {
        self.idx
    }

    /// Waits until every member has arrived; what they wrote before is then visible.
    pub(crate) fn barrier(&self) {
        let s = self.shared;
        if s.n_members == 1 {
            return;
        }
        let round = s.barrier.load(Ordering::Acquire);
        if s.n_arrived.fetch_add(1, Ordering::AcqRel) + 1 == s.n_members {
            s.n_arrived.store(0, Ordering::Relaxed);
            s.barrier.store(round.wrapping_add(1), Ordering::Release);
        }
        s.wait(self.idx == 0, || {
            s.barrier.load(Ordering::Acquire) == round && !s.panicked.load(Ordering::Relaxed)
        });
    }
}

/// Spins first, yields later.
#[derive(Default)]
struct Wait {
    n: u32,
}

impl Wait {
    fn pause(&mut self) {
        if self.n < SPINS {
            self.n += 1;
            std::hint::spin_loop();
        } else {
            self.n = self.n.saturating_add(1);
            thread::yield_now();
        }
    }

    fn is_long(&self) -> bool {
        self.n > SPINS + YIELDS
    }
}

/// The threads. Dropping the team ends them.
pub(crate) struct Team {
    shared: Arc<TeamState>,
    workers: Vec<(Thread, JoinHandle<()>)>,
}

impl Team {
    /// A team of `n_members`, at least 1, the caller included. Where the system refuses a thread, fewer.
    pub(crate) fn new(n_members: usize) -> Self {
        let shared = |n_members| {
            Arc::new(TeamState {
                n_members,
                epoch: AtomicUsize::new(0),
                job: AtomicPtr::new(std::ptr::null_mut()),
                n_finished: AtomicUsize::new(0),
                n_arrived: AtomicUsize::new(0),
                barrier: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
                stop: AtomicBool::new(false),
                n_passed: AtomicU64::new(0),
                waited: AtomicU64::new(0),
            })
        };
        let team = shared(n_members.max(1));
        let mut workers = Vec::new();
        for idx in 1..team.n_members {
            let s = Arc::clone(&team);
            match thread::Builder::new().name(format!("zmlx-{idx}")).spawn(move || work(idx, &s)) {
                Ok(handle) => workers.push((handle.thread().clone(), handle)),
                Err(error) => {
                    tracing::warn!(%error, "no thread for the team: computing on one");
                    drop(Self { shared: team, workers });
                    return Self { shared: shared(1), workers: Vec::new() };
                }
            }
        }
        Self { shared: team, workers }
    }

    /// Number of members.
    pub(crate) fn n_members(&self) -> usize {
        self.shared.n_members
    }

    /// Barriers so far; `None` where one thread computes alone.
    pub(crate) fn barriers(&self) -> Barriers {
        Barriers {
            n: self.shared.n_passed.load(Ordering::Relaxed),
            waited: Duration::from_nanos(self.shared.waited.load(Ordering::Relaxed)),
        }
    }

    /// Runs `job` once on every member and returns when all are done. `&mut` because jobs do not nest.
    ///
    /// # Panics
    /// If the job panics on any member.
    pub(crate) fn run(&mut self, job: &TeamJob<'_>) {
        let s = &*self.shared;
        let me = Member { idx: 0, shared: s };
        if s.n_members == 1 {
            job(&me);
            return;
        }
        // SAFETY: only the lifetime changes. The workers use the reference only between the store of the epoch below
        // and their increment of `n_finished`, and `Finish` does not let this function return (or unwind) before
        // all of them have made it.
        let mut job: &'static TeamJob<'static> =
            unsafe { std::mem::transmute::<&TeamJob<'_>, &'static TeamJob<'static>>(job) };
        s.n_finished.store(0, Ordering::Relaxed);
        s.panicked.store(false, Ordering::Relaxed);
        s.job.store(&raw mut job, Ordering::Relaxed);
        s.epoch.fetch_add(1, Ordering::SeqCst);
        for (thread, _) in &self.workers {
            thread.unpark();
        }
        let finish = Finish(s);
        job(&me);
        drop(finish);
        assert!(!s.panicked.load(Ordering::Relaxed), "a worker of the thread team panicked");
    }
}

/// Waits for the workers, also when the caller's part of the job unwinds.
struct Finish<'a>(&'a TeamState);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.panicked.store(true, Ordering::Relaxed); // releases workers that wait at a barrier
        }
        self.0.wait(true, || self.0.n_finished.load(Ordering::Acquire) + 1 < self.0.n_members);
        self.0.n_arrived.store(0, Ordering::Relaxed); // an unwound job may have left half a barrier
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in self.workers.drain(..) {
            thread.unpark();
            let _ = handle.join(); // a worker catches its panics
        }
    }
}

fn work(idx: usize, s: &TeamState) {
    let mut seen = 0;
    loop {
        let mut wait = Wait::default();
        loop {
            let epoch = s.epoch.load(Ordering::Acquire);
            if epoch != seen {
                seen = epoch;
                break;
            }
            if wait.is_long() {
                thread::park(); // an unpark that came before makes this return at once
            } else {
                wait.pause();
            }
        }
        if s.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the epoch changed, so `run` stored a pointer to a live `&TeamJob` before, and keeps it alive until this
        // worker increments `n_finished`.
        let job = unsafe { *s.job.load(Ordering::Relaxed) };
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&Member { idx, shared: s })));
        if outcome.is_err() {
            s.panicked.store(true, Ordering::Relaxed);
        }
        s.n_finished.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_runs_and_barriers_order_their_writes() {
        for n in [1, 2, 3, 5] {
            let mut team = Team::new(n);
            let slots: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..200 {
                team.run(&|m| {
                    slots[m.idx()].store(round, Ordering::Relaxed);
                    m.barrier();
                    assert!(slots.iter().all(|s| s.load(Ordering::Relaxed) == round));
                    m.barrier();
                });
            }
            // Two in the job and its end.
            let n_barriers = if n == 1 { 0 } else { 199 * 3 };
            assert_eq!(team.barriers().n, n_barriers);
        }
    }

    #[test]
    fn shares_cover_every_item_once() {
        let mut team = Team::new(3);
        for (n_items, unit) in [(0, 4), (1, 4), (7, 4), (64, 4), (65, 16), (3, 1)] {
            let seen: Vec<AtomicUsize> = (0..n_items).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|m| {
                let share = m.share(n_items, unit);
                assert!(share.start.is_multiple_of(unit) || share.is_empty());
                share.for_each(|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_is_reported_and_the_team_goes_on() {
        let mut team = Team::new(2);
        for guilty in [0, 1] {
            let run =
                std::panic::AssertUnwindSafe(|| team.run(&|m| assert_ne!(m.idx(), guilty, "on purpose")));
            assert!(std::panic::catch_unwind(run).is_err());
            team.run(&|m| m.barrier());
        }
    }
}
