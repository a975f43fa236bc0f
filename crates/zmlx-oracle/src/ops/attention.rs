//! Causal attention: grouped heads, and multi-head latent attention in its expanded form.

use super::{Real, check_len, dot, matmul, softmax};

/// Sizes and parameters of [`attention`].
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Number of queries. They are the last `n_tokens` of the `n_kv` positions.
    pub n_tokens: usize,
    /// Number of keys and values.
    pub n_kv: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads, which divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of a query or key head.
    pub head_dim: usize,
    /// Elements of a value head.
    pub v_head_dim: usize,
    /// Factor of the scores, usually `1/√head_dim`.
    pub scale: f64,
}

/// `out[t, h] = Σ_j softmax_j(scale · q[t, h]·k[j, g]) · v[j, g]` with `g = h / (n_heads / n_kv_heads)` and `j` from
/// 0 to the query's own position `n_kv - n_tokens + t`.
///
/// **Shapes** `q [n_tokens, n_heads, head_dim]`, `k [n_kv, n_kv_heads, head_dim]`,
/// `v [n_kv, n_kv_heads, v_head_dim]`, result `[n_tokens, n_heads, v_head_dim]`.
///
/// # Panics
/// On lengths that do not fit, `n_tokens > n_kv`, or heads that do not divide.
#[must_use]
pub fn attention<Q: Real, K: Real, V: Real>(q: &[Q], k: &[K], v: &[V], sizes: Attention) -> Vec<f64> {
    attention_with(q, k, v, sizes, Sight::default())
}

/// Limits the keys that a query sees, and adds sinks to its softmax.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight<'a> {
    /// Number of positions that a query sees, its own included; `None` for all.
    pub window: Option<usize>,
    /// A score for each head that takes part in the softmax but has no value; empty if there are no sinks.
    pub sinks: &'a [f32],
}

/// As [`attention`]: a query at position `i` sees `j` with `i - window < j ≤ i`, and with sinks
/// `softmax_j = exp(score_j) / (Σ exp(score) + exp(sinks[h]))`.
///
/// # Panics
/// As [`attention`]; if there are sinks, but not one for each head.
#[must_use]
pub fn attention_with<Q: Real, K: Real, V: Real>(
    q: &[Q],
    k: &[K],
    v: &[V],
    sizes: Attention,
    sight: Sight<'_>,
) -> Vec<f64> {
    let Attention { n_tokens, n_kv, n_heads, n_kv_heads, head_dim, v_head_dim, scale } = sizes;
    check_len("attention", "q", q, &[n_tokens, n_heads, head_dim]);
    check_len("attention", "k", k, &[n_kv, n_kv_heads, head_dim]);
    check_len("attention", "v", v, &[n_kv, n_kv_heads, v_head_dim]);
    assert!(n_tokens <= n_kv, "attention: {n_tokens} queries, {n_kv} keys");
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "attention: {n_heads} heads, {n_kv_heads} kv"
    );
    assert!(sight.sinks.is_empty() || sight.sinks.len() == n_heads, "attention: {} sinks", sight.sinks.len());
    let mut out = vec![0.0; n_tokens * n_heads * v_head_dim];
    for token in 0..n_tokens {
        for head in 0..n_heads {
            let kv_head = head / (n_heads / n_kv_heads);
            let query = &q[(token * n_heads + head) * head_dim..][..head_dim];
            let end = n_kv - n_tokens + token + 1;
            let start = sight.window.map_or(0, |window| end.saturating_sub(window));
            let mut scores: Vec<f64> = (start..end)
                .map(|j| scale * dot(query, &k[(j * n_kv_heads + kv_head) * head_dim..][..head_dim]))
                .collect();
            scores.extend(sight.sinks.get(head).map(|sink| f64::from(*sink)));
            let sum = &mut out[(token * n_heads + head) * v_head_dim..][..v_head_dim];
            for (j, p) in (start..end).zip(softmax(&scores)) {
                let value = &v[(j * n_kv_heads + kv_head) * v_head_dim..][..v_head_dim];
                for (sum, &v) in sum.iter_mut().zip(value) {
                    *sum += p * v.into();
                }
            }
        }
    }
    out
}

