//! The operations of layers with a state of fixed size: a causal convolution and the gated delta rule.

use super::{Real, check_len, dot, rms_norm, sigmoid, silu};

/// Sizes of [`causal_conv`].
#[derive(Debug, Clone, Copy)]
pub struct CausalConv {
    /// Number of tokens of the sequence, from its first one on.
    pub n_tokens: usize,
    /// Number of channels. Each is convolved on its own.
    pub n_channels: usize,
    /// Number of inputs that a result depends on.
    pub kernel: usize,
    /// Whether SiLU is applied to the result.
    pub silu: bool,
}

/// `y[t, c] = Σ_{j < kernel} weight[c, j] · x[t − kernel + 1 + j, c] + bias[c]`, where x before the first token is 0.
///
/// **Shapes** `x [n_tokens, n_channels]`, `weight [n_channels, kernel]`, `bias [n_channels]` or empty, result as `x`.
///
/// # Panics
/// If a length does not fit.
#[must_use]
pub fn causal_conv<X: Real, W: Real>(x: &[X], weight: &[W], bias: &[W], sizes: CausalConv) -> Vec<f64> {
    let CausalConv { n_tokens, n_channels, kernel, silu: has_silu } = sizes;
    check_len("causal_conv", "x", x, &[n_tokens, n_channels]);
    check_len("causal_conv", "weight", weight, &[n_channels, kernel]);
    let mut y = Vec::with_capacity(x.len());
    for t in 0..n_tokens {
        for c in 0..n_channels {
            let mut sum = bias.get(c).map_or(0.0, |&b| b.into());
            for back in 0..kernel.min(t + 1) {
                sum += weight[c * kernel + kernel - 1 - back].into() * x[(t - back) * n_channels + c].into();
            }
            y.push(if has_silu { silu(sum) } else { sum });
        }
    }
    y
}

/// Sizes of [`gated_delta`].
#[derive(Debug, Clone, Copy)]
pub struct GatedDelta {
    /// Number of tokens of the sequence, from its first one or from a state on.
    pub n_tokens: usize,
    /// Number of heads of queries and keys.
    pub n_k_heads: usize,
    /// Number of heads of values. Neighbours share a key head.
    pub n_v_heads: usize,
    /// Elements of a query or key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
}

impl GatedDelta {
    /// Number of elements in all queries, keys and values of a token.
    #[must_use]
    pub fn n_channels(&self) -> usize {
        2 * self.n_k_heads * self.k_dim + self.n_v_heads * self.v_dim
    }

    /// Number of elements in a state.
    #[must_use]
    pub fn state_len(&self) -> usize {
        self.n_v_heads * self.v_dim * self.k_dim
    }
}

/// Inputs of [`gated_delta`].
#[derive(Debug, Clone, Copy)]
pub struct DeltaInputs<'a, T> {
    /// `[n_tokens, n_channels]`: the queries of all heads, then their keys, then the values.
    pub qkv: &'a [T],
    /// `[n_tokens, n_v_heads]`.
    pub a: &'a [T],
    /// `[n_tokens, n_v_heads]`.
    pub b: &'a [T],
    /// `[n_v_heads]`.
    pub a_log: &'a [T],
    /// `[n_v_heads]`.
    pub dt_bias: &'a [T],
}

/// For each token and value head h, with key head `h / (n_v_heads / n_k_heads)`:
///
/// ```text
/// q ← q / √(Σq² + 1e-6) / √k_dim     k ← k / √(Σk² + 1e-6)
/// β = sigmoid(b)     g = exp(−exp(a_log) · ln(1 + exp(a + dt_bias)))
/// S ← g·S;   m = S·k;   S ← S + β·(v − m)⊗k;   y = S·q
/// ```
///
/// **Shapes** `state [n_v_heads, v_dim, k_dim]`, zero before the first token; result `[n_tokens, n_v_heads, v_dim]`.
///
/// # Panics
/// If a length does not fit.
#[must_use]
pub fn gated_delta<T: Real>(inputs: DeltaInputs<'_, T>, state: &mut [f64], sizes: GatedDelta) -> Vec<f64> {
    let GatedDelta { n_tokens, n_k_heads, n_v_heads, k_dim, v_dim } = sizes;
    let DeltaInputs { qkv, a, b, a_log, dt_bias } = inputs;
    let n_channels = sizes.n_channels();
    check_len("gated_delta", "qkv", qkv, &[n_tokens, n_channels]);
    check_len("gated_delta", "a", a, &[n_tokens, n_v_heads]);
    check_len("gated_delta", "b", b, &[n_tokens, n_v_heads]);
    check_len("gated_delta", "a_log", a_log, &[n_v_heads]);
    check_len("gated_delta", "dt_bias", dt_bias, &[n_v_heads]);
    check_len("gated_delta", "state", state, &[n_v_heads, v_dim, k_dim]);
    let unit = |x: &[T]| -> Vec<f64> {
        let length = (dot(x, x) + 1e-6).sqrt();
        x.iter().map(|&x| x.into() / length).collect()
    };
    let mut y = Vec::with_capacity(n_tokens * n_v_heads * v_dim);
    for t in 0..n_tokens {
        let (q, rest) = qkv[t * n_channels..][..n_channels].split_at(n_k_heads * k_dim);
        let (k, v) = rest.split_at(n_k_heads * k_dim);
        for h in 0..n_v_heads {
            let k_head = h / (n_v_heads / n_k_heads) * k_dim;
            let (q, k) = (unit(&q[k_head..][..k_dim]), unit(&k[k_head..][..k_dim]));
            let beta = sigmoid(b[t * n_v_heads + h].into());
            let x: f64 = a[t * n_v_heads + h].into() + dt_bias[h].into();
            let softplus = if x > 30.0 { x } else { x.exp().ln_1p() };
            let g = (-a_log[h].into().exp() * softplus).exp();
            for i in 0..v_dim {
                let row = &mut state[(h * v_dim + i) * k_dim..][..k_dim];
                row.iter_mut().for_each(|s| *s *= g);
                let change = beta * (v[h * v_dim + i].into() - dot(row, &k));
                row.iter_mut().zip(&k).for_each(|(s, k)| *s += change * k);
                y.push(dot(row, &q) / (k_dim as f64).sqrt());
            }
        }
    }
    y
}

/// `rms_norm(x, weight) · silu(gate)`, row by row. **Shapes** as [`rms_norm`], `gate` as `x`.
///
/// # Panics
/// If a length does not fit.
#[must_use]
pub fn rms_norm_gated<X: Real, G: Real, W: Real>(x: &[X], gate: &[G], weight: &[W], eps: f64) -> Vec<f64> {
    check_len("rms_norm_gated", "gate", gate, &[x.len()]);
    let normed = rms_norm(x, weight, eps);
    normed.iter().zip(gate).map(|(y, &gate)| y * silu(gate.into())).collect()
}

/// `x · sigmoid(gate)`, where `gate` has an element for each of `x`, or one for each row.
///
/// # Panics
/// If the gates do not divide the elements evenly.
#[must_use]
pub fn mul_sigmoid<X: Real, G: Real>(x: &[X], gate: &[G]) -> Vec<f64> {
    assert!(!gate.is_empty() && x.len().is_multiple_of(gate.len()), "mul_sigmoid: {} gates", gate.len());
    let width = x.len() / gate.len();
    x.iter().enumerate().map(|(i, &x)| x.into() * sigmoid(gate[i / width].into())).collect()
}
