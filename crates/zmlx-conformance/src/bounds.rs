//! Wanted values with a bound for each, which allows the errors of rounding in f32 and no more.

use std::borrow::Cow;
use std::fmt::Display;

use zmlx_core::WeightFormat;
use zmlx_oracle::ops::{self, Activation, Combine, GatherInput, GatherMatmul};

use crate::inputs::TestWeight;
use crate::suite::Instance;

/// Half the distance of 1 to the next f32: the relative error of one rounding.
pub const U: f64 = 1.0 / (1 << 24) as f64;

/// The number of roundings of a product, relative to `‖x‖·‖w‖`. If one weight were left out, the difference would be
/// about 1/n_in of that, a thousand times as much. In affine formats the terms `scale·q·x` and `bias·x` are each up to
/// three times `w·x`.
const PRODUCT: f64 = 8.0;
/// The number of roundings of silu, relative to its value: 4 of the exponential (2 units in the last place), and those
/// of sum, quotient and product, rounded up.
const SILU: f64 = 16.0;
/// If the exponential underflows, silu is 0 instead of a value below this.
const SILU_UNDERFLOW: f64 = 1e-35;

/// Wanted values, and how far each may be off.
#[derive(Clone, Debug)]
pub struct Bounded {
    /// The right values.
    pub want: Vec<f64>,
    /// How far each result may be off.
    pub allowed: Vec<f64>,
    /// The formats of the weights that were used.
    pub formats: Vec<WeightFormat>,
    /// The number of values of a token.
    pub per_token: usize,
}

impl Bounded {
    /// All bounds times `factor`.
    pub fn times(&self, factor: f64) -> Self {
        let allowed = self.allowed.iter().map(|a| factor * a).collect();
        Self { want: self.want.clone(), allowed, formats: self.formats.clone(), ..*self }
    }

    /// The same bound for all.
    pub fn uniform(want: Vec<f64>, allowed: f64) -> Self {
        Self { allowed: vec![allowed; want.len()], want, formats: Vec::new(), per_token: 1 }
    }

    /// The bound `abs + rel·|want|` for each value.
    pub fn relative(want: Vec<f64>, abs: f64, rel: f64) -> Self {
        let allowed = want.iter().map(|w| abs + rel * w.abs()).collect();
        Self { allowed, want, formats: Vec::new(), per_token: 1 }
    }

    /// The first `n` values.
    pub fn first(&self, n: usize) -> Self {
        let formats = self.formats.clone();
        Self { want: self.want[..n].to_vec(), allowed: self.allowed[..n].to_vec(), formats, ..*self }
    }

    /// The bounds for another result, around `other`, if both are within these bounds of the wanted values.
    pub fn around(&self, other: &[f32]) -> Self {
        assert_eq!(other.len(), self.want.len());
        let want = other.iter().map(|v| f64::from(*v)).collect();
        let formats = self.formats.clone();
        Self { want, allowed: self.allowed.iter().map(|a| 2.0 * a).collect(), formats, ..*self }
    }

    /// The bounds scaled to what the instance declares for its products.
    pub fn on<B>(&self, instance: &Instance<B>) -> Cow<'_, Self> {
        let n_tokens = self.want.len() / self.per_token.max(1);
        let factor = self.formats.iter().map(|f| (instance.product_error)(*f, n_tokens)).fold(1.0, f64::max);
        if factor == 1.0 {
            return Cow::Borrowed(self);
        }
        let allowed = self.allowed.iter().map(|a| factor * a).collect();
        Cow::Owned(Self { want: self.want.clone(), allowed, formats: Vec::new(), ..*self })
    }

    /// Passes if there are as many values and each is within its bound. NaN is within no bound.
    #[track_caller]
    pub fn check(&self, got: &[f32], what: impl Display) {
        assert_eq!(got.len(), self.want.len(), "{what}: number of values");
        let off = |i: usize| (f64::from(got[i]) - self.want[i]).abs();
        let is_close = |i: usize| f64::from(got[i]) == self.want[i] || off(i) <= self.allowed[i];
        if (0..got.len()).all(is_close) {
            return;
        }
        let bad: Vec<usize> = (0..got.len()).filter(|i| !is_close(*i)).collect();
        let i = bad[0];
        panic!(
            "{what}: {} of {} values are off, first {i}: got {:e}, want {:e} ± {:e}",
            bad.len(),
            got.len(),
            got[i],
            self.want[i],
            self.allowed[i]
        );
    }
}

