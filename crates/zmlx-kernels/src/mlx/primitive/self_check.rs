//! Whether a kernel gives what its composition gives, for given arrays on this device: one function per primitive, with its
//! arguments and errors. Both are computed at once, so that a fault of the kernel's text comes to light here.

use mlx_rs::{Array, Dtype};

use super::{Call, Combine, Dense, Gather, GatherOptions, NoauxTcRoute, SoftmaxRoute};
use crate::metal::Numerics;
use crate::mlx::QuantizedExperts;
use crate::mlx::backend::copy_out;
use crate::mlx::runtime::fault;
use crate::{NoauxTc, Result, SoftmaxTopK};

/// What a self-check found.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfCheck {
    /// The kernel.
    pub kernel: &'static str,
    /// The shape of its (first) result.
    pub shape: Vec<i32>,
    /// What came of it.
    pub outcome: Outcome,
}

/// Kernel against composition.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// There is no kernel to check: no Metal, or no kernel for the shape. The primitive composes MLX's ops.
    NotAvailable {
        /// Which of both.
        why: &'static str,
    },
    /// Both were computed.
    Compared {
        /// The largest difference of an element; 0 where both are the same value or both NaN, infinite where one is NaN.
        max_difference: f32,
    },
    /// The kernel could not be compiled or run, or gave another type.
    Failed {
        /// What MLX says.
        why: String,
    },
}

/// Of [`super::gather_qmm_swiglu`].
///
/// # Errors
/// As there; a fault of the kernel is an [`Outcome`].
pub fn gather_qmm_swiglu(
    x: &Array,
    gate: &QuantizedExperts,
    up: &QuantizedExperts,
    rhs_indices: &Array,
    options: &GatherOptions<'_>,
) -> Result<SelfCheck> {
    check(&Gather::new(x, gate, up, rhs_indices, options)?)
}

/// Of [`super::gather_qmm_combine`].
///
/// # Errors
/// As there; a fault of the kernel is an [`Outcome`].
pub fn gather_qmm_combine(
    x: &Array,
    down: &QuantizedExperts,
    rhs_indices: &Array,
    weights: &Array,
    numerics: Numerics,
) -> Result<SelfCheck> {
    check(&Combine::new(x, down, rhs_indices, weights, numerics)?)
}

/// Of [`super::qmm_swiglu`].
///
/// # Errors
/// As there; a fault of the kernel is an [`Outcome`].
pub fn qmm_swiglu(
    x: &Array,
    gate: &QuantizedExperts,
    up: &QuantizedExperts,
    numerics: Numerics,
) -> Result<SelfCheck> {
    check(&Dense::new(x, gate, up, numerics)?)
}

/// Of [`super::route_softmax_top_k`]; experts are compared as numbers.
///
/// # Errors
/// As there; a fault of the kernel is an [`Outcome`].
pub fn route_softmax_top_k(logits: &Array, settings: &SoftmaxTopK, numerics: Numerics) -> Result<SelfCheck> {
    check(&SoftmaxRoute::new(logits, settings, numerics)?)
}

/// Of [`super::route_noaux_tc`]; experts are compared as numbers.
///
/// # Errors
/// As there; a fault of the kernel is an [`Outcome`].
pub fn route_noaux_tc(
    logits: &Array,
    bias: &Array,
    settings: &NoauxTc,
    numerics: Numerics,
) -> Result<SelfCheck> {
    check(&NoauxTcRoute::new(logits, bias, settings, numerics)?)
}

fn check<const N: usize, C: Call<N>>(call: &C) -> Result<SelfCheck> {
    let composed = call.composed()?;
    let want = composed.iter().map(values).collect::<Result<Vec<_>>>()?;
    let compare = |fused: [Array; N]| {
        for (a, b) in fused.iter().zip(&composed) {
            if (a.dtype(), a.shape()) != (b.dtype(), b.shape()) {
                let [a, b] = [a, b].map(|a| format!("{:?} {:?}", a.dtype(), a.shape()));
                return Ok(Outcome::Failed { why: format!("the kernel gives {a}, its composition {b}") });
            }
        }
        let got = fused.iter().map(values).collect::<Result<Vec<_>>>()?;
        let pairs = got.iter().flatten().zip(want.iter().flatten());
        let max_difference = pairs.map(|(a, b)| difference(*a, *b)).fold(0.0, f32::max);
        Ok(Outcome::Compared { max_difference })
    };
    let outcome = if call.backend().runtime().launches().is_some() {
        match call.fused().map(|fused| fused.map(compare).transpose()) {
            Ok(Ok(Some(outcome))) => outcome,
            Ok(Ok(None)) => Outcome::NotAvailable { why: "there is no kernel for these shapes and types" },
            Ok(Err(e)) | Err(e) => Outcome::Failed { why: e.to_string() },
        }
    } else {
        Outcome::NotAvailable { why: "there is no GPU here, or the CPU was asked for" }
    };
    Ok(SelfCheck { kernel: C::KERNEL, shape: composed[0].shape().to_vec(), outcome })
}

fn values(x: &Array) -> Result<Vec<f32>> {
    const OP: &str = "self_check";
    let mut out = Vec::new();
    copy_out(OP, &x.as_dtype(Dtype::Float32).map_err(fault(OP))?, &mut out)?;
    Ok(out)
}

fn difference(a: f32, b: f32) -> f32 {
    match () {
        () if a == b || (a.is_nan() && b.is_nan()) => 0.0,
        () if a.is_nan() || b.is_nan() => f32::INFINITY,
        () => (a - b).abs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_never_hidden_by_what_is_no_number() {
        assert_eq!(difference(f32::NAN, f32::NAN), 0.0);
        assert_eq!(difference(f32::INFINITY, f32::INFINITY), 0.0);
        assert_eq!(difference(1.0, f32::NAN), f32::INFINITY);
        assert_eq!(difference(f32::INFINITY, 1.0), f32::INFINITY);
        assert_eq!(difference(1.0, 0.75), 0.25);
    }
}
