//! A persistent team of threads with a barrier cheap enough to separate the phases of one token.
//!
//! The caller is member 0; the others are long-lived workers. Between jobs and at barriers a member looks for some time, then
//! sleeps, so that an idle process uses no processor and a busy machine's cores go to whoever has work. A job may be done by
//! fewer members than there are: [`pace`] says when.

mod pace;
mod signal;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pace::Pace;
pub(crate) use pace::{Kind, Work};
use signal::Signal;
use zmlx_core::Barriers;

/// A job: called once per member with its [`Member`].
type TeamJob<'a> = dyn Fn(&Member<'_>) + Sync + 'a;

/// How many members take part in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// All.
    Fixed,
    /// As many as are fastest.
    AsPays,
}

/// Members of a job, in the lower bits of [`TeamState::epoch`].
const MEMBER_BITS: u32 = 16;

struct TeamState {
    /// The number of jobs started, and in the lower bits how many members the last one has: one word, so that a worker that
    /// is late never takes one job's members for another's.
    epoch: AtomicU64,
    /// The job of this epoch: a pointer to a `&TeamJob` on the caller's stack, valid until every member has finished.
    job: AtomicPtr<&'static TeamJob<'static>>,
    /// Workers that finished the job of this epoch.
    n_finished: AtomicUsize,
    /// Members that arrived at the current barrier, and the number of barriers passed.
    n_arrived: AtomicUsize,
    barrier: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// A job has begun, or there will be none.
    began: Signal,
    /// A barrier was passed, a worker has finished, or a member has panicked.
    moved: Signal,
    /// Barriers that the caller passed, the end of a job being one, and the nanoseconds that it waited there.
    n_passed: AtomicU64,
    waited: AtomicU64,
}

impl TeamState {
    fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            n_finished: AtomicUsize::new(0),
            n_arrived: AtomicUsize::new(0),
            barrier: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            began: Signal::default(),
            moved: Signal::default(),
            n_passed: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }

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
        self.moved.wait_while(is_pending);
        if let Some(since) = since {
            self.waited.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Lets go who waits for a member that panicked.
    fn give_up(&self) {
        self.panicked.store(true, Ordering::SeqCst);
        self.moved.notify();
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
    n_members: usize,
    shared: &'a TeamState,
}

/// What a member unwinds with that waited for one that panicked.
struct GivenUp;

impl Member<'_> {
    /// This member's share of `n_items` items in multiples of `unit`: the shares of all members cover them once.
    pub(crate) fn share(&self, n_items: usize, unit: usize) -> std::ops::Range<usize> {
        part(n_items, unit, self.n_members, self.idx)
    }

    /// This member's number: 0 is the caller.
    pub(crate) fn idx(&self) -> usize {
        self.idx
    }

    /// How many members take part in the job.
    pub(crate) fn n_members(&self) -> usize {
        self.n_members
    }

    /// Waits until every member has arrived; what they wrote before is then visible.
    ///
    /// # Panics
    /// If another member has panicked and will never arrive: what it should have written is not there.
    pub(crate) fn barrier(&self) {
        let s = self.shared;
        if self.n_members == 1 {
            return;
        }
        let round = s.barrier.load(Ordering::Acquire);
        if s.n_arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.n_members {
            s.n_arrived.store(0, Ordering::Relaxed);
            s.barrier.store(round.wrapping_add(1), Ordering::Release);
            s.moved.notify();
        }
        let is_pending = || s.barrier.load(Ordering::Acquire) == round;
        s.wait(self.idx == 0, || is_pending() && !s.panicked.load(Ordering::Acquire));
        if is_pending() {
            std::panic::resume_unwind(Box::new(GivenUp));
        }
    }
}

/// The threads. Dropping the team ends them.
pub(crate) struct Team {
    shared: Arc<TeamState>,
    workers: Vec<JoinHandle<()>>,
    pace: Option<Pace>,
}

impl Team {
    /// A team of `n_members`, at least 1, the caller included. Where the system refuses a thread, fewer.
    pub(crate) fn new(n_members: usize, sizes: Sizes) -> Self {
        let n_members = n_members.clamp(1, (1 << MEMBER_BITS) - 1);
        let mut team = Self { shared: Arc::new(TeamState::new()), workers: Vec::new(), pace: None };
        for idx in 1..n_members {
            let s = Arc::clone(&team.shared);
            match thread::Builder::new().name(format!("zmlx-{idx}")).spawn(move || work(idx, &s)) {
                Ok(handle) => team.workers.push(handle),
                Err(error) => {
                    tracing::warn!(%error, "no thread for the team: computing on {idx}");
                    break;
                }
            }
        }
        team.pace = (sizes == Sizes::AsPays && !team.workers.is_empty()).then(|| Pace::new(team.n_members()));
        team
    }

    /// Number of members.
    pub(crate) fn n_members(&self) -> usize {
        self.workers.len() + 1
    }

    /// Barriers so far; `None` where one thread computes alone.
    pub(crate) fn barriers(&self) -> Barriers {
        Barriers {
            n: self.shared.n_passed.load(Ordering::Relaxed),
            waited: Duration::from_nanos(self.shared.waited.load(Ordering::Relaxed)),
        }
    }

