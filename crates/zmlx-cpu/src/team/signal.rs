//! Waiting for other threads: first by looking again and again, then asleep.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Looks before the clock is looked at: a barrier of a team whose members all run takes less.
const SPINS: u32 = 500;
/// How long a thread looks before it sleeps, where nobody else wants its core: to wake it takes tens of microseconds, which
/// the times between the jobs of a token are shorter than.
const PATIENCE: Duration = Duration::from_millis(2);
/// A thread that loses its core this often has to share it.
const CROWDED: Duration = Duration::from_millis(20);
/// How long it then goes to sleep at once.
const MEMORY: Duration = Duration::from_millis(100);

/// Tells waiting threads that something has changed.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// Changes with every notice.
    word: AtomicU32,
    n_asleep: AtomicU32,
}

impl Signal {
    /// Wakes all that wait. What was written before is seen by them.
    pub(super) fn notify(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        // Either this sees who is about to sleep, or they see that the word is another one.
        if self.n_asleep.load(Ordering::SeqCst) > 0 {
            atomic_wait::wake_all(&self.word);
        }
    }

    /// Waits while `is_pending`, which only a notice changes.
    pub(super) fn wait_while(&self, is_pending: impl Fn() -> bool) {
        for _ in 0..SPINS {
            if !is_pending() {
                return;
            }
            std::hint::spin_loop();
        }
        let since = Instant::now();
        while !is_crowded(since) && since.elapsed() < PATIENCE {
            for _ in 0..SPINS {
                if !is_pending() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        self.n_asleep.fetch_add(1, Ordering::SeqCst);
        loop {
            let word = self.word.load(Ordering::SeqCst);
            if !is_pending() {
                break;
            }
            atomic_wait::wait(&self.word, word);
        }
        self.n_asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

/// When this thread looked how often it lost its core, how often that was, and until when it takes the core for a shared one.
#[derive(Clone, Copy)]
struct Core {
    looked: Instant,
    n_lost: i64,
    shared_until: Option<Instant>,
}

/// Whether others want this thread's core: it has been taken away several times of late.
fn is_crowded(now: Instant) -> bool {
    thread_local!(static CORE: Cell<Option<Core>> = const { Cell::new(None) });
    let last = CORE.get();
    if let Some(core) = last
        && now.duration_since(core.looked) < Duration::from_millis(1)
    {
        return core.shared_until.is_some_and(|until| now < until);
    }
    let n_lost = n_lost();
    let shared_until = last.and_then(|core| {
        let n = u32::try_from(n_lost - core.n_lost).unwrap_or(0);
        let is_often = n > 0 && now.duration_since(core.looked) < n * CROWDED;
        if is_often { Some(now + MEMORY) } else { core.shared_until }
    });
    CORE.set(Some(Core { looked: now, n_lost, shared_until }));
    shared_until.is_some_and(|until| now < until)
}

/// How often the system has given this thread's core to another thread.
#[cfg(target_os = "linux")]
fn n_lost() -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

#[cfg(not(target_os = "linux"))]
fn n_lost() -> i64 {
    0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// Two threads that hand a number to and fro: a notice that is missed would hang.
    #[test]
    fn no_notice_is_missed() {
        let shared = Arc::new((Signal::default(), AtomicU64::new(0)));
        let play = |me: u64, shared: &(Signal, AtomicU64)| {
            for turn in (me..2000).step_by(2) {
                shared.0.wait_while(|| shared.1.load(Ordering::Acquire) != turn);
                if turn % 50 < 2 {
                    // Longer than anyone looks.
                    std::thread::sleep(PATIENCE + PATIENCE / 2);
                }
                shared.1.store(turn + 1, Ordering::Release);
                shared.0.notify();
            }
        };
        let other = Arc::clone(&shared);
        let thread = std::thread::spawn(move || play(1, &other));
        play(0, &shared);
        thread.join().unwrap();
        assert_eq!(shared.1.load(Ordering::Relaxed), 2000);
    }
}