/// Sizes and parameters of [`mla_attention`].
#[derive(Debug, Clone, Copy)]
pub struct MlaAttention {
    /// Number of queries. They are the last `n_tokens` of the `n_kv` positions.
    pub n_tokens: usize,
    /// Number of cached positions.
    pub n_kv: usize,
    /// Number of heads.
    pub n_heads: usize,
    /// Elements of a query head without position.
    pub qk_nope_head_dim: usize,
    /// Elements of a query head with rope.
    pub qk_rope_head_dim: usize,
    /// Elements of the latent.
    pub kv_lora_rank: usize,
    /// Elements of a value head.
    pub v_head_dim: usize,
    /// Factor of the scores, usually `1/√(qk_nope_head_dim + qk_rope_head_dim)`.
    pub scale: f64,
}

/// Latent attention in the expanded form, which absorbed kernels never compute: for every head `h`
/// ```text
/// k[j, h] = (kv[j] · embed_q[h]) | k_pe[j]      q[t, h] = q_nope[t, h] | q_pe[t, h]
/// v[j, h] = unembed_out[h] · kv[j]              out = attention(q, k, v)
/// ```
/// **Shapes** `q_nope [n_tokens, n_heads, qk_nope_head_dim]`, `q_pe [n_tokens, n_heads, qk_rope_head_dim]`,
/// `kv [n_kv, kv_lora_rank]` (already normed), `k_pe [n_kv, qk_rope_head_dim]` (already rotated, as `q_pe`),
/// `embed_q [n_heads, kv_lora_rank, qk_nope_head_dim]`, `unembed_out [n_heads, v_head_dim, kv_lora_rank]`,
/// result `[n_tokens, n_heads, v_head_dim]`.
///
/// # Panics
/// On lengths that do not fit, or `n_tokens > n_kv`.
#[must_use]
pub fn mla_attention<A: Real, C: Real, W: Real>(
    (q_nope, q_pe): (&[A], &[A]),
    (kv, k_pe): (&[C], &[C]),
    (embed_q, unembed_out): (&[W], &[W]),
    sizes: MlaAttention,
) -> Vec<f64> {
    let MlaAttention { n_tokens, n_kv, n_heads, kv_lora_rank: rank, v_head_dim, scale, .. } = sizes;
    let (nope, pe) = (sizes.qk_nope_head_dim, sizes.qk_rope_head_dim);
    check_len("mla_attention", "q_nope", q_nope, &[n_tokens, n_heads, nope]);
    check_len("mla_attention", "q_pe", q_pe, &[n_tokens, n_heads, pe]);
    check_len("mla_attention", "kv", kv, &[n_kv, rank]);
    check_len("mla_attention", "k_pe", k_pe, &[n_kv, pe]);
    check_len("mla_attention", "embed_q", embed_q, &[n_heads, rank, nope]);
    check_len("mla_attention", "unembed_out", unembed_out, &[n_heads, v_head_dim, rank]);
    let head_dim = nope + pe;
    let mut q = Vec::with_capacity(n_tokens * n_heads * head_dim);
    for head in 0..n_tokens * n_heads {
        q.extend(q_nope[head * nope..(head + 1) * nope].iter().map(|&x| x.into()));
        q.extend(q_pe[head * pe..(head + 1) * pe].iter().map(|&x| x.into()));
    }
    let mut k = vec![0.0; n_kv * n_heads * head_dim];
    let mut v = vec![0.0; n_kv * n_heads * v_head_dim];
    for head in 0..n_heads {
        let down = &embed_q[head * rank * nope..(head + 1) * rank * nope];
        let down_t: Vec<W> = (0..nope).flat_map(|i| (0..rank).map(move |r| down[r * nope + i])).collect();
        let up = &unembed_out[head * v_head_dim * rank..(head + 1) * v_head_dim * rank];
        let keys = matmul(kv, &down_t, n_kv, nope, rank);
        let values = matmul(kv, up, n_kv, v_head_dim, rank);
        for j in 0..n_kv {
            let key = &mut k[(j * n_heads + head) * head_dim..][..head_dim];
            key[..nope].copy_from_slice(&keys[j * nope..(j + 1) * nope]);
            for (key, &x) in key[nope..].iter_mut().zip(&k_pe[j * pe..(j + 1) * pe]) {
                *key = x.into();
            }
            v[(j * n_heads + head) * v_head_dim..][..v_head_dim]
                .copy_from_slice(&values[j * v_head_dim..(j + 1) * v_head_dim]);
        }
    }
    attention(
        &q,
        &k,
        &v,
        Attention { n_tokens, n_kv, n_heads, n_kv_heads: n_heads, head_dim, v_head_dim, scale },
    )
}
