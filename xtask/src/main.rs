//! The tasks of this repository: `cargo xtask <command>`.
#![forbid(unsafe_code)]

mod cuda;
mod gpu_check_mlx;
mod mlx_bindings;
mod package;
mod project;
mod results;
mod setup_mlx;

use std::process::ExitCode;

use setup_mlx::Device;

const USAGE: &str = "\
cargo xtask setup-mlx      set up the feature `mlx` on Linux: install MLX for the CPU, and build mlx-c with it
cargo xtask setup-mlx --cuda   the same, and MLX's build for NVIDIA GPUs
cargo xtask results        write the results in benches/record into docs/results.md and README.md
cargo xtask package        pack every crate as for publication, into target/package
cargo xtask cuda-check     compile all CUDA kernels, without a GPU
cargo xtask gpu-check      prepare the tests of the CUDA backend for a machine with a GPU, in target/gpu-check
cargo xtask gpu-check --mlx    prepare the command with the MLX backend for such a machine, in target/gpu-check-mlx
cargo xtask mlx-bindings   generate tools/mlx-linux/generated/bindings.rs again; needs libclang (LIBCLANG_PATH)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["setup-mlx"] => setup_mlx::run(Device::Cpu),
        ["setup-mlx", "--cuda"] => setup_mlx::run(Device::Cuda),
        ["mlx-bindings"] => mlx_bindings::run(),
        ["cuda-check"] => cuda::check(),
        ["gpu-check"] => cuda::prepare(),
        ["gpu-check", "--mlx"] => gpu_check_mlx::prepare(),
        ["results"] => results::run(),
        ["package"] => package::run(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
