//! The checks of the CUDA backend. `cargo xtask cuda-check` compiles every kernel without a GPU.
//! `cargo xtask gpu-check` prepares the tests for a machine with a GPU.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_metadata::Message;

use crate::project;

/// The script for the machine with the GPU. It runs the suite and, if asked, the memory checker on a part of it.
const SCRIPT: &str = include_str!("gpu-check.sh");

/// Compiles all kernels for several generations of GPUs, with the compiler from PyPI.
pub(crate) fn check() -> Result<()> {
    let root = project::root()?;
    let nvrtc = install_nvrtc(&root)?;
    let folder = nvrtc.parent().context("the library lies in a folder")?;
    let mut test = Command::new(env!("CARGO"));
    test.args(["test", "--locked", "--workspace", "--test", "compile"]).current_dir(&root);
    // While it compiles, the library loads another library of its package.
    test.env("ZMLX_NVRTC", &nvrtc).env("LD_LIBRARY_PATH", folder);
    project::run(&mut test)
}

fn install_nvrtc(root: &Path) -> Result<PathBuf> {
    let site = root.join("target/nvrtc");
    let library = site.join("nvidia/cu13/lib/libnvrtc.so.13");
    if library.exists() {
        return Ok(library);
    }
    project::pip_install(&root.join("tools/cuda-check/requirements.txt"), &site)?;
    ensure!(library.exists(), "{}: not there", library.display());
    Ok(library)
}

/// Builds the conformance suite and puts it into `target/gpu-check`, together with a script that runs it.
pub(crate) fn prepare() -> Result<()> {
    let root = project::root()?;
    let mut build = Command::new(env!("CARGO"));
    build.args(["test", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    build.args(["--package", "zmlx-cuda", "--test", "conformance"]).current_dir(&root);
    let output = build.stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    ensure!(output.status.success(), "the conformance suite does not build");
    let executable = Message::parse_stream(&output.stdout[..])
        .filter_map(|message| match message {
            Ok(Message::CompilerArtifact(artifact)) if artifact.target.name == "conformance" => {
                artifact.executable
            }
            _ => None,
        })
        .next()
        .context("cargo names no executable")?;
    let folder = root.join("target/gpu-check");
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(&executable, folder.join("conformance")).with_context(|| executable.to_string())?;
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(&root)
        .output();
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    std::fs::write(folder.join("commit"), commit)?;
    std::fs::write(folder.join("run.sh"), SCRIPT)?;
    println!(
        "{} is ready. On a machine with a GPU and CUDA's run-time compiler: bash run.sh [--memcheck]",
        folder.display()
    );
    Ok(())
}