/// Passes if the bits are equal. NaN never passes, because no op here may give NaN.
#[track_caller]
pub fn check_bits(got: &[f32], want: &[f32], what: impl Display) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let equal = !g.is_nan() && g.to_bits() == w.to_bits();
        assert!(equal, "{what}: value {i}: got {g:e}, want the bits of {w:e}");
    }
}

fn norm<T: ops::Real>(v: &[T]) -> f64 {
    v.iter().map(|v| (*v).into().powi(2)).sum::<f64>().sqrt()
}

/// The bounds of products of rows of x with matrices, each given as `(row, matrix)`.
fn allowed(x: &[f32], w: &TestWeight, pairs: impl Iterator<Item = (usize, usize)>) -> Vec<f64> {
    let x_norms: Vec<f64> = x.chunks_exact(w.n_in).map(norm).collect();
    let w_norms: Vec<f64> = w.values.chunks_exact(w.n_in).map(norm).collect();
    pairs
        .flat_map(|(row, mat)| {
            let x = x_norms[row];
            w_norms[mat * w.n_out..(mat + 1) * w.n_out].iter().map(move |w| PRODUCT * U * x * w)
        })
        .collect()
}

/// `x · wᵀ` for all rows of x.
pub fn linear(x: &[f32], w: &TestWeight) -> Bounded {
    let n_rows = x.len() / w.n_in;
    Bounded {
        want: ops::matmul(x, &w.values, n_rows, w.n_out, w.n_in),
        allowed: allowed(x, w, (0..n_rows).map(|r| (r, 0))),
        formats: vec![w.host.format()],
        per_token: w.n_out,
    }
}

/// One matrix per head.
pub fn head_linear(x: &[f32], w: &TestWeight) -> Bounded {
    let n_rows = x.len() / w.n_in;
    let rows = x.chunks_exact(w.n_in).enumerate();
    Bounded {
        want: rows.flat_map(|(r, x)| ops::matmul(x, w.mat(r % w.n_mats), 1, w.n_out, w.n_in)).collect(),
        allowed: allowed(x, w, (0..n_rows).map(|r| (r, r % w.n_mats))),
        formats: vec![w.host.format()],
        per_token: w.n_mats * w.n_out,
    }
}

/// The matrices of chosen experts. x has a row for each token or for each slot.
pub fn gather(x: &[f32], w: &TestWeight, experts: &[u32], top_k: usize) -> Bounded {
    let per_slot = x.len() == experts.len() * w.n_in && top_k > 1;
    let sizes = GatherMatmul {
        n_tokens: experts.len() / top_k,
        top_k,
        n_experts: w.n_mats,
        n: w.n_out,
        k: w.n_in,
        input: if per_slot { GatherInput::PerSlot } else { GatherInput::PerToken },
    };
    let row = |slot: usize| if per_slot { slot } else { slot / top_k };
    Bounded {
        want: ops::gather_matmul(x, &w.values, experts, sizes),
        allowed: allowed(x, w, experts.iter().enumerate().map(|(s, e)| (row(s), *e as usize))),
        formats: vec![w.host.format()],
        per_token: top_k * w.n_out,
    }
}

