//! Compares the tokens of two paths.

use std::time::Duration;

use anyhow::Result;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::Model;
use zmlx_oracle::golden::Greedy;

use zmlx_bench::capsule::validate::{TokenCheck, Verdict};
use zmlx_bench::greedy::{self, Decoded, Step};

/// What a path decoded in all its runs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// The steps of the first run.
    steps: Option<Vec<Step>>,
    /// Why the path cannot be compared, and from which step on: a repeated run differed there, or the logits were not
    /// numbers.
    fault: Option<(usize, &'static str)>,
    /// The seconds of each run from its first token to its last.
    pub(super) samples_s: Vec<f64>,
}

/// Decodes a prompt once.
pub(super) fn decode<B: Backend>(
    model: &Model<B>,
    prompt: &[u32],
    n_tokens: usize,
    fusion: &Fusion,
) -> Result<Decoded> {
    Ok(greedy::decode(model, prompt, n_tokens, fusion, |_| ())?)
}

impl Runs {
    pub(super) fn add(&mut self, run: Decoded) {
        let Decoded { steps, is_broken, time } = run;
        if time > Duration::ZERO {
            self.samples_s.push(time.as_secs_f64());
        }
        let Some(first) = &self.steps else {
            self.fault = is_broken.then_some((steps.len(), "not numbers"));
            self.steps = Some(steps);
            return;
        };
        let n_steps = first.len().max(steps.len());
        let at = (0..n_steps).find(|&i| steps.get(i) != first.get(i));
        self.fault = self.fault.or(at.map(|i| (i, "unstable")));
    }

    fn steps(&self) -> &[Step] {
        self.steps.as_deref().unwrap_or_default()
    }

    pub(super) fn tokens(&self) -> Vec<u32> {
        self.steps().iter().map(|s| s.token).collect()
    }

    /// The number of tokens after the first.
    pub(super) fn n_timed(&self) -> usize {
        self.steps().len().saturating_sub(1)
    }
}

/// Compares a path with a baseline.
pub(super) fn compare(
    prompt: &str,
    comparison: String,
    want: &Runs,
    got: &Runs,
    margin_bound: f64,
) -> TokenCheck {
    let n_tokens = want.steps().len();
    let tokens_differ = |i: &usize| {
        let token = |runs: &Runs| runs.steps().get(*i).map(|s| s.token);
        token(got) != token(want)
    };
    let divergence = (0..n_tokens.max(got.steps().len())).find(tokens_differ);
    let at = divergence.and_then(|i| want.steps().get(i).filter(|_| i < got.steps().len()));
    let at = at.map(|s| (s.margin, s.spread * margin_bound));
    blamed(check(prompt, comparison, n_tokens, divergence, at), want.fault.or(got.fault))
}

/// Compares a path with the recording of the reference engine.
pub(super) fn against_recording(
    prompt: &str,
    comparison: String,
    want: &Greedy,
    got: &Runs,
    n_tokens: usize,
    margin_bound: f64,
) -> TokenCheck {
    let n_tokens = n_tokens.min(want.tokens.len());
    let differs = |i: &usize| got.steps().get(*i).map(|s| s.token) != want.tokens.get(*i).copied();
    let divergence = (0..n_tokens).find(differs);
    let at = divergence.and_then(|i| {
        // The margin is that of the recording; the scale comes from our own logits.
        Some((*want.top1_top2_margin.get(i)?, got.steps().get(i)?.spread * margin_bound))
    });
    blamed(check(prompt, comparison, n_tokens, divergence, at), got.fault)
}

/// Checks whether all runs agree, for a path that is not compared with another one.
pub(super) fn repeated(prompt: &str, path: &str, got: &Runs) -> TokenCheck {
    blamed(check(prompt, format!("{path} repeated"), got.steps().len(), None, None), got.fault)
}

