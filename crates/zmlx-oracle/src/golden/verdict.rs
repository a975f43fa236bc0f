//! The verdict on decoded tokens, compared with a recording.

use super::Greedy;

/// How decoded tokens relate to the recorded ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The same tokens.
    Equal,
    /// A different token at a step whose recorded margin is below the bound. Either token is right there, and what
    /// follows cannot be compared.
    FlipBelowBound,
    /// A different token where the margin allows no doubt, or too few tokens.
    Mismatch,
}

/// The result of [`check_greedy`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The first step with a different token, or the length of `got` if that ended first.
    pub first_divergence: Option<usize>,
    /// The recorded margin of that step.
    pub margin_there: Option<f64>,
    /// The verdict.
    pub outcome: Outcome,
}

/// Compares `got` with the recorded tokens. Tokens after the end of the recording are ignored. If `got` is too short,
/// the outcome is a mismatch, whatever the margin. A margin of NaN is below no bound.
#[must_use]
pub fn check_greedy(want: &Greedy, got: &[u32], margin_bound: f64) -> Verdict {
    compare(&want.tokens, &want.top1_top2_margin, got, |_| margin_bound)
}

/// As [`check_greedy`], with a bound for each step.
pub(super) fn compare(
    want: &[u32],
    margins: &[f64],
    got: &[u32],
    margin_bound: impl Fn(usize) -> f64,
) -> Verdict {
    let Some(step) = (0..want.len()).find(|&i| got.get(i) != want.get(i)) else {
        return Verdict { first_divergence: None, margin_there: None, outcome: Outcome::Equal };
    };
    let margin_there = margins.get(step).copied();
    let flip = step < got.len() && margin_there.is_some_and(|margin| margin < margin_bound(step));
    let outcome = if flip { Outcome::FlipBelowBound } else { Outcome::Mismatch };
    Verdict { first_divergence: Some(step), margin_there, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let want = Greedy {
            tokens: vec![5, 6, 7],
            top1_top2_margin: vec![3.0, 0.01, f64::NAN],
            logprobs: vec![-0.1; 3],
            output_text: String::new(),
        };
        let outcome = |got: &[u32]| check_greedy(&want, got, 0.1).outcome;
        assert_eq!(outcome(&[5, 6, 7]), Outcome::Equal);
        assert_eq!(outcome(&[5, 6, 7, 9]), Outcome::Equal);
        assert_eq!(outcome(&[5, 1, 7]), Outcome::FlipBelowBound);
        assert_eq!(outcome(&[1, 6, 7]), Outcome::Mismatch);
        assert_eq!(outcome(&[5, 6, 1]), Outcome::Mismatch, "a margin of NaN excuses nothing");
        assert_eq!(outcome(&[5]), Outcome::Mismatch, "stopping early is no flip");
        assert_eq!(outcome(&[]), Outcome::Mismatch);
        let verdict = check_greedy(&want, &[5, 1], 0.1);
        assert_eq!((verdict.first_divergence, verdict.margin_there), (Some(1), Some(0.01)));
    }
}
