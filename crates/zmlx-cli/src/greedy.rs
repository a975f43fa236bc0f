//! Greedy decoding that shows its logits.

use std::time::{Duration, Instant};

use anyhow::Result;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Input, Logits, Model, PoolOptions};

/// A token and how sure the model was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    /// The most probable token, of equal ones the lowest.
    pub(crate) token: u32,
    /// The best logit minus the second best; infinite if there is only one.
    pub(crate) margin: f64,
    /// The root mean square of the logits about their mean: the scale on which a margin is small.
    pub(crate) spread: f64,
}

/// What a greedy decoding gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) steps: Vec<Step>,
    /// True if the decoding ended because a logit was not a number.
    pub(crate) is_broken: bool,
    /// From the first token to the last.
    pub(crate) time: Duration,
}

/// Continues `prompt` by up to `n_tokens` tokens, fewer if the context ends. `on_logits` sees the logits that each
/// token was chosen from.
pub(crate) fn decode<B: Backend>(
    model: &Model<B>,
    prompt: &[u32],
    n_tokens: usize,
    fusion: &Fusion,
    mut on_logits: impl FnMut(&[f32]),
) -> Result<Decoded> {
    let mut pool = model.pool(PoolOptions::default())?;
    let slot = pool.allocate()?;
    let mut logits = Vec::new();
    let mut steps: Vec<Step> = Vec::new();
    let mut first_at = None;
    let mut time = Duration::ZERO;
    while steps.len() < n_tokens {
        let y = match steps.last() {
            None => model.prefill(&mut pool, slot, prompt, fusion, &mut |_, _| ())?,
            Some(_) if pool.n_tokens(slot) == model.architecture().max_position_embeddings => break,
            Some(last) => {
                let input = Input { slot, tokens: &[last.token], logits: Logits::Last };
                model.forward(&mut pool, &[input], fusion)?
            }
        };
        model.backend().read(&y, &mut logits)?;
        on_logits(&logits);
        let Some(step) = choose(&logits) else {
            return Ok(Decoded { steps, is_broken: true, time });
        };
        steps.push(step);
        time = first_at.get_or_insert_with(Instant::now).elapsed();
    }
    Ok(Decoded { steps, is_broken: false, time })
}

/// The greedy choice; none if a logit is not finite, or there is none.
pub(crate) fn choose(logits: &[f32]) -> Option<Step> {
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
