//! Waiting for other threads: first a thread spins, then it sleeps.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Number of spins before the thread reads the clock. A barrier takes less if all members of the team are running.
const SPINS: u32 = 500;
/// How long a thread spins before it sleeps, if no other thread wants its core. Waking a thread takes tens of
/// microseconds, which is longer than the time between the jobs of a token.
const PATIENCE: Duration = Duration::from_millis(2);
/// A thread that loses its core this often has to share the core.
const CROWDED: Duration = Duration::from_millis(20);
/// For how long such a thread then sleeps without spinning.
const MEMORY: Duration = Duration::from_millis(100);

/// Tells waiting threads that something has changed.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// Changes with every notice.
    word: AtomicU32,
    n_asleep: AtomicU32,
}

impl Signal {
    /// Wakes all waiting threads. They see what was written before.
    pub(super) fn notify(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        // Either this sees the thread that is about to sleep, or that thread sees that the word has changed.
        if self.n_asleep.load(Ordering::SeqCst) > 0 {
            atomic_wait::wake_all(&self.word);
        }
    }

    /// Waits while `is_pending`. Its result changes only before a notice.
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

/// The time when this thread last read how often it had lost its core, that number, and the time until which it treats
/// the core as shared.
#[derive(Clone, Copy)]
struct Core {
    looked: Instant,
    n_lost: i64,
    shared_until: Option<Instant>,
}

/// Whether other threads want this thread's core: the core was taken away several times lately.
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

    /// Two threads pass a number back and forth. A missed notice would make them hang.
    #[test]
    fn no_notice_is_missed() {
        let shared = Arc::new((Signal::default(), AtomicU64::new(0)));
        let play = |me: u64, shared: &(Signal, AtomicU64)| {
            for turn in (me..2000).step_by(2) {
                shared.0.wait_while(|| shared.1.load(Ordering::Acquire) != turn);
                if turn % 50 < 2 {
                    // Longer than a thread spins.
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
