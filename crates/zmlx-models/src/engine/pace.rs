//! Decides how much of a prompt is computed while sequences decode.

use std::time::Duration;

/// The smallest number of prompt tokens in a step, however slow the machine is.
const FEWEST: usize = 16;
/// A step with prompts takes at most this many times as long as one without, so decoding sequences wait no longer than
/// that.
const SLOWDOWN: f64 = 2.0;
/// The weight of the newest step in the running averages.
const NEWEST: f64 = 0.25;

/// Keeps steps short while a sequence waits for its next token. It uses the times of earlier steps.
#[derive(Debug)]
pub(super) struct Pace {
    /// Seconds that a step should not exceed.
    target: f64,
    /// Number of prompt tokens in a step in which no sequence decodes.
    chunk: usize,
    /// Seconds of a step without prompts.
    decode: Option<f64>,
    /// Seconds per prompt token.
    token: Option<f64>,
}

impl Pace {
    pub(super) fn new(target: Duration, chunk: usize) -> Self {
        Self { target: target.as_secs_f64(), chunk: chunk.max(1), decode: None, token: None }
    }

    /// Number of prompt tokens in a step with `n_decoding` decoding sequences.
    pub(super) fn budget(&self, n_decoding: usize) -> usize {
        if n_decoding == 0 {
            return self.chunk;
        }
        let decode = self.decode.unwrap_or(0.0);
        let left = self.target.min(decode * SLOWDOWN) - decode;
        let fits = self.token.map_or(0, |token| (left / token).round() as usize);
        fits.max(FEWEST).min(self.chunk)
    }

    /// Learns from a step with `n_prompt_tokens` prompt tokens and `n_decoding` decoding sequences.
    pub(super) fn observe(&mut self, n_decoding: usize, n_prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        if n_prompt_tokens == 0 {
            mix(&mut self.decode, took);
            return;
        }
        let decode = if n_decoding == 0 { 0.0 } else { self.decode.unwrap_or(0.0) };
        // It is above zero, so that a division by it makes sense.
        let token = ((took - decode) / n_prompt_tokens as f64).max(1e-9);
        mix(&mut self.token, token);
    }
}

fn mix(average: &mut Option<f64>, newest: f64) {
    *average = Some(average.map_or(newest, |old| old + NEWEST * (newest - old)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_budget_that_keeps_steps_short() {
        let mut pace = Pace::new(150 * MS, 512);
        assert_eq!((pace.budget(0), pace.budget(1)), (512, FEWEST));
        // A prompt token takes half a millisecond, decoding takes 50: 50 milliseconds more are twice as long.
        pace.observe(0, 512, 256 * MS);
        pace.observe(3, 0, 50 * MS);
        assert_eq!((pace.budget(0), pace.budget(3)), (512, 100));
        // A step with both gives the same values.
        pace.observe(3, 100, 100 * MS);
        assert_eq!(pace.budget(3), 100);
        // The target also limits it.
        for _ in 0..100 {
            pace.observe(3, 0, 100 * MS);
        }
        assert_eq!(pace.budget(3), 100);
        // A fast machine takes whole chunks, a slow one the smallest number.
        for _ in 0..100 {
            pace.observe(0, 512, 10 * MS);
        }
        assert_eq!(pace.budget(3), 512);
        for _ in 0..100 {
            pace.observe(0, 512, 5120 * MS);
        }
        assert_eq!(pace.budget(3), FEWEST);
        // Decoding alone takes longer than the target.
        for _ in 0..100 {
            pace.observe(3, 0, 1000 * MS);
        }
        assert_eq!(pace.budget(3), FEWEST);
        assert_eq!(Pace::new(MS, 8).budget(1), 8);
    }
}
