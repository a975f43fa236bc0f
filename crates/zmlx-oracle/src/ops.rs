//! Operations on slices, computed in `f64`, which kernels are compared with.
//!
//! Inputs are row-major slices of any type that widens to `f64` (`f32`, `f64`, `half::f16`, `half::bf16`). Results are
//! `f64`, so that one result can be the next input without rounding in between. Neither results nor intermediate values
//! are rounded to the dtype of the inputs.
//!
//! Sizes are in small structs. All functions panic if a slice's length does not fit them, and the message names the
//! argument.

mod activation;
mod attention;
mod matmul;
mod norm;
mod recurrent;
mod rope;
mod router;

pub use activation::{Activation, add, gated, gelu_tanh, sigmoid, silu, soft_cap, softmax, swiglu};
pub use attention::{Attention, MlaAttention, Sight, attention, attention_with, mla_attention};
pub use matmul::{Combine, GatherInput, GatherMatmul, combine, gather_matmul, matmul};
pub use norm::rms_norm;
pub use recurrent::{
    CausalConv, DeltaInputs, GatedDelta, causal_conv, gated_delta, mul_sigmoid, rms_norm_gated,
};
pub use rope::{Rope, RopeLayout, rope, rope_frequencies};
pub use router::{NoauxTc, Routing, SoftmaxTopK, noaux_tc, softmax_top_k, top_k};

/// A number that widens to `f64` without loss.
pub trait Real: Into<f64> + Copy {}
impl<T: Into<f64> + Copy> Real for T {}

#[track_caller]
fn check_len<T>(op: &str, name: &str, slice: &[T], dims: &[usize]) {
    let want: usize = dims.iter().product();
    assert!(slice.len() == want, "{op}: {name} has {} elements, want {want} = {dims:?}", slice.len());
}

/// `Σ a_i·b_i`, added in order.
fn dot<A: Real, B: Real>(a: &[A], b: &[B]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}
