//! A persistent team of threads, with a barrier that is cheap enough to separate the phases of one token.
//!
//! The caller is member 0, and the others are long-lived workers. Between jobs and at barriers a member spins for some
//! time and then sleeps. So an idle process uses no processor time, and a busy machine's cores go to threads that have
//! work. A job may be done by fewer members than there are: [`pace`] decides that.

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

/// A job, which is called once per member with its [`Member`].
type TeamJob<'a> = dyn Fn(&Member<'_>) + Sync + 'a;

/// How many members take part in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// All members.
    Fixed,
    /// As many members as are fastest.
    AsPays,
}

/// Number of bits for the members of a job, at the bottom of [`TeamState::epoch`].
const MEMBER_BITS: u32 = 16;

struct TeamState {
    /// The number of jobs started, and in the lower bits the number of members of the last one. Both are in one word,
    /// so that a late worker never takes one job's number of members for another's.
    epoch: AtomicU64,
    /// The job of this epoch: a pointer to a `&TeamJob` on the caller's stack, valid until every member has finished.
    job: AtomicPtr<&'static TeamJob<'static>>,
    /// Number of workers that finished the job of this epoch.
    n_finished: AtomicUsize,
    /// Number of members that arrived at the current barrier, and number of barriers passed.
    n_arrived: AtomicUsize,
    barrier: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Notified when a job has begun, or when the team ends.
    began: Signal,
    /// Notified when a barrier was passed, a worker has finished, or a member has panicked.
    moved: Signal,
    /// Number of barriers that the caller passed, including the ends of jobs, and the nanoseconds that it waited at
    /// them.
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
        // Only a thread that has to wait reads the clock.
        let since = is_caller.then(Instant::now);
        self.moved.wait_while(is_pending);
        if let Some(since) = since {
            self.waited.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Releases the threads that wait for a member that panicked.
    fn give_up(&self) {
        self.panicked.store(true, Ordering::SeqCst);
        self.moved.notify();
    }
}

/// Part `idx` of `n_items` items, which are split evenly into `n` parts that begin at multiples of `unit`.
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

/// The panic payload of a member that waited for one that panicked.
struct GivenUp;

impl Member<'_> {
    /// This member's share of `n_items` items, in multiples of `unit`. The shares of all members cover each item once.
    pub(crate) fn share(&self, n_items: usize, unit: usize) -> std::ops::Range<usize> {
        part(n_items, unit, self.n_members, self.idx)
    }

    /// This member's number; 0 is the caller.
    pub(crate) fn idx(&self) -> usize {
        self.idx
    }

    /// Number of members that take part in the job.
    pub(crate) fn n_members(&self) -> usize {
        self.n_members
    }

    /// Waits until every member has arrived. What they wrote before is then visible.
    ///
    /// # Panics
    /// If another member has panicked and so will never arrive, because its results are missing.
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
    /// A team of `n_members` (at least 1), the caller included. It is smaller if the system refuses a thread.
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

    /// The barriers so far.
    pub(crate) fn barriers(&self) -> Barriers {
        Barriers {
            n: self.shared.n_passed.load(Ordering::Relaxed),
            waited: Duration::from_nanos(self.shared.waited.load(Ordering::Relaxed)),
        }
    }

    /// Runs `job` once on every member that takes part, and returns when all are done. It takes `&mut` because jobs do
    /// not nest.
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
        // and their increment of `n_finished`. `Finish` does not let this function return or unwind before every member
        // that takes part has made that increment.
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

/// Waits for the workers when it is dropped, even if the caller's part of the job unwinds.
struct Finish<'a>(&'a TeamState, usize);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let Self(s, n_members) = *self;
        if thread::panicking() {
            s.give_up();
        }
        s.wait(true, || s.n_finished.load(Ordering::Acquire) + 1 < n_members);
        s.n_arrived.store(0, Ordering::Relaxed); // an unwound job may have left some members counted
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
        // SAFETY: this worker takes part in the job of the epoch `seen`. `run_on` stored a pointer to a live `&TeamJob`
        // before it stored that epoch. It neither returns nor begins another job until this worker has incremented
        // `n_finished`.
        let job = unsafe { *s.job.load(Ordering::Relaxed) };
        let run = || job(&Member { idx, n_members, shared: s });
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            s.give_up();
        }
        // Only the last worker notifies, because the waiting thread checks the number.
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
            // Each job has two barriers and its end.
            let n_barriers = if n == 1 { 0 } else { 199 * 3 };
            assert_eq!(team.barriers().n, n_barriers);
        }
    }

    /// Runs jobs with changing numbers of members. Each is done once by the members that take part, and by no others.
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
                    // What the member that panicked should have written is missing.
                    passed.fetch_add(1, Ordering::Relaxed);
                });
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
            assert_eq!(passed.load(Ordering::Relaxed), 0);
            team.run(some_work(), &|m| m.barrier());
        }
    }
}
