//! `cargo xtask mlx-bindings`: generates the declarations of mlx-c, which is needed when mlx-sys changes.

use std::process::Command;

use anyhow::Result;

use crate::project;

/// Writes `tools/mlx-linux/generated/bindings.rs`.
pub(crate) fn run() -> Result<()> {
    let root = project::root()?;
    let tools = root.join("tools/mlx-linux");
    let mut generator = Command::new("cargo");
    generator.args(["run", "--quiet", "--release", "--locked", "--manifest-path"]);
    generator
        .arg(tools.join("bindings/Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join("target/mlx-bindings"));
    generator.arg("--").arg(project::mlx_c_sources(&root)?).arg(tools.join("mlxc_compat.h"));
    generator.arg(tools.join("bindings/include")).arg(tools.join("generated/bindings.rs"));
    project::run(&mut generator)
}