/// `at` is the margin at the divergence and its bound. It is `None` if one side just ended earlier.
fn check(
    prompt: &str,
    comparison: String,
    n_tokens: usize,
    first_divergence: Option<usize>,
    at: Option<(f64, f64)>,
) -> TokenCheck {
    let (margin, bound) = (at.map(|(margin, _)| margin), at.map(|(_, bound)| bound));
    let verdict = match (first_divergence, margin, bound) {
        (None, ..) => Verdict::Pass,
        (Some(_), Some(margin), Some(bound)) if margin < bound => Verdict::Explained,
        _ => Verdict::Fail,
    };
    let finite = |x: Option<f64>| x.and_then(zmlx_bench::capsule::finite);
    let (margin, bound) = (finite(margin), finite(bound));
    TokenCheck { prompt: prompt.to_owned(), comparison, n_tokens, first_divergence, margin, bound, verdict }
}

/// A path with a fault fails, whatever its tokens are.
fn blamed(mut check: TokenCheck, fault: Option<(usize, &'static str)>) -> TokenCheck {
    if let Some((step, what)) = fault {
        check.comparison += &format!(", {what}");
        check.first_divergence = Some(step);
        check.verdict = Verdict::Fail;
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: f64 = 1e-3;

    fn decoded(steps: &[(u32, f64)]) -> Decoded {
        let step = |&(token, margin): &(u32, f64)| Step { token, margin, spread: 2.0 };
        let time = Duration::from_secs(1);
        Decoded { steps: steps.iter().map(step).collect(), is_broken: false, time }
    }

    fn runs(all: &[&[(u32, f64)]]) -> Runs {
        let mut runs = Runs::default();
        all.iter().for_each(|steps| runs.add(decoded(steps)));
        runs
    }

    fn verdict(want: &Runs, got: &Runs) -> Verdict {
        compare("p", "fused vs stock".into(), want, got, BOUND).verdict
    }

    #[test]
    fn verdicts() {
        let stock = runs(&[&[(5, 3.0), (6, 0.001), (7, 1.0), (8, f64::NAN)]]);
        let verdict = |got: &[(u32, f64)]| verdict(&stock, &runs(&[got]));
        assert_eq!(verdict(&[(5, 0.0), (6, 0.0), (7, 0.0), (8, 0.0)]), Verdict::Pass);
        assert_eq!(verdict(&[(5, 0.0), (1, 9.0), (2, 9.0), (3, 9.0)]), Verdict::Explained);
        assert_eq!(verdict(&[(1, 0.0), (6, 0.0), (7, 0.0), (8, 0.0)]), Verdict::Fail);
        assert_eq!(verdict(&[(5, 0.0), (6, 0.0), (7, 0.0), (9, 0.0)]), Verdict::Fail, "NaN excuses nothing");
        assert_eq!(verdict(&[(5, 0.0)]), Verdict::Fail, "ending early is no flip");
        assert_eq!(verdict(&[(5, 0.0), (6, 0.0), (7, 0.0), (8, 0.0), (9, 0.0)]), Verdict::Fail);
    }

    #[test]
    fn every_run_counts() {
        let steps: &[(u32, f64)] = &[(5, 3.0), (6, 1.0)];
        let steady = runs(&[steps, steps, steps]);
        assert_eq!(verdict(&steady, &steady), Verdict::Pass);
        assert_eq!((steady.samples_s.len(), steady.n_timed()), (3, 1));
        // The same tokens with different logits still mean different computations.
        let unstable = runs(&[steps, steps, &[(5, 3.0), (6, 1.5)]]);
        let check = compare("p", "fused vs stock".into(), &steady, &unstable, BOUND);
        assert_eq!((check.verdict, check.first_divergence), (Verdict::Fail, Some(1)));
        assert_eq!(check.comparison, "fused vs stock, unstable");
        let mut broken = Runs::default();
        broken.add(Decoded { is_broken: true, ..decoded(steps) });
        assert_eq!(verdict(&steady, &broken), Verdict::Fail);
    }
}
