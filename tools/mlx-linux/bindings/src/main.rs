//! `mlx-bindings <mlx-c folder> <compat header> <stub headers> <out.rs>`: generates Rust declarations of mlx-c's
//! functions.
//!
//! mlx-sys's build script generates the same declarations, but also downloads and builds MLX. Stubs replace the headers
//! of the C library, so that the result does not depend on the machine: the types in it are the same on all 64-bit
//! systems.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, compat, stubs, out] = &arguments[..] else {
        return Err("expected: <mlx-c folder> <compat header> <stub headers> <out.rs>".into());
    };
    let mut headers = Vec::new();
    for entry in std::fs::read_dir(Path::new(root).join("mlx/c"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "h") {
            headers.push(path.to_string_lossy().into_owned());
        }
    }
    headers.sort();
    bindgen::Builder::default()
        .headers(headers)
        .rust_target("1.73.0".parse()?)
        .clang_args(["--target=x86_64-unknown-linux-gnu", "-nostdinc"])
        .clang_args([format!("-I{root}"), format!("-isystem{stubs}")])
        .clang_args(["-include", compat])
        .allowlist_item("mlx_.*")
        .allowlist_item("_mlx_.*")
        .generate_comments(false)
        .layout_tests(false)
        .merge_extern_blocks(true)
        .raw_line("// Declarations of mlx-c as mlx-sys 0.7.0 brings it. Made by `cargo xtask mlx-bindings`; do not edit.")
        .generate()?
        .write_to_file(out)?;
    Ok(())
}
