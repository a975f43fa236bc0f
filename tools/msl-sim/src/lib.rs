//! Runs Metal compute kernels on a CPU, for tests on machines without Metal.
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

/// Whether kernels can be built here. If not, says so and gives false, so that a test can pass without a compiler;
/// where msl-sim is required (the variable `CI` or `ZMLX_REQUIRE_MSL_SIM` is set) it gives true all the same, and the
/// test then fails with [`Error::NoCompiler`].
pub fn available() -> bool {
    let found = compiler::compiler().is_ok();
    if !found && !compiler::required() {
        eprintln!("NOTICE: {}; this test proves nothing here", Error::NoCompiler);
    }
    found || compiler::required()
}
