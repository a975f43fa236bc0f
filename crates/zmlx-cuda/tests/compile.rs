//! Every CUDA source compiles for several generations of GPUs. Needs NVRTC, but no GPU; `cargo xtask cuda-check` brings it.

use zmlx_cuda::{CompileError, compile_all, units};

/// Ampere, Hopper, Blackwell.
const ARCHITECTURES: [u32; 3] = [80, 90, 100];

#[test]
fn every_source_compiles() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for arch in ARCHITECTURES {
        match compile_all(&units(), arch, 0, folder.path()) {
            Ok(()) => {}
            Err(CompileError::NoNvrtc) if std::env::var_os("ZMLX_NVRTC").is_none() => {
                eprintln!("not run: no NVRTC");
                return;
            }
            Err(error) => panic!("compute capability {arch}: {error}"),
        }
    }
}
