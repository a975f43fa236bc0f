//! Measures how fast this machine reads memory, which limits the speed of decoding.

use std::hint::black_box;
use std::time::Instant;

use crate::stats::median;

/// The size of the buffer that is read: several times the size of the largest last-level caches.
pub const BUFFER_BYTES: usize = 512 << 20;
/// How often each pattern is measured.
const ROUNDS: usize = 5;
/// The patterns: the number of places at which a thread reads in turns. Processors differ in how many streams they
/// prefetch.
const STREAMS: [usize; 3] = [1, 4, 12];

/// The bytes per second that `n_threads` threads read together when they sum a large buffer. Each pattern is measured
/// several times, and the result is the highest of the patterns' medians. The speeds that are compared with it are
/// medians too. Compared with the best single measurement, a machine with busy neighbours would never seem to read at
/// its full rate. `None` if that much memory is not available.
pub fn read_bytes_per_second(n_threads: usize) -> Option<f64> {
    let n_words = BUFFER_BYTES / size_of::<u64>();
    let mut words: Vec<u64> = Vec::new();
    words.try_reserve_exact(n_words).ok()?;
    // Not zeros, because the system need not provide real memory for pages of zeros.
    words.extend(0..n_words as u64);
    let share = n_words.div_ceil(n_threads.max(1));
    let round = |n_streams: usize| {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(share) {
                scope.spawn(move || black_box(sum(part, n_streams)));
            }
        });
        BUFFER_BYTES as f64 / started.elapsed().as_secs_f64()
    };
    let mut rates = STREAMS.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (rates, n_streams) in rates.iter_mut().zip(STREAMS) {
            rates.push(round(n_streams));
        }
    }
    fastest(&rates)
}

/// The highest of the patterns' medians.
fn fastest(rates: &[Vec<f64>]) -> Option<f64> {
    rates.iter().filter_map(|rates| median(rates)).reduce(f64::max)
}

/// Independent sums, so that the time goes to the loads and not to the additions.
fn sum(words: &[u64], n_streams: usize) -> u64 {
    const LANES: usize = 16;
    let (chunks, rest) = words.as_chunks::<LANES>();
    let len = chunks.len() / n_streams;
    let (streams, more) = chunks.split_at(len * n_streams);
    let mut lanes = [0u64; LANES];
    let mut add = |chunk: &[u64; LANES]| {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    };
    for i in 0..len {
        for stream in 0..n_streams {
            add(&streams[stream * len + i]);
        }
    }
    more.iter().for_each(&mut add);
    lanes.iter().chain(rest).fold(0, |total, word| total.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_fast_round_is_not_the_rate_of_its_pattern() {
        let rates = [vec![30.0, 31.0, 90.0], vec![33.0, 20.0, 34.0], vec![10.0, 10.0, 10.0]];
        assert_eq!(super::fastest(&rates), Some(33.0));
    }

    #[test]
    fn every_word_counts() {
        for n in [0, 1, 15, 16, 17, 100, 1000] {
            let words: Vec<u64> = (1..=n).collect();
            for n_streams in super::STREAMS {
                assert_eq!(super::sum(&words, n_streams), n * (n + 1) / 2);
            }
        }
    }
}
