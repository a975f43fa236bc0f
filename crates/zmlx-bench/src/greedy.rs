//! Greedy decoding that also shows the logits.

use std::ops::ControlFlow;
use std::time::Duration;

use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Error, Event, Model, Request, generate};

use crate::Result;

/// A token, and how certain the model was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The most probable token; the lowest one if several are equal.
    pub token: u32,
    /// The best logit minus the second best; infinite if there is only one.
    pub margin: f64,
    /// The root mean square of the logits about their mean, which is the scale for margins.
    pub spread: f64,
}

/// The result of a greedy decoding.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The tokens.
    pub steps: Vec<Step>,
    /// True if the decoding ended because a logit was not finite.
    pub is_broken: bool,
    /// The time from the first token to the last.
    pub time: Duration,
}

/// Continues `prompt` with up to `n_tokens` tokens; fewer if the context ends. `on_logits` gets the logits from which
/// each token was chosen.
///
/// # Errors
/// If the model refuses the prompt, or the backend fails.
pub fn decode<B: Backend>(
    model: &Model<B>,
    prompt: &[u32],
    n_tokens: usize,
    fusion: &Fusion,
    mut on_logits: impl FnMut(&[f32]),
) -> Result<Decoded> {
    let request = Request { wants_logits: true, ..Request::new(prompt.to_vec(), n_tokens) };
    let mut steps = Vec::new();
    let mut is_broken = false;
    let generation = generate(model, None, *fusion, request, |event| {
        let Event::Token { token, .. } = event else { return ControlFlow::Continue(()) };
        on_logits(&token.logits);
        match choose(&token.logits) {
            Some(step) => steps.push(Step { token: token.token, ..step }),
            None => is_broken = true,
        }
        if is_broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match generation {
        Ok(generation) => Ok(Decoded { steps, is_broken, time: generation.finished.generation_time }),
        Err(Error::Logits { .. }) => Ok(Decoded { steps, is_broken: true, time: Duration::ZERO }),
        Err(error) => Err(error.into()),
    }
}

/// The greedy choice; `None` if a logit is not finite, or there are no logits.
pub fn choose(logits: &[f32]) -> Option<Step> {
    let mut best = 0;
    let mut second = f32::NEG_INFINITY;
    let (mut sum, mut squares) = (0.0, 0.0);
    for (i, &x) in logits.iter().enumerate() {
        if !x.is_finite() {
            return None;
        }
        if i > 0 && x > logits[best] {
            second = logits[best];
            best = i;
        } else if i > 0 && x > second {
            second = x;
        }
        sum += f64::from(x);
        squares += f64::from(x) * f64::from(x);
    }
    let n = logits.len() as f64;
    let spread = (squares / n - (sum / n).powi(2)).max(0.0).sqrt();
    let margin = f64::from(*logits.get(best)?) - f64::from(second);
    Some(Step { token: u32::try_from(best).ok()?, margin, spread })
}

#[cfg(test)]
mod tests {
    use super::{Step, choose};

    #[test]
    fn choices() {
        assert_eq!(choose(&[1.0, 3.0]), Some(Step { token: 1, margin: 2.0, spread: 1.0 }));
        assert_eq!(choose(&[3.0, 1.0]), Some(Step { token: 0, margin: 2.0, spread: 1.0 }));
        assert_eq!(choose(&[2.0, 2.0]), Some(Step { token: 0, margin: 0.0, spread: 0.0 }));
        assert_eq!(choose(&[5.0]), Some(Step { token: 0, margin: f64::INFINITY, spread: 0.0 }));
        assert_eq!(choose(&[f32::NAN, 1.0]), None);
        assert_eq!(choose(&[1.0, f32::INFINITY]), None);
        assert_eq!(choose(&[]), None);
    }
}
