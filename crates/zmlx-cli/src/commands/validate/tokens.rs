//! Tokens of two paths compared.

use anyhow::Result;
use serde::Serialize;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::Model;
use zmlx_oracle::golden::Greedy;

use super::Prompt;
use crate::engine::Rounding;
use crate::greedy::{self, Step};

/// Two paths may choose different tokens where the margin is below this part of the logits' spread (their root mean
/// square about the mean).
///
/// All paths keep f32 and differ in the order of their sums. A sum of K products in another order moves by about
/// √K·2⁻²⁴ of its size, 3e-6 at K = 2048; dozens of layers in a row leave 1e-5 to 1e-4 of the logits' spread. The
/// bound leaves a factor of ten for a model that amplifies more; a wrong scale, group or expert moves logits by
/// more than 1e-2.
const MARGIN_BOUND: f64 = 1e-3;

/// As [`MARGIN_BOUND`] where activations are bf16: each rounding is 2⁻⁹ of a value instead of 2⁻²⁴, and sometimes turns a
/// router's choice. What that leaves in the logits was measured on both tiny models: bf16 differs from f32 by 6 to 14 % (see
/// `reference.rs`), so two bf16 computations that round differently may differ by a tenth.
const MARGIN_BOUND_BF16: f64 = 1e-1;

/// The margin bound for a backend's rounding.
pub(super) const fn margin_bound(rounding: Rounding) -> f64 {
    match rounding {
        Rounding::F32 => MARGIN_BOUND,
        Rounding::Checkpoint => MARGIN_BOUND_BF16,
    }
}

/// The outcome of a comparison, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Verdict {
    /// The same tokens.
    Pass,
    /// Another token where the margin is below the bound: either is right, and what follows cannot be compared.
    Explained,
    /// Another token where the margin allows no doubt, runs of one path that differ, or logits that are no numbers.
    Fail,
}

impl Verdict {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Explained => "EXPLAINED",
            Self::Fail => "FAIL",
        }
    }
}

/// What a path decoded.
#[derive(Debug)]
pub(super) struct Decoded {
    steps: Vec<Step>,
    /// Where no comparison is possible, and why: the first step at which a repeated run differed, or whose logits
    /// were not numbers.
    fault: Option<(usize, &'static str)>,
}

impl Decoded {
    pub(super) fn tokens(&self) -> Vec<u32> {
        self.steps.iter().map(|s| s.token).collect()
    }
}

/// Decodes a prompt `n_runs` times.
pub(super) fn decode<B: Backend>(
    model: &Model<B>,
    prompt: &Prompt,
    n_tokens: usize,
    n_runs: usize,
    fusion: &Fusion,
) -> Result<Decoded> {
    let run = || greedy::decode(model, &prompt.tokens, n_tokens, fusion, |_| ());
    let first = run()?;
    let mut fault = first.is_broken.then_some((first.steps.len(), "not numbers"));
    for _ in 1..n_runs {
        let again = run()?;
        let n_steps = first.steps.len().max(again.steps.len());
        let at = (0..n_steps).find(|&i| again.steps.get(i) != first.steps.get(i));
        fault = fault.or(at.map(|i| (i, "unstable")));
    }
    Ok(Decoded { steps: first.steps, fault })
}

/// One comparison.
#[derive(Debug, Serialize)]
pub(super) struct TokenCheck {
    pub(super) prompt: String,
    /// As `fused vs stock`.
    pub(super) comparison: String,
    pub(super) n_tokens: usize,
    pub(super) first_divergence: Option<usize>,
    /// The margin at the first divergence.
    pub(super) margin: Option<f64>,
    /// What it must be below.
    pub(super) bound: Option<f64>,
    pub(super) verdict: Verdict,
}

impl TokenCheck {
    /// A path against the stock path.
    pub(super) fn of(prompt: &str, path: &str, stock: &Decoded, got: &Decoded, margin_bound: f64) -> Self {
        let n_tokens = stock.steps.len();
        let tokens_differ = |i: &usize| {
            let token = |d: &Decoded| d.steps.get(*i).map(|s| s.token);
            token(got) != token(stock)
        };
        let divergence = (0..n_tokens.max(got.steps.len())).find(tokens_differ);
        let at = divergence.and_then(|i| stock.steps.get(i).filter(|_| i < got.steps.len()));
        let comparison = format!("{path} vs stock");
        let at = at.map(|s| (s.margin, s.spread * margin_bound));
        let mut check = Self::new(prompt, comparison, n_tokens, divergence, at);
        check.blame(stock.fault.or(got.fault));
        check
    }

