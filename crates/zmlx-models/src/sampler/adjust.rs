//! Changes to logits before a token is chosen: bias, penalties, and tokens that are not allowed.

use super::{SampleContext, SamplingParams};
use crate::{Error, Result};

/// Changes logits in mlx-lm's order: bias, repetition, presence, frequency. Then tokens that are not allowed become -∞.
/// `seen` is a buffer.
pub(super) fn adjust(
    params: &SamplingParams,
    logits: &mut [f32],
    context: &SampleContext<'_>,
    seen: &mut Vec<u32>,
) -> Result<()> {
    for &(token, bias) in &params.logit_bias {
        change("logit_bias", logits, token, |l| l + bias)?;
    }
    if let Some(penalty) = params.repetition_penalty {
        collect(context.history, Some(params.repetition_context_size), seen);
        seen.dedup();
        for &token in seen.iter() {
            change("history", logits, token, |l| if l < 0.0 { l * penalty } else { l / penalty })?;
        }
    }
    let generated = context.history.get(context.n_prompt..).unwrap_or_default();
    if params.presence_penalty != 0.0 {
        collect(generated, params.presence_context_size, seen);
        seen.dedup();
        for &token in seen.iter() {
            change("history", logits, token, |l| l - params.presence_penalty)?;
        }
    }
    if params.frequency_penalty != 0.0 {
        collect(generated, params.frequency_context_size, seen);
        for same in seen.chunk_by(|a, b| a == b) {
            let penalty = params.frequency_penalty * same.len() as f32;
            change("history", logits, same[0], |l| l - penalty)?;
        }
    }
    for &token in context.banned {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    if let Some(allowed) = context.allowed {
        for (i, logit) in logits.iter_mut().enumerate() {
            if !allowed.has(i) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    Ok(())
}

/// Collects the last `n` tokens, sorted.
fn collect(tokens: &[u32], n: Option<usize>, sorted: &mut Vec<u32>) {
    let from = n.map_or(0, |n| tokens.len().saturating_sub(n));
    sorted.clear();
    sorted.extend_from_slice(&tokens[from..]);
    sorted.sort_unstable();
}

fn change(field: &'static str, logits: &mut [f32], token: u32, new: impl FnOnce(f32) -> f32) -> Result<()> {
    let Some(logit) = logits.get_mut(token as usize) else {
        let want = "token ids that have a logit";
        return Err(Error::Parameter { field, want, got: token.to_string() });
    };
    // Clamped, because a tiny penalty must not make a finite logit infinite.
    if *logit != f32::NEG_INFINITY {
        *logit = new(*logit).clamp(f32::MIN, f32::MAX);
    }
    Ok(())
}
