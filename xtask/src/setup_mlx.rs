//! `cargo xtask setup-mlx`: makes the stock mlx-rs usable on Linux, with MLX's CPU backend.
//!
//! mlx-sys builds MLX from source, but only for Apple's systems. Here MLX is installed from the wheel that its authors
//! publish, and mlx-c is compiled from the sources in mlx-sys. A `links` override, in a file that `.cargo/config.toml`
//! includes, tells cargo to skip mlx-sys's build script. Everything is stored in `.mlx`, which `cargo clean` does not
//! remove.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::project::{self, MLX_VERSION};

/// The build of MLX that is set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// For the CPU only.
    Cpu,
    /// Also for NVIDIA GPUs.
    Cuda,
}

/// Installs, compiles, and writes `.cargo/mlx-linux.toml`.
pub(crate) fn run(device: Device) -> Result<()> {
    let host = project::host()?;
    if host.contains("apple") {
        println!("Nothing to set up: on macOS mlx-sys builds MLX itself.");
        return Ok(());
    }
    if !["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"].contains(&host.as_str()) {
        bail!("there is no MLX for {host}: only for macOS and for Linux with glibc 2.35 or newer");
    }
    let root = project::root()?;
    let out = root.join(".mlx");
    let mlx = install_mlx(&root, &out)?;
    let library = build_mlx_c(&root, &out, &mlx, &host)?;
    write_override(&root, &library, &host)?;
    println!("MLX {MLX_VERSION} is ready: cargo test --workspace --features mlx");
    if device == Device::Cuda {
        ensure!(
            host == "x86_64-unknown-linux-gnu",
            "MLX {MLX_VERSION} for CUDA is published for x86-64 only"
        );
        let cuda = out.join("cuda");
        install_cuda(&root, &cuda)?;
        // mlx-c is linked with the library for the CPU, whose interface is the same: that needs no NVIDIA library.
        println!("To run on an NVIDIA GPU: export LD_LIBRARY_PATH={}", library_path(&cuda)?);
    }
    Ok(())
}

/// MLX's build for CUDA, and NVIDIA's libraries that it loads.
fn install_cuda(root: &Path, out: &Path) -> Result<()> {
    if out.join("mlx/lib/libmlx.so").exists() {
        return Ok(());
    }
    println!("Installing MLX {MLX_VERSION} for CUDA into {}", out.display());
    project::pip_install(&root.join("tools/mlx-linux/requirements-cuda.txt"), out)?;
    ensure!(out.join("mlx/lib/libmlx.so").exists(), "{}: no mlx/lib/libmlx.so", out.display());
    Ok(())
}

/// The folders of all libraries under `cuda`, for `LD_LIBRARY_PATH`.
fn library_path(cuda: &Path) -> Result<String> {
    let mut folders = vec![cuda.join("mlx/lib")];
    for entry in std::fs::read_dir(cuda.join("nvidia"))? {
        folders.push(entry?.path().join("lib"));
    }
    folders.retain(|folder| folder.is_dir());
    let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Ok(folders.join(":"))
}

/// Installs MLX's library and headers, and checks the recorded hash. Returns their folder.
fn install_mlx(root: &Path, out: &Path) -> Result<PathBuf> {
    let wheel = out.join("wheel");
    let mlx = wheel.join("mlx");
    if wheel.join(format!("mlx_cpu-{MLX_VERSION}.dist-info/RECORD")).exists() {
        return Ok(mlx);
    }
    std::fs::create_dir_all(out)?;
    println!("Installing MLX {MLX_VERSION} into {}", wheel.display());
    project::pip_install(&root.join("tools/mlx-linux/requirements.txt"), &wheel)?;
    ensure!(mlx.join("lib/libmlx.so").exists(), "{}: no lib/libmlx.so", mlx.display());
    Ok(mlx)
}

/// Compiles mlx-c into one shared library.
///
/// Binaries refer to the library by its full path, and the library itself contains the path of libmlx. So a program
/// that is linked to it runs from anywhere, also in other projects that depend on these crates, and with any RUSTFLAGS.
/// An rpath in every binary would need a build script in every package.
fn build_mlx_c(root: &Path, out: &Path, mlx: &Path, host: &str) -> Result<PathBuf> {
    let sources = project::mlx_c_sources(root)?;
    let tools = root.join("tools/mlx-linux");
    println!("Compiling mlx-c from {}", sources.display());
    let objects = out.join("objects");
    std::fs::create_dir_all(&objects)?;
    let mut files = vec![tools.join("mach_time.cpp")];
    for entry in std::fs::read_dir(sources.join("mlx/c"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "cpp") {
            files.push(path);
        }
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("gnu++20").pic(true).opt_level(1).debug(false).warnings(false).cargo_metadata(false);
    build.target(host).host(host).out_dir(&objects).define("NDEBUG", None).files(files);
    build.include(&sources).flag("-isystem").flag(mlx.join("include"));
    build.flag("-include").flag(tools.join("mlxc_compat.h"));
    let compiled =
        build.try_compile_intermediates().context("a C++20 compiler is needed: g++ 12 or newer")?;

    let library = out.join("lib/libmlxc.so");
    std::fs::create_dir_all(out.join("lib"))?;
    let libmlx_dir = mlx.join("lib");
    let mut link = build.get_compiler().to_command();
    link.arg("-shared").args(compiled).arg("-o").arg(&library);
    link.arg(format!("-Wl,-soname,{}", library.display()));
    link.arg("-L").arg(&libmlx_dir).arg("-lmlx").arg(format!("-Wl,-rpath,{}", libmlx_dir.display()));
    project::run(&mut link)?;
    std::fs::remove_dir_all(&objects)?;
    Ok(library)
}

/// Tells cargo to use the library and to skip mlx-sys's build script.
fn write_override(root: &Path, library: &Path, host: &str) -> Result<()> {
    let folder = library.parent().context("the library lies in a folder")?;
    let bindings = root.join("tools/mlx-linux/generated");
    // For a path without control characters, `{:?}` prints a TOML string.
    let text = format!(
        "# Written by `cargo xtask setup-mlx`.\n\
         [target.{host}.mlx]\n\
         rustc-link-search = [{:?}]\n\
         rustc-link-lib = [\"dylib=mlxc\"]\n\n\
         [target.{host}.mlx.rustc-env]\n\
         OUT_DIR = {bindings:?}\n",
        format!("native={}", folder.display())
    );
    let file = root.join(".cargo/mlx-linux.toml");
    std::fs::write(&file, text).with_context(|| file.display().to_string())
}
