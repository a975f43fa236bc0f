//! Mixture-of-experts blocks on any [`Backend`](zmlx_kernels::Backend): a router, a bank of experts, and perhaps
//! shared experts.
//!
//! `y[t] = Σ_{e ∈ chosen(t)} w[t, e] · down_e( silu(gate_e(x[t])) · up_e(x[t]) ) + shared(x[t])`
//!
//! A [`Fusion`](zmlx_kernels::Fusion) selects the ops that compute it: stock, concatenated or fused, on the same
//! weights. With many tokens the backend's gathers group the tokens by expert, so that each expert that occurs is read
//! once.
#![forbid(unsafe_code)]

mod block;
mod experts;
mod mlp;
mod router;

pub use block::MoeBlock;
pub use experts::ExpertBank;
pub use mlp::Mlp;
pub use router::{Router, Routing};
pub use zmlx_kernels as kernels;
