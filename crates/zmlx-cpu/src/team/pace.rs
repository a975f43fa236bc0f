//! Decides how many members make a job fastest. This is measured for each kind and size of job while they run.
//!
//! On a quiet machine the whole team is fastest, except for small jobs. If other programs compute too, a member that
//! loses its core holds up all others at the next barrier, and a single thread can be many times faster. Only the times
//! of jobs show which is the case. So for each kind and size of job, the time per unit of work is kept for one, two,
//! four, … members. Now and then another number is tried. The longer such trials have not helped, the rarer they
//! become.

use std::time::Duration;

/// The kinds of jobs. Times of different kinds are not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Products with few rows of activations.
    Dots,
    /// Products with many rows of activations.
    Tiles,
    /// Products in which a member takes whole matrices.
    Mats,
    /// Attention.
    Attention,
    /// Updates of states from one step to the next.
    States,
    /// Elementwise work.
    Rows,
}

/// A job's kind and size, on which its time depends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    kind: Kind,
    /// The amount of work in units of its kind; at least 1.
    amount: u64,
}

impl Work {
    pub(crate) fn new(kind: Kind, amount: usize) -> Self {
        Self { kind, amount: (amount as u64).max(1) }
    }
}

/// The number of members is judged over jobs that take at least this long together.
const WINDOW: Duration = Duration::from_millis(4);
/// A trial of another number is judged over a shorter time.
const TRIAL: Duration = Duration::from_millis(2);
/// Both are judged over at least this many jobs.
const MIN_JOBS: u32 = 4;
/// The time between trials, at first and at most. A failed trial doubles it.
const PAUSE: Duration = Duration::from_millis(60);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The time between trials is also at least this many times the time of the last trial.
const PAUSE_FACTOR: u32 = 20;
/// Jobs with at least this many bits in their amount of work are long: they take about a millisecond.
const LONG_BITS: usize = 24;

/// Decides how many members take part in a job.
#[derive(Debug)]
pub(super) struct Pace {
    n_members: usize,
    /// The jobs of each kind, by the power of two of their amount of work.
    jobs: Vec<Jobs>,
}

/// Jobs of one kind and size.
#[derive(Clone, Debug)]
struct Jobs {
    /// The time for a unit of work with 1, 2, 4, … members up to all, as far as it is known.
    costs: Vec<Option<f64>>,
    /// Which of them is in use, and which is being tried.
    current: usize,
    trial: Option<usize>,
    last_trial: usize,
    /// What has run since the last decision.
    n: u32,
    took: Duration,
    amount: u64,
    until_trial: Duration,
    pause: Duration,
}

impl Pace {
    pub(super) fn new(n_members: usize) -> Self {
        let n_sizes = n_members.next_power_of_two().ilog2() as usize + 1;
        let jobs = Jobs {
            costs: vec![None; n_sizes],
            current: n_sizes - 1,
            trial: None,
            last_trial: 0,
            n: 0,
            took: Duration::ZERO,
            amount: 0,
            until_trial: Duration::ZERO,
            pause: PAUSE,
        };
        // Long jobs begin with all members, because measuring them takes long. Short jobs begin with one member, which
        // never has to wait.
        let of_size =
            |bits: usize| Jobs { current: if bits < LONG_BITS { 0 } else { n_sizes - 1 }, ..jobs.clone() };
        let n_kinds = Kind::Rows as usize + 1;
        Self { n_members, jobs: (0..n_kinds * 64).map(|i| of_size(i % 64)).collect() }
    }

    fn jobs(&mut self, work: Work) -> &mut Jobs {
        &mut self.jobs[work.kind as usize * 64 + work.amount.ilog2() as usize]
    }

    /// Number of members for the next job.
    pub(super) fn members(&mut self, work: Work) -> usize {
        let n = self.n_members;
        let jobs = self.jobs(work);
        (1 << jobs.trial.unwrap_or(jobs.current)).min(n)
    }

    /// Records the time of a job.
    pub(super) fn note(&mut self, work: Work, took: Duration) {
        let jobs = self.jobs(work);
        jobs.n += 1;
        jobs.took += took;
        jobs.amount += work.amount;
        let cost = jobs.took.as_secs_f64() / jobs.amount as f64;
        match jobs.trial {
            Some(size) => jobs.judge_trial(size, cost),
            None => jobs.judge(cost),
        }
    }
}