    /// Runs `job` once on every member that takes part and returns when all are done. `&mut` because jobs do not nest.
    ///
    /// # Panics
    /// If the job panics on any member.
    pub(crate) fn run(&mut self, work: Work, job: &TeamJob<'_>) {
        let Some(pace) = &mut self.pace else { return self.run_on(self.n_members(), job) };
        let n_members = pace.members(work);
        let since = Instant::now();
        self.run_on(n_members, job);
        if let Some(pace) = &mut self.pace {
            pace.note(work, since.elapsed());
        }
    }

    fn run_on(&self, n_members: usize, job: &TeamJob<'_>) {
        let s = &*self.shared;
        let me = Member { idx: 0, n_members, shared: s };
        if n_members == 1 {
            job(&me);
            return;
        }
        // SAFETY: only the lifetime changes. The workers use the reference only between the store of the epoch below
        // and their increment of `n_finished`, and `Finish` does not let this function return (or unwind) before
        // all that take part have made it.
        let mut job: &'static TeamJob<'static> =
            unsafe { std::mem::transmute::<&TeamJob<'_>, &'static TeamJob<'static>>(job) };
        s.n_finished.store(0, Ordering::Relaxed);
        s.panicked.store(false, Ordering::Relaxed);
        s.job.store(&raw mut job, Ordering::Relaxed);
        let n_jobs = s.epoch.load(Ordering::Relaxed) >> MEMBER_BITS;
        s.epoch.store((n_jobs + 1) << MEMBER_BITS | n_members as u64, Ordering::SeqCst);
        s.began.notify();
        let finish = Finish(s, n_members);
        job(&me);
        drop(finish);
        assert!(!s.panicked.load(Ordering::Relaxed), "a worker of the thread team panicked");
    }
}

/// Waits for the workers, also when the caller's part of the job unwinds.
struct Finish<'a>(&'a TeamState, usize);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let Self(s, n_members) = *self;
        if thread::panicking() {
            s.give_up();
        }
        s.wait(true, || s.n_finished.load(Ordering::Acquire) + 1 < n_members);
        s.n_arrived.store(0, Ordering::Relaxed); // an unwound job may have left half a barrier
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.began.notify();
        for handle in self.workers.drain(..) {
            let _ = handle.join(); // a worker catches its panics
        }
    }
}

fn work(idx: usize, s: &TeamState) {
    let mut seen = 0;
    loop {
        s.began.wait_while(|| s.epoch.load(Ordering::Acquire) == seen && !s.stop.load(Ordering::Acquire));
        if s.stop.load(Ordering::Acquire) {
            return;
        }
        seen = s.epoch.load(Ordering::Acquire);
        let n_members = (seen & ((1 << MEMBER_BITS) - 1)) as usize;
        if idx >= n_members {
            continue;
        }
        // SAFETY: this worker takes part in the job of the epoch `seen`. `run_on` stored a pointer to a live `&TeamJob` before
        // it stored that epoch, and neither returns nor begins another job until this worker has incremented `n_finished`.
        let job = unsafe { *s.job.load(Ordering::Relaxed) };
        let run = || job(&Member { idx, n_members, shared: s });
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            s.give_up();
        }
        // The last one; whoever waits for the others looks at the number.
        if s.n_finished.fetch_add(1, Ordering::AcqRel) + 2 >= n_members {
            s.moved.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_work() -> Work {
        Work::new(Kind::Rows, 1)
    }

    #[test]
    fn every_member_runs_and_barriers_order_their_writes() {
        for n in [1, 2, 3, 5] {
            let mut team = Team::new(n, Sizes::Fixed);
            let slots: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..200 {
                team.run(some_work(), &|m| {
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

    /// Jobs of changing numbers of members: each is done once by those that take part, and by no others.
    #[test]
    fn those_that_take_part_run_once() {
        let team = Team::new(4, Sizes::Fixed);
        for round in 0..3000 {
            let n_members = [1, 4, 2, 3, 2, 4, 1][round % 7];
            let runs: [AtomicUsize; 4] = Default::default();
            team.run_on(n_members, &|m| {
                assert_eq!(m.n_members(), n_members);
                m.barrier();
                runs[m.idx()].fetch_add(1, Ordering::Relaxed);
            });
            for (idx, n) in runs.iter().enumerate() {
                assert_eq!(n.load(Ordering::Relaxed), usize::from(idx < n_members));
            }
        }
    }

    #[test]
    fn shares_cover_every_item_once() {
        let mut team = Team::new(3, Sizes::AsPays);
        for (n_items, unit) in [(0, 4), (1, 4), (7, 4), (64, 4), (65, 16), (3, 1)] {
            let seen: Vec<AtomicUsize> = (0..n_items).map(|_| AtomicUsize::new(0)).collect();
            team.run(some_work(), &|m| {
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
        let mut team = Team::new(2, Sizes::Fixed);
        for guilty in [0, 1] {
            let passed = AtomicUsize::new(0);
            let run = || {
                team.run(some_work(), &|m| {
                    assert_ne!(m.idx(), guilty, "on purpose");
                    m.barrier();
                    // What the guilty one should have written is not there.
                    passed.fetch_add(1, Ordering::Relaxed);
                });
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
            assert_eq!(passed.load(Ordering::Relaxed), 0);
            team.run(some_work(), &|m| m.barrier());
        }
    }
}
