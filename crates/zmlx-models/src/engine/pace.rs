//! How much of a prompt is computed beside sequences that decode.

use std::time::Duration;

/// Fewest tokens of prompts in a step, however slow the machine.
const FEWEST: usize = 16;
/// A step with prompts takes at most so much longer than one without: those that decode wait no longer than that.
const SLOWDOWN: f64 = 2.0;
/// The weight of the newest step in the running averages.
const NEWEST: f64 = 0.25;

/// Keeps steps short while somebody waits for the next token, by what steps have taken so far.
#[derive(Debug)]
pub(super) struct Pace {
    /// Seconds that a step should not exceed.
    target: f64,
    /// Tokens of prompts in a step in which nobody decodes.
    chunk: usize,
    /// Seconds of a step without prompts.
    decode: Option<f64>,
    /// Seconds of a prompt's token.
    token: Option<f64>,
}

impl Pace {
    pub(super) fn new(target: Duration, chunk: usize) -> Self {
        Self { target: target.as_secs_f64(), chunk: chunk.max(1), decode: None, token: None }
    }

    /// Tokens of prompts in a step beside `n_decoding` sequences.
    pub(super) fn budget(&self, n_decoding: usize) -> usize {
        if n_decoding == 0 {
            return self.chunk;
        }
        let decode = self.decode.unwrap_or(0.0);
        let left = self.target.min(decode * SLOWDOWN) - decode;
        let fits = self.token.map_or(0, |token| (left / token).round() as usize);
        fits.max(FEWEST).min(self.chunk)
    }

    /// Learns from a step with `n_prompt_tokens` tokens of prompts beside `n_decoding` sequences.
    pub(super) fn observe(&mut self, n_decoding: usize, n_prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        if n_prompt_tokens == 0 {
            mix(&mut self.decode, took);
            return;
        }
        let decode = if n_decoding == 0 { 0.0 } else { self.decode.unwrap_or(0.0) };
        // Above zero, so that a division by it makes sense.
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
        // Half a millisecond a token, 50 for the others: 50 more are twice as long.
        pace.observe(0, 512, 256 * MS);
        pace.observe(3, 0, 50 * MS);
        assert_eq!((pace.budget(0), pace.budget(3)), (512, 100));
        // A step of both says the same.
        pace.observe(3, 100, 100 * MS);
        assert_eq!(pace.budget(3), 100);
        // The target bounds it as well.
        for _ in 0..100 {
            pace.observe(3, 0, 100 * MS);
        }
        assert_eq!(pace.budget(3), 100);
        // A fast machine takes whole chunks, a slow one the fewest.
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
