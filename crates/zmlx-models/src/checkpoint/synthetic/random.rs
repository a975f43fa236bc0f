//! Random numbers, fast enough for gigabytes of weights.

use bytes::Bytes;
use half::bf16;

/// A part with fewer bytes is not worth the start of a thread.
const MIN_PART_BYTES: usize = 4 << 20;

/// The random stream of a tensor. Each tensor has its own, which is the same on every machine and for every number of
/// threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random {
    start: u64,
}

impl Random {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a.
        let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        Self { start: mix(name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, step)) }
    }

    /// The word at index `i`: a mixed counter (SplitMix64), so that any part of the stream can be generated
    /// independently.
    fn word(self, i: usize) -> u64 {
        mix(self.start.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// `n` bytes, in which only the bits of `mask` can be set.
    pub(super) fn bytes(self, n: usize, mask: u8) -> Bytes {
        const WORD: usize = size_of::<u64>();
        let mask = u64::from_le_bytes([mask; WORD]);
        // The system allocates zeroed pages when they are first written, which the threads do here.
        let mut data = vec![0u8; n];
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let n_parts = n_threads.min(n / MIN_PART_BYTES).max(1);
        let part_words = n.div_ceil(WORD).div_ceil(n_parts).max(1);
        let fill = move |first: usize, part: &mut [u8]| {
            let (words, rest) = part.as_chunks_mut::<WORD>();
            let n_words = words.len();
            for (i, word) in words.iter_mut().enumerate() {
                *word = (self.word(first + i) & mask).to_le_bytes();
            }
            let last = (self.word(first + n_words) & mask).to_le_bytes();
            rest.copy_from_slice(&last[..rest.len()]);
        };
        std::thread::scope(|scope| {
            let mut parts = data.chunks_mut(part_words * WORD).enumerate();
            let own = parts.next();
            for (i, part) in parts {
                scope.spawn(move || fill(i * part_words, part));
            }
            if let Some((_, part)) = own {
                fill(0, part);
            }
        });
        data.into()
    }

    /// Uniform values with this standard deviation.
    pub(super) fn bf16(self, n: usize, std_dev: f32) -> Bytes {
        let unit = |r: u64| (r >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        let value = |i| bf16::from_f32(unit(self.word(i)) * std_dev * 3f32.sqrt()).to_le_bytes();
        let mut data = Vec::with_capacity(2 * n);
        data.extend((0..n).flat_map(value));
        data.into()
    }
}

/// SplitMix64's finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{MIN_PART_BYTES, Random};

    #[test]
    fn parts_are_one_stream() {
        let random = Random::new(1, "a");
        for n in [0, 1, 7, 8, 9, 2 * MIN_PART_BYTES + 13] {
            let words = (0..n.div_ceil(8)).flat_map(|i| random.word(i).to_le_bytes());
            let want: Vec<u8> = words.take(n).collect();
            assert!(random.bytes(n, 0xff) == want, "{n} bytes");
        }
        assert!(random.bytes(1000, 0xbf).iter().all(|b| b & 0x40 == 0));
        assert_ne!(random.bytes(100, 0xff), Random::new(1, "b").bytes(100, 0xff));
        assert_ne!(random.bytes(100, 0xff), Random::new(2, "a").bytes(100, 0xff));
    }

    #[test]
    fn values_spread_as_they_should() {
        let values = zmlx_kernels::DType::BF16.to_f32_vec(&Random::new(3, "x").bf16(40_000, 0.5));
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let std_dev = (values.iter().map(|v| v * v).sum::<f32>() / n).sqrt();
        // Four standard errors of the mean: 0.5 / sqrt(40000) each. That of the spread is smaller.
        assert!(mean.abs() <= 0.01 && (std_dev - 0.5).abs() <= 0.01, "{mean} {std_dev}");
    }
}
