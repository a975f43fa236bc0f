//! Metal's own compiler reads every kernel, on a Mac that has it.

use std::path::Path;
use std::process::{Command, Output};

use crate::{detector, launch, sim};

/// Versions of the language: the first one with `bfloat`, which MLX needs, and later ones.
const LANGUAGES: [&str; 3] = ["metal3.1", "metal3.2", "metal4.0"];

fn compile(source: &Path, language: &str) -> Output {
    let mut metal = Command::new("xcrun");
    metal.args(["-sdk", "macosx", "metal", &format!("-std={language}"), "-c", "-o", "/dev/null"]);
    metal.arg(source).output().unwrap()
}

#[test]
fn apples_compiler_takes_every_kernel() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let empty = dir.join("empty.metal");
    std::fs::write(&empty, "#include <metal_stdlib>\n").unwrap();
    // A compiler knows the languages up to its own age.
    let known: Vec<_> = LANGUAGES.into_iter().filter(|l| compile(&empty, l).status.success()).collect();
    if !known.contains(&LANGUAGES[0]) {
        let problem = String::from_utf8_lossy(&compile(&empty, LANGUAGES[0]).stderr).into_owned();
        assert!(std::env::var_os("CI").is_none(), "no Metal compiler, which takes the full Xcode: {problem}");
        eprintln!("skipped, as there is no Metal compiler (it takes the full Xcode): {problem}");
        return;
    }
    // As MLX compiles them, and as programs without MLX do.
    let of_mlx = detector::launches().into_iter().enumerate().map(|(i, (spec, inputs))| {
        let source = sim::body(&spec, &inputs.iter().collect::<Vec<_>>()).source_with_preamble();
        (format!("{}-{i}", spec.name), source)
    });
    for (name, source) in of_mlx.chain(launch::sources()) {
        let file = dir.join(format!("{name}.metal"));
        std::fs::write(&file, source).unwrap();
        for language in &known {
            let output = compile(&file, language);
            let messages = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} as {language}:\n{messages}", file.display());
        }
    }
}