/// `silu(gate) · up` of results that are themselves within their bounds.
pub fn swiglu(gate: &Bounded, up: &Bounded) -> Bounded {
    let want = ops::swiglu(&gate.want, &up.want);
    let allowed = (0..want.len())
        .map(|i| {
            let (u, du) = (up.want[i].abs(), up.allowed[i]);
            // The slope of silu is at most 1.1.
            1.1 * gate.allowed[i] * (u + du)
                + ops::silu(gate.want[i]).abs() * du
                + SILU * U * want[i].abs()
                + SILU_UNDERFLOW * u
        })
        .collect();
    Bounded { want, allowed, formats: [&gate.formats[..], &up.formats].concat(), ..*gate }
}

/// The activation of results that are themselves within their bounds.
pub fn gated(gate: &Bounded, up: &Bounded, activation: Activation) -> Bounded {
    if activation == Activation::SwiGlu {
        return swiglu(gate, up);
    }
    let of = |x: f64, y: f64| ops::gated(&[x], &[y], activation)[0];
    let allowed = |i: usize| {
        let (g, dg, u, du) = (gate.want[i], gate.allowed[i], up.want[i], up.allowed[i]);
        // The value of the gate's function, its factor, and the argument of the exponential, whose rounding error grows
        // with its size.
        let (value, factor, argument) = match activation {
            Activation::ClampedSwiGlu { alpha, limit } => {
                (of(g, 0.0), u.clamp(-limit, limit) + 1.0, alpha * g.min(limit))
            }
            _ => (of(g, 1.0), u, 1.6 * (g + 0.045 * g.powi(3))),
        };
        // The slope of both functions is at most 1.2. The factor of the clamped one has also been rounded.
        1.2 * dg * (factor.abs() + du)
            + value.abs() * (du + 2.0 * U)
            + (SILU + 8.0 * argument.abs()) * U * (value * factor).abs()
            + SILU_UNDERFLOW * factor.abs()
    };
    Bounded {
        want: ops::gated(&gate.want, &up.want, activation),
        allowed: (0..gate.want.len()).map(allowed).collect(),
        formats: [&gate.formats[..], &up.formats].concat(),
        ..*gate
    }
}

/// `x[slot] + bias[mat(slot)]`: adds the bias of a matrix to each row of x.
pub fn plus(x: &Bounded, bias: &TestWeight, mats: impl Iterator<Item = usize>) -> Bounded {
    let biases = mats.flat_map(|mat| bias.mat(mat).to_vec());
    let want: Vec<f64> = x.want.iter().zip(biases).map(|(x, b)| x + b).collect();
    let allowed = x.allowed.iter().zip(&want).map(|(a, w)| a + U * w.abs()).collect();
    Bounded { want, allowed, formats: x.formats.clone(), ..*x }
}

/// `Σ_s weights[t, s] · x[t, s]`, in any order of s.
pub fn combine(x: &Bounded, weights: &[f32], top_k: usize) -> Bounded {
    let hidden = x.want.len() / weights.len();
    let sizes = Combine { n_tokens: weights.len() / top_k, top_k, hidden };
    let magnitudes: Vec<f64> = weights.iter().map(|w| f64::from(w.abs())).collect();
    // Each term has its own bound, the rounding of the product, and one rounding for each sum that it goes through.
    let terms: Vec<f64> =
        x.want.iter().zip(&x.allowed).map(|(x, a)| a + U * (1 + top_k) as f64 * x.abs()).collect();
    Bounded {
        want: ops::combine(&x.want, weights, sizes),
        allowed: ops::combine(&terms, &magnitudes, sizes),
        formats: x.formats.clone(),
        per_token: hidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filling buffers with NaN relies on this.
    #[test]
    fn no_bound_lets_nan_pass() {
        for bound in [0.0, 1e30, f64::INFINITY] {
            let passes = |got: f32| {
                let check = || Bounded::uniform(vec![1.0], bound).check(&[got], "on purpose");
                std::panic::catch_unwind(check).is_ok()
            };
            assert!(passes(1.0) && !passes(f32::NAN));
        }
    }
}