    /// The stock path against the reference engine's recording.
    pub(super) fn against_recording(
        prompt: &str,
        want: &Greedy,
        got: &Decoded,
        n_tokens: usize,
        margin_bound: f64,
    ) -> Self {
        let n_tokens = n_tokens.min(want.tokens.len());
        let differs = |i: &usize| got.steps.get(*i).map(|s| s.token) != want.tokens.get(*i).copied();
        let divergence = (0..n_tokens).find(differs);
        let at = divergence.and_then(|i| {
            // The recording tells its margin, our logits the scale.
            Some((*want.top1_top2_margin.get(i)?, got.steps.get(i)?.spread * margin_bound))
        });
        let mut check = Self::new(prompt, "stock vs recording".into(), n_tokens, divergence, at);
        check.blame(got.fault);
        check
    }

    /// A faulty side fails whatever its tokens.
    fn blame(&mut self, fault: Option<(usize, &'static str)>) {
        if let Some((step, what)) = fault {
            self.comparison += &format!(", {what}");
            self.first_divergence = Some(step);
            self.verdict = Verdict::Fail;
        }
    }

    /// `at`: margin and its bound at the divergence; none if one side simply ended.
    fn new(
        prompt: &str,
        comparison: String,
        n_tokens: usize,
        first_divergence: Option<usize>,
        at: Option<(f64, f64)>,
    ) -> Self {
        let margin = at.map(|(margin, _)| margin);
        let bound = at.map(|(_, bound)| bound);
        let verdict = match (first_divergence, margin, bound) {
            (None, ..) => Verdict::Pass,
            (Some(_), Some(margin), Some(bound)) if margin < bound => Verdict::Explained,
            _ => Verdict::Fail,
        };
        Self { prompt: prompt.to_owned(), comparison, n_tokens, first_divergence, margin, bound, verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(steps: &[(u32, f64)]) -> Decoded {
        let step = |&(token, margin): &(u32, f64)| Step { token, margin, spread: 2.0 };
        Decoded { steps: steps.iter().map(step).collect(), fault: None }
    }

    #[test]
    fn verdicts() {
        let stock = decoded(&[(5, 3.0), (6, 0.001), (7, 1.0), (8, f64::NAN)]);
        let verdict =
            |got: &[(u32, f64)]| TokenCheck::of("p", "fused", &stock, &decoded(got), MARGIN_BOUND).verdict;
        assert_eq!(verdict(&[(5, 0.0), (6, 0.0), (7, 0.0), (8, 0.0)]), Verdict::Pass);
        assert_eq!(verdict(&[(5, 0.0), (1, 9.0), (2, 9.0), (3, 9.0)]), Verdict::Explained);
        assert_eq!(verdict(&[(1, 0.0), (6, 0.0), (7, 0.0), (8, 0.0)]), Verdict::Fail);
        assert_eq!(verdict(&[(5, 0.0), (6, 0.0), (7, 0.0), (9, 0.0)]), Verdict::Fail, "NaN excuses nothing");
        assert_eq!(verdict(&[(5, 0.0)]), Verdict::Fail, "ending early is no flip");
        assert_eq!(verdict(&[(5, 0.0), (6, 0.0), (7, 0.0), (8, 0.0), (9, 0.0)]), Verdict::Fail);
        let unstable =
            Decoded { fault: Some((1, "unstable")), ..decoded(&[(5, 3.0), (6, 1.0), (7, 1.0), (8, 1.0)]) };
        assert_eq!(TokenCheck::of("p", "fused", &stock, &unstable, MARGIN_BOUND).verdict, Verdict::Fail);
        assert!(Verdict::Pass < Verdict::Explained && Verdict::Explained < Verdict::Fail);
    }
}