impl Jobs {
    /// Judges the number of members that is in use.
    fn judge(&mut self, cost: f64) {
        let (took, known) = (self.took, self.costs[self.current]);
        let is_hopeless = known.is_some_and(|known| took > TRIAL / 2 && cost > 3.0 * known);
        if !is_hopeless && (took < WINDOW || self.n < MIN_JOBS) {
            return;
        }
        let is_first = known.is_none();
        let known = known.unwrap_or(cost);
        if cost > 1.5 * known || known > 1.5 * cost {
            self.pause = PAUSE; // the load has changed
            self.until_trial = self.until_trial.min(PAUSE);
        }
        let cost = if is_hopeless { cost } else { 0.5 * (known + cost) };
        self.costs[self.current] = Some(cost);
        let long = took / self.n > WINDOW / 4;
        self.until_trial = match is_first {
            // A trial of long jobs costs more, so a short run does without.
            true if long => took * PAUSE_FACTOR,
            true => Duration::ZERO,
            false => self.until_trial.saturating_sub(took),
        };
        self.restart();
        let best = (0..self.costs.len())
            .filter_map(|size| Some((size, self.costs[size]?)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b));
        match best {
            Some((size, least)) if least < 0.9 * cost => self.current = size,
            _ if self.until_trial.is_zero() => {
                // The other numbers take turns.
                let n = self.costs.len();
                let next = (1..=n).map(|i| (self.last_trial + i) % n).find(|&size| size != self.current);
                self.last_trial = next.unwrap_or(0);
                self.trial = next;
            }
            _ => {}
        }
    }

    /// Judges the number that is being tried, unless it is too early.
    fn judge_trial(&mut self, size: usize, cost: f64) {
        let usual = self.costs[self.current].unwrap_or(f64::INFINITY);
        let is_hopeless = self.took > TRIAL / 2 && cost > 3.0 * usual;
        if !is_hopeless && (self.took < TRIAL || self.n < MIN_JOBS) {
            return;
        }
        self.costs[size] = Some(cost);
        if cost < 0.95 * usual {
            self.current = size;
            let is_all_known = self.costs.iter().all(Option::is_some);
            self.until_trial = if is_all_known { self.pause } else { Duration::ZERO };
        } else {
            self.pause = (2 * self.pause).min(MAX_PAUSE);
            self.until_trial = self.pause.max(self.took * PAUSE_FACTOR);
        }
        self.trial = None;
        self.restart();
    }

    fn restart(&mut self) {
        self.n = 0;
        self.took = Duration::ZERO;
        self.amount = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: usize = 1000;

    /// Runs jobs for `total`. A job takes the time that `time` gives for its number of members. Returns the time with
    /// the best number divided by the time that was taken.
    fn efficiency(pace: &mut Pace, total: Duration, time: impl Fn(usize) -> Duration) -> f64 {
        let work = Work::new(Kind::Dots, WORK);
        let best = (0..4).map(|size| time(1 << size)).min().unwrap();
        let (mut spent, mut useful) = (Duration::ZERO, Duration::ZERO);
        while spent < total {
            let took = time(pace.members(work));
            pace.note(work, took);
            spent += took;
            useful += best;
        }
        useful.as_secs_f64() / spent.as_secs_f64()
    }

    #[test]
    fn the_number_that_pays_is_found_and_kept() {
        let second = Duration::from_secs(1);
        let us = Duration::from_micros;
        let mut pace = Pace::new(8);
        // A quiet machine: more members are faster.
        let quiet = |n: usize| us(800) / n as u32;
        assert!(efficiency(&mut pace, second, quiet) > 0.95);
        // Other programs compute: barriers take milliseconds.
        let busy = |n: usize| us(1600) / n as u32 + us(4000) * (n as u32 - 1);
        efficiency(&mut pace, second / 10, busy);
        assert!(efficiency(&mut pace, 2 * second, busy) > 0.9);
        // The other programs have ended.
        efficiency(&mut pace, 4 * second, quiet);
        assert!(efficiency(&mut pace, second, quiet) > 0.95);
        // Some load.
        let some = |n: usize| us(800) / n as u32 + us(60) * (n as u32 - 1);
        efficiency(&mut pace, 4 * second, some);
        assert!(efficiency(&mut pace, second, some) > 0.9);
    }

    #[test]
    fn other_jobs_are_judged_on_their_own() {
        let mut pace = Pace::new(2);
        let (small, large) = (Work::new(Kind::Dots, 10), Work::new(Kind::Dots, 1_000_000));
        for _ in 0..2000 {
            for (work, unit) in [(small, 10), (large, 1000)] {
                let n = pace.members(work) as u64;
                // A barrier takes as long as the small job.
                let took = Duration::from_micros(unit / n + 10 * (n - 1));
                pace.note(work, took);
            }
        }
        let used = |pace: &Pace, work: Work| {
            1 << pace.jobs[work.kind as usize * 64 + work.amount.ilog2() as usize].current
        };
        assert_eq!((used(&pace, small), used(&pace, large)), (1, 2));
    }
}
