//! Routers: which experts a token goes to, and with what weights.

use super::{Real, check_len, sigmoid, softmax};

/// The experts chosen for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// `[n_tokens, top_k]`, best first; of equal scores the lower index first.
    pub indices: Vec<u32>,
    /// `[n_tokens, top_k]`, the weights that multiply the experts' outputs, in the same order.
    pub weights: Vec<f64>,
    /// `[n_tokens]`: the score of the last chosen expert minus the best score left out. An engine whose scores are off
    /// by more may choose differently and still be right. Infinite if none was left out.
    pub margins: Vec<f64>,
}

/// Sizes and parameters of [`softmax_top_k`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftmaxTopK {
    /// Number of experts.
    pub n_experts: usize,
    /// Number of experts chosen for each token.
    pub top_k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub norm_topk_prob: bool,
}

/// The `k` largest of `scores`, largest first; of equal scores the lower index first.
///
/// # Panics
/// If `k > scores.len()`.
#[must_use]
pub fn top_k<T: Real>(scores: &[T], k: usize) -> Vec<u32> {
    assert!(k <= scores.len(), "top_k: {k} of {}", scores.len());
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    // A stable sort keeps equal scores in the order of their indices.
    order.sort_by(|&a, &b| scores[b as usize].into().total_cmp(&scores[a as usize].into()));
    order.truncate(k);
    order
}

/// `p = softmax(logits)` over all experts. The `top_k` largest are chosen, with weights `p`, or `p / Σ p` over the
/// chosen ones if `norm_topk_prob`.
///
/// **Shapes** `logits [n_tokens, n_experts]`. The margins of the result are differences of probabilities.
///
/// # Panics
/// On a length that is not a whole number of tokens, or `top_k > n_experts`.
#[must_use]
pub fn softmax_top_k<T: Real>(logits: &[T], router: SoftmaxTopK) -> Routing {
    let SoftmaxTopK { n_experts, top_k: k, norm_topk_prob } = router;
    route("softmax_top_k", logits, n_experts, k, |row| {
        let p = softmax(row);
        let chosen = top_k(&p, k);
        let sum: f64 = if norm_topk_prob { chosen.iter().map(|&e| p[e as usize]).sum() } else { 1.0 };
        let weights = chosen.iter().map(|&e| p[e as usize] / sum).collect();
        (p, chosen, weights)
    })
}

/// Sizes and parameters of [`noaux_tc`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoauxTc {
    /// Number of experts.
    pub n_experts: usize,
    /// Number of experts chosen for each token.
    pub top_k: usize,
    /// Number of groups that the experts are divided into, in order.
    pub n_group: usize,
    /// Number of groups whose experts may be chosen.
    pub topk_group: usize,
    /// Whether the chosen weights are divided by their sum plus `eps` (only if `top_k > 1`).
    pub norm_topk_prob: bool,
    /// Added to that sum.
    pub eps: f64,
    /// Factor of the weights.
    pub routed_scaling_factor: f64,
}

/// Sigmoid scores with a correction bias that affects only the choice:
/// ```text
/// s = sigmoid(logits);  sel = s + bias
/// with n_group > 1: a group's score is the sum of its two largest sel;
///     outside of the best topk_group groups sel is set to 0
/// the top_k largest sel are chosen;  weight = s, or s / (Σ s + eps);  · routed_scaling_factor
/// ```
/// **Shapes** `logits [n_tokens, n_experts]`, `bias [n_experts]`. Of equal groups the one with the lower index is kept.
/// The margins of the result are differences of `sel`. With groups they do not tell how close the groups were.
///
/// # Panics
/// On lengths that do not fit; if `top_k > n_experts`; if the groups do not divide the experts, or have only one
/// expert; if `topk_group > n_group`.
#[must_use]
pub fn noaux_tc<T: Real, B: Real>(logits: &[T], bias: &[B], router: NoauxTc) -> Routing {
    let NoauxTc { n_experts, top_k: k, n_group, topk_group, norm_topk_prob, eps, routed_scaling_factor } =
        router;
    check_len("noaux_tc", "bias", bias, &[n_experts]);
    route("noaux_tc", logits, n_experts, k, |row| {
        let s: Vec<f64> = row.iter().map(|&x| sigmoid(x.into())).collect();
        let mut sel: Vec<f64> = s.iter().zip(bias).map(|(s, &b)| s + b.into()).collect();
        if n_group > 1 {
            mask_groups(&mut sel, n_group, topk_group);
        }
        let chosen = top_k(&sel, k);
        let sum: f64 = chosen.iter().map(|&e| s[e as usize]).sum();
        let divisor = if norm_topk_prob && k > 1 { sum + eps } else { 1.0 };
        let weights = chosen.iter().map(|&e| s[e as usize] / divisor * routed_scaling_factor).collect();
        (sel, chosen, weights)
    })
}

/// Sets the scores outside of the best `topk_group` groups to 0.
fn mask_groups(sel: &mut [f64], n_group: usize, topk_group: usize) {
    let len = sel.len() / n_group;
    assert!(len * n_group == sel.len() && len >= 2, "noaux_tc: {} experts in {n_group} groups", sel.len());
    let sum_of_two = |group: &[f64]| top_k(group, 2).iter().map(|&e| group[e as usize]).sum();
    let scores: Vec<f64> = sel.chunks_exact(len).map(sum_of_two).collect();
    let kept = top_k(&scores, topk_group);
    for (group_idx, group) in sel.chunks_exact_mut(len).enumerate() {
        if !kept.contains(&(group_idx as u32)) {
            group.fill(0.0);
        }
    }
}

/// Runs `choose` for each token. It returns scores, chosen experts and their weights.
fn route<T: Real>(
    op: &str,
    logits: &[T],
    n_experts: usize,
    k: usize,
    choose: impl Fn(&[T]) -> (Vec<f64>, Vec<u32>, Vec<f64>),
) -> Routing {
    assert!(n_experts > 0 && k <= n_experts, "{op}: top_k {k} of {n_experts} experts");
    check_len(op, "logits", logits, &[logits.len() / n_experts, n_experts]);
    let mut routing = Routing { indices: Vec::new(), weights: Vec::new(), margins: Vec::new() };
    for row in logits.chunks_exact(n_experts) {
        let (scores, chosen, weights) = choose(row);
        let least = chosen.iter().map(|&e| scores[e as usize]).fold(f64::INFINITY, f64::min);
        let left_out = (0..n_experts as u32).filter(|e| !chosen.contains(e)).map(|e| scores[e as usize]);
        routing.margins.push(least - left_out.fold(f64::NEG_INFINITY, f64::max));
        routing.indices.extend(chosen);
        routing.weights.extend(weights);
    }
    routing
}
