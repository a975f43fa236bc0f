//! Top-k, top-p and min-p: the tokens from which one is drawn.

use super::SamplingParams;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) token: u32,
}

/// Ranks by probability: larger logits first, equal ones by id.
pub(super) fn ranking(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    // Positive and negative zero are equal logits.
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The lowest-ranked token that passes the filters; `None` if all tokens do. Each filter keeps a prefix of the ranking,
/// so the shortest prefix decides. `max` is the largest logit, and `total` is the sum of all weights at temperature 1.
/// `candidates` is a buffer.
pub(super) fn last_kept(
    params: &SamplingParams,
    logits: &[f32],
    (max, total): (f32, f64),
    candidates: &mut Vec<Candidate>,
) -> Option<Candidate> {
    let top_p = params.top_p.filter(|&p| p < 1.0);
    let top_k = params.top_k.filter(|&k| k < logits.len());
    let min_p = params.min_p.filter(|&p| p > 0.0);
    if top_p.is_none() && top_k.is_none() && min_p.is_none() {
        return None;
    }
    let floor = min_p.map_or(f64::NEG_INFINITY, |p| f64::from(max) + f64::from(p).ln());
    candidates.clear();
    let all = logits.iter().enumerate().map(|(i, &logit)| Candidate { logit, token: i as u32 });
    candidates.extend(all.filter(|c| f64::from(c.logit) >= floor));
    if let Some(k) = top_k.filter(|&k| k < candidates.len()) {
        candidates.select_nth_unstable_by(k - 1, ranking);
        candidates.truncate(k);
    }
    match top_p {
        Some(p) => nucleus(candidates, f64::from(p) * total, max),
        None => candidates.iter().copied().max_by(ranking),
    }
}

/// The lowest-ranked candidate of the nucleus: the candidates with less than `mass` above them, and their equals.
fn nucleus(candidates: &mut [Candidate], mass: f64, max: f32) -> Option<Candidate> {
    // A nucleus is usually a few tokens. Ranking a growing part of the list avoids sorting the whole vocabulary.
    const FIRST: usize = 64;
    let (mut above, mut ranked, mut last) = (0.0, 0, None::<Candidate>);
    while ranked < candidates.len() {
        let rest = &mut candidates[ranked..];
        let n = rest.len().min(FIRST.max(ranked * 7));
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, ranking);
        }
        let head = &mut rest[..n];
        head.sort_unstable_by(ranking);
        for &c in head.iter() {
            if above >= mass && last.is_some_and(|l| c.logit < l.logit) {
                return last;
            }
            above += weight(c.logit, max, 1.0);
            last = Some(c);
        }
        ranked += n;
    }
    last
}

/// The probability of a logit, with the best one scaled to 1.
pub(super) fn weight(logit: f32, max: f32, temperature: f64) -> f64 {
    ((f64::from(logit) - f64::from(max)) / temperature).exp()
}
