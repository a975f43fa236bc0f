//! `cargo xtask gpu-check --mlx`: the command with the MLX backend, ready for a machine with an NVIDIA GPU.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::project;

/// What runs on the machine with the GPU.
const SCRIPT: &str = include_str!("gpu-check-mlx.sh");

/// Builds the command with the feature `mlx` and puts it into `target/gpu-check-mlx`, with mlx-c, the models of the fixtures and a
/// script that runs them.
pub(crate) fn prepare() -> Result<()> {
    let root = project::root()?;
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--locked", "--release", "--package", "zmlx-cli", "--features", "mlx"])
        .current_dir(&root);
    project::run(&mut build)?;
    let folder = root.join("target/gpu-check-mlx");
    let library = root.join(".mlx/lib/libmlxc.so");
    std::fs::create_dir_all(folder.join("models"))?;
    copy(&root.join("target/release/zmlx"), &folder.join("zmlx"))?;
    copy(&library, &folder.join("libmlxc.so"))?;
    std::fs::write(folder.join("mlxc.path"), library.display().to_string())?;
    std::fs::write(folder.join("run.sh"), SCRIPT)?;
    for model in std::fs::read_dir(root.join("fixtures/models"))? {
        let model = model?;
        let to = folder.join("models").join(model.file_name());
        std::fs::create_dir_all(&to)?;
        for file in std::fs::read_dir(model.path())? {
            let file = file?;
            copy(&file.path(), &to.join(file.file_name()))?;
        }
    }
    println!(
        "{} is ready. On a machine with a GPU, and MLX's build for CUDA in $MLX_CUDA: bash run.sh OUT",
        folder.display()
    );
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}
