//! The checks of the CUDA backend. `cargo xtask cuda-check` compiles every kernel without a GPU.
//! `cargo xtask gpu-check` prepares the tests for a machine with a GPU.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_metadata::Message;

use crate::project;

/// The script for the machine with the GPU. It runs the tests and, if asked, the memory checker on a part of the suite.
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

/// The tests that need GPUs: their crates and names. The last one starts the command.
const GPU_TESTS: [(&str, &str); 3] =
    [("zmlx-cuda", "conformance"), ("zmlx-models", "cuda_families"), ("zmlx-cli", "cuda_launch")];

/// Builds the tests that need a GPU and puts them into `target/gpu-check`, together with a script that runs them.
pub(crate) fn prepare() -> Result<()> {
    let root = project::root()?;
    let mut build = Command::new(env!("CARGO"));
    build.args(["test", "--locked", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    for (_, name) in GPU_TESTS {
        build.args(["--test", name]);
    }
    let output = build.current_dir(&root).stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    ensure!(output.status.success(), "the tests do not build");
    let folder = root.join("target/gpu-check");
    std::fs::create_dir_all(&folder)?;
    let tests = GPU_TESTS.map(|(package, name)| (format!("{package}/tests/{name}.rs"), name));
    for (source, name) in tests.into_iter().chain([("zmlx-cli/src/main.rs".to_owned(), "zmlx")]) {
        let executable = Message::parse_stream(&output.stdout[..])
            .filter_map(|message| match message {
                // A crate's own tests have the source of its program.
                Ok(Message::CompilerArtifact(artifact))
                    if artifact.target.src_path.ends_with(&source)
                        && (artifact.profile.test || artifact.target.is_bin()) =>
                {
                    artifact.executable
                }
                _ => None,
            })
            .next()
            .with_context(|| format!("cargo names no executable of {source}"))?;
        std::fs::copy(&executable, folder.join(name)).with_context(|| executable.to_string())?;
    }
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(&root)
        .output();
    let commit = commit.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    std::fs::write(folder.join("commit"), commit)?;
    std::fs::write(folder.join("run.sh"), SCRIPT)?;
    println!(
        "{} is ready. On a machine with a GPU and CUDA's run-time compiler, where this checkout has the same path: \
         bash run.sh [--memcheck]",
        folder.display()
    );
    Ok(())
}
