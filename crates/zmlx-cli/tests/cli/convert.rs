//! `zmlx convert`. The bytes of its results are tested in the library.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::*;

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(p).unwrap()))
        .collect()
}

/// A model of floats, and a folder for conversions of it.
fn floats(name: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floats");
    convert(&model(name), &path, &["--dequantize"]).ok();
    (dir, path.to_str().unwrap().to_owned())
}

fn convert(source: &str, out: &Path, more: &[&str]) -> Run {
    zmlx(&[&["convert", source, "--out", out.to_str().unwrap()], more].concat())
}

#[test]
fn a_model_is_converted_reported_and_used() {
    for name in [GLM, QWEN] {
        let (dir, floats) = floats(name);
        let tokens = |path: &str| {
            let args = ["generate", "--json", "--model", path, "-p", "It is a truth", "-m", "8"];
            zmlx(&args).ok().json()["tokens"].clone()
        };
        // Dequantised as mlx-lm does it, then rounded to bf16: the tokens must stay the same.
        assert_eq!(tokens(&floats), tokens(&model(name)), "{name}");
        let mut kl = Vec::new();
        for bits in ["4", "8"] {
            let out = dir.path().join(bits);
            let more = [
                "-q",
                "--bits",
                bits,
                "--report",
                "--prompt",
                "It is a truth universally acknowledged",
                "--json",
            ];
            let report = convert(&floats, &out, &more).ok().json();
            assert_eq!(report["quantization"], format!("affine {bits}-bit g64"));
            assert_eq!(report["shards"].as_array().unwrap().len(), 1);
            let per_weight = report["bits_per_weight"].as_f64().unwrap();
            let want: f64 = bits.parse().unwrap();
            assert!(per_weight > want && per_weight < want + 1.5, "{per_weight}");
            let matrices = report["matrices"].as_array().unwrap();
            let error = |m: &Value| m["relative_error"].as_f64().unwrap();
            assert!(matrices.len() > 20 && matrices.iter().all(|m| error(m) < 0.2), "{matrices:#?}");
            kl.push(report["divergence"]["mean_kl"].as_f64().unwrap());
            assert!(out.join("tokenizer.json").is_file() && out.join("chat_template.jinja").is_file());
            zmlx(&["inspect", out.to_str().unwrap()]).ok();
        }
        assert!(kl[1] <= 0.01 && kl[1] < kl[0], "{name}: {kl:?}");
    }
}

#[test]
fn a_person_sees_a_table_and_a_summary() {
    let (dir, floats) = floats(QWEN);
    let more = ["-q", "--mode", "mxfp4", "--report", "--prompt", "It is", "--quiet"];
    let run = convert(&floats, &dir.path().join("out"), &more).ok();
    assert_eq!(run.stderr, "");
    for text in [
        "relative error",
        "model.layers.0.mlp.switch_mlp.down_proj",
        "mxfp4 4-bit g32",
        "bits per weight",
        "nats",
    ] {
        assert!(run.stdout.contains(text), "{text:?} is not in {}", run.stdout);
    }
    let run =
        convert(&floats, &dir.path().join("mixed"), &["-q", "--recipe", "mixed_3_6", "--dtype", "f16"]).ok();
    assert!(run.stdout.contains("affine 4-bit g64") && run.stdout.lines().count() == 1, "{}", run.stdout);
    let inspected = zmlx(&["inspect", "--json", dir.path().join("mixed").to_str().unwrap()]).ok().stdout;
    for format in ["affine 3-bit g64", "affine 6-bit g64", "F16"] {
        assert!(inspected.contains(format), "{format:?} is not in {inspected}");
    }
}

#[test]
fn bad_input() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (glm, run) = (model(GLM), |more: &[&str]| convert(&model(GLM), &out, more));
    run(&["-q", "--bits", "7"]).refused(&["7 bits in groups of 64"]);
    run(&["-q", "--mode", "gguf"]).refused(&["--mode", "mxfp8"]);
    run(&["-q", "--recipe", "mixed_9_9"]).refused(&["--recipe", "mixed_2_6"]);
    run(&["-q", "--recipe", "mixed_2_6", "--mode", "nvfp4"]).refused(&["recipe", "affine"]);
    run(&["-q", "--dequantize"]).refused(&["--dequantize"]);
    run(&["--bits", "4"]).refused(&["--quantize"]);
    run(&["--dtype", "int8"]).refused(&["--dtype"]);
    run(&["--prompt", "x"]).refused(&["--report"]);
    run(&["--report", "--prompt", ""]).refused(&["--prompt"]);
    zmlx(&["convert", &glm]).refused(&["--out"]);
    convert("no-such-folder", &out, &[]).refused(&["no-such-folder", "no such folder"]);
    let empty = tempfile::tempdir().unwrap();
    convert(empty.path().to_str().unwrap(), &out, &[]).refused(&["config.json"]);
    convert(&glm, Path::new(&glm), &[]).refused(&["new or empty folder"]);
    assert!(!out.exists());
}

/// The disk becomes full after some of the weights are written.
#[test]
#[cfg(unix)]
fn a_write_that_fails_can_be_taken_up_again() {
    let (dir, floats) = floats(QWEN);
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    convert(&floats, &whole, &["-q", "--bits", "8"]).ok();
    let arguments =
        ["convert", &floats, "--out", out.to_str().unwrap(), "-q", "--bits", "8", "--threads", "1"];
    // The system refuses a file of more than 1 MiB (in blocks of 512 or 1024 bytes).
    let limited = "trap '' XFSZ; ulimit -f 1024; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.arg("-c").arg(limited).arg(env!("CARGO_BIN_EXE_zmlx")).args(arguments).stdin(Stdio::null());
    finish(&mut command).refused(&["model.safetensors.part", "large"]);
    assert!(!out.join("config.json").exists() && !out.join("model.safetensors").exists());
    zmlx(&["inspect", out.to_str().unwrap()]).refused(&["config.json"]);
    convert(&floats, &out, &["-q", "--bits", "8"]).ok();
    assert!(files(&out) == files(&whole));
}

#[test]
#[cfg(unix)]
fn what_was_ended_goes_on() {
    let (dir, floats) = floats(QWEN);
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    convert(&floats, &whole, &["-q"]).ok();
    for (signal, code) in [("INT", Some(130)), ("KILL", None), ("TERM", None)] {
        let mut child = command(&["convert", &floats, "--out", out.to_str().unwrap(), "-q"]).spawn().unwrap();
        let since = Instant::now();
        while !out.join("model.safetensors.part").exists() {
            assert!(since.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill =
            Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status().unwrap();
        assert!(kill.success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), code, "{signal}: {stderr}");
        assert_eq!(stderr.contains("unfinished"), signal == "INT", "{stderr}");
        assert!(!out.join("config.json").exists(), "{signal}");
        // A command with other options does not replace the unfinished conversion.
        convert(&floats, &out, &["-q", "--bits", "8"]).refused(&["unfinished conversion"]);
    }
    convert(&floats, &out, &["-q"]).ok();
    assert!(files(&out) == files(&whole));
}
