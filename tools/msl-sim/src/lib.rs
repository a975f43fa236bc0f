//! Runs Metal compute kernels on a CPU, for tests on machines without Metal.
//!
//! A kernel is translated to C++, compiled with clang++ or g++ when a test asks for it, and executed in a process of
//! its own. Each thread is a fibre, and all threads wait for each other at barriers and simdgroup operations, as on a
//! GPU. The test chooses the order of the threads. [`Mode::Detect`] also checks every access to memory.
//!
//! ```
//! use msl_sim::{Dtype, MlxBody, Mode, Order, Space};
//!
//! # fn main() -> Result<(), msl_sim::Error> {
//! if !msl_sim::available() {
//!     return Ok(()); // no compiler, and none required
//! }
//! // A body as it is passed to `mlx_rs::fast::MetalKernel`.
//! let body = MlxBody::new("scale", "uint i = thread_position_in_grid.x; y[i] = T(float(x[i]) * by);")
//!     .input("x", Dtype::Bfloat16, &[6])
//!     .input("by", Dtype::Float32, &[])
//!     .output("y", Dtype::Bfloat16, &[6])
//!     .template("T", Dtype::Bfloat16);
//! let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(half::bf16::from_f32);
//! for order in [Order::Forward, Order::Reverse, Order::Random(1)] {
//!     let kernel = body.build(Mode::Detect)?;
//!     let outputs = kernel.call().input(&x).input(&[0.5f32]).order(order).dispatch([6, 1, 1], [32, 1, 1])?;
//!     assert_eq!(outputs.get::<half::bf16>(0)?[3].to_f32(), 2.0);
//! }
//! // `x` has fewer than eight elements, so MLX makes it `constant`; larger inputs are `device`.
//! body.check_address_spaces()?;
//! body.space("x", Space::Device).check_address_spaces()?;
//! # Ok(())
//! # }
//! ```
//!
//! Source with its own kernel functions is an [`Msl`]. Its [`Library`] returns a [`Call`] for each kernel.
//!
//! # What a clean run shows
//!
//! - The body compiles as C++ with Metal's types: conversions to `bfloat` are explicit, literals are `float`, `double`
//!   does not exist, and every kernel argument has an address space.
//! - [`Mode::Detect`] finds no race in threadgroup or device memory, no access out of bounds, no read before a write,
//!   no output that is not completely written, and no barrier or simd operation that only some threads reach. This
//!   holds for these arguments and for every interleaving that the barriers allow, not only for the order that ran.
//! - If all orders give the same bits, the result does not depend on scheduling.
//! - If the results with and without [`Msl::contract_fma`] have the same bits, they do not depend on fused
//!   multiply-adds.
//!
//! # Numerics
//!
//! `half` and `bfloat` round to nearest even after every operation. `simd_sum` and similar functions combine lanes as a
//! butterfly from distance 16 down to 1. Transcendental functions, including those in `fast::`, are evaluated in double
//! and rounded once. `sqrt`, division and `fma` are correctly rounded. Denormals are kept.
//!
//! # What it does not show
//!
//! - Speed, occupancy and register use: the simulator does not model them.
//! - The exact bits of Apple's GPUs: Apple's compiler may contract operations, its functions may be a few ulp off, the
//!   order within `simd_sum` and `simdgroup_multiply_accumulate` depends on the hardware, and `fast::` functions may
//!   flush denormals.
//! - Other errors of Apple's compiler.
//! - Functions that are overloaded on the address space alone do not compile here. A template over the type of the
//!   pointer does. The address-space check refuses copies of whole structs from `constant` or `device` memory, which
//!   Metal allows.
//! - A simdgroup always has 32 lanes. Textures, imageblocks, indirect dispatch and forward progress do not exist.
#![forbid(unsafe_code)]

mod cache;
mod compiler;
mod error;
mod mlx;
mod msl;
mod runner;
mod shim;
mod spaces;
mod swizzle;
mod translate;

pub use compiler::Mode;
pub use error::{Error, Fault, FaultKind};
pub use mlx::{Dtype, MlxBody, MlxCall, MlxKernel, Outputs, Space, TemplateArg};
pub use msl::{Call, Library, Msl, Order};
pub use spaces::Checked;

/// Whether kernels can be built here. If not, prints a notice and returns false, so that a test can pass without a
/// compiler. If msl-sim is required (the variable `CI` or `ZMLX_REQUIRE_MSL_SIM` is set), it returns true even without
/// a compiler, and the test then fails with [`Error::NoCompiler`].
pub fn available() -> bool {
    let found = compiler::compiler().is_ok();
    if !found && !compiler::required() {
        eprintln!("NOTICE: {}; this test proves nothing here", Error::NoCompiler);
    }
    found || compiler::required()
}
