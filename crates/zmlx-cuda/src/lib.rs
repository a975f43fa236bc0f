//! The CUDA backend: NVIDIA GPUs from compute capability 8.0 on.
//!
//! Nothing is linked and nothing is compiled beforehand: the driver is loaded when a backend is made, and kernels are CUDA C++
//! texts (`src/kernels`) that NVRTC compiles when they are first used and that stay on disk afterwards. So one program runs
//! with and without a GPU, and says what is missing.
//!
//! # Numerics
//!
//! The *accurate* mode: activations are f32 between ops, sums are f32, no fast math. Where few activations meet codes of a
//! quantised matrix, they are rounded to 16-bit integers with a scale for each 32 of them, as on the CPU: off by 2⁻¹⁶ of the
//! largest of these at most. Where 8 tokens or more do, tensor cores multiply f16 values: activations and dequantised weights,
//! each row multiplied by a power of two, so that nothing overflows. Both are off by 2⁻¹¹ of themselves at most, or by 2⁻¹⁵ of
//! the largest scale or bias of their row (weights) or 2⁻³⁸ of the largest value (activations) where that is more. Caches hold
//! f16, so keys and values are off by 2⁻¹¹ of themselves. In prompts, queries and weights of attention are f16 too; for single
//! tokens and for latent attention they are sums of two f16 values.
//!
//! # How ops become kernels
//!
//! Norms, rotations and products are not launched when their op is called, but when something needs their values: a product
//! then takes a norm of its input along, attention norms and rotations of its heads, and a sum the product in front of it. Which
//! kernels run depends on the ops alone. A step of single tokens is recorded once as a CUDA graph and replayed afterwards;
//! what changes from token to token lies in device memory.

mod attention;
mod backend;
mod cache;
mod communicator;
mod compile;
mod device;
mod driver;
mod graph;
mod hex;
mod host_copy;
mod library;
mod mailboxes;
mod matmul;
mod memory;
mod nccl;
mod products;
mod recurrent;
mod rows;
mod sample;
mod step;
mod tensor;
mod weight;

pub use backend::CudaBackend;
pub use cache::CudaCache;
pub use communicator::{Communicator, Exchange};
pub use compile::{CompileError, Unit, compile_all, units};
pub use step::CudaStep;
pub use tensor::{CudaIndices, CudaTensor};
pub use weight::CudaWeight;

pub(crate) const NAME: &str = "cuda";
