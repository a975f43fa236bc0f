//! Faults while files are in use: weights that vanish, outputs that would replace inputs, pipes, and signals.

use std::io::Read;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::*;

fn names(dir: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_str().unwrap().to_owned());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

/// Waits until the condition holds, for at most a minute.
#[track_caller]
fn wait_until(child: &mut Child, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn outputs_replace_nothing_by_accident() {
    let dir = copy_without(QWEN, &[]);
    let (path, weights) = (dir.path().to_str().unwrap(), dir.path().join("model.safetensors"));
    let before = std::fs::read(&weights).unwrap();
    let logits = |out: &str, more: &[&str]| {
        zmlx(&[&["logits", "--model", path, "--tokens", "1,2", "--out", out], more].concat())
    };
    logits(weights.to_str().unwrap(), &["--force"]).refused(&["model.safetensors", "reads it"]);
    let link = dir.path().join("link");
    std::fs::hard_link(&weights, &link).unwrap();
    logits(link.to_str().unwrap(), &["--force"]).refused(&["reads it"]);
    assert!(std::fs::read(&weights).unwrap() == before);

    let old = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(old.path(), "precious").unwrap();
    let out = old.path().to_str().unwrap();
    logits(out, &[]).refused(&["exists already", "--force"]);
    assert_eq!(std::fs::read(old.path()).unwrap(), b"precious");
    logits(out, &["--force"]).ok();
    // An output that cannot be written is reported before the model is loaded.
    let capsule = dir.path().join("no/such/folder.json");
    let bench = ["bench", path, "-p", "0", "-n", "1", "--capsule", capsule.to_str().unwrap()];
    zmlx(&bench).refused(&["cannot be written"]);
}

#[test]
#[cfg(unix)]
fn pipes_and_devices_are_no_files() {
    let dir = copy_without(QWEN, &["generation_config.json"]);
    let path = dir.path().to_str().unwrap();
    let generate = || zmlx(&["generate", "--model", path, "--prompt-tokens", "1,2", "-m", "1", "--json"]);
    generate().ok();
    for file in ["model.safetensors", "config.json"] {
        let (at, kept) = (dir.path().join(file), dir.path().join("kept"));
        std::fs::rename(&at, &kept).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &at).unwrap();
        generate().refused(&[file, "not a regular file"]);
        std::fs::remove_file(&at).unwrap();
        assert!(Command::new("mkfifo").arg(&at).status().unwrap().success());
        generate().refused(&[file, "not a regular file"]);
        std::fs::remove_file(&at).unwrap();
        std::fs::rename(&kept, &at).unwrap();
    }
    zmlx(&["golden", "check", "/dev/zero", "--model", path]).refused(&["/dev/zero", "not a regular file"]);
}

/// A copy of a model, and tokens for it whose logits take much longer than anything else here, even on a busy machine.
fn long_work(name: &str) -> (tempfile::TempDir, String) {
    let dir = copy_without(name, &[]);
    edit_json(dir.path(), "config.json", |config| config["max_position_embeddings"] = 100_000.into());
    (dir, join(&[7; 20_000]))
}

/// The weights are truncated while the process computes with them. It must end with a message, not by a signal.
#[test]
#[cfg(unix)]
fn weights_that_vanish_end_in_a_message() {
    let (dir, tokens) = long_work(QWEN);
    let (path, out) = (dir.path().to_str().unwrap(), tempfile::tempdir().unwrap());
    let file = out.path().join("x");
    let args =
        ["logits", "--model", path, "--tokens", &tokens, "--chunk", "1", "--out", file.to_str().unwrap()];
    let mut child = command(&args).spawn().unwrap();
    wait_until(&mut child, || names(out.path()).iter().any(|name| name.starts_with(".zmlx-")));
    let weights = std::fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap();
    weights.set_len(0).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains("model.safetensors"), "{stderr}");
    assert_eq!(names(out.path()), [""; 0]);
}

#[test]
#[cfg(unix)]
fn a_signal_leaves_no_temporary_file() {
    use std::os::unix::process::ExitStatusExt;
    let (dir, tokens) = long_work(GLM);
    let path = dir.path().to_str().unwrap();
    for (name, number) in [("TERM", 15), ("HUP", 1)] {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("x");
        let args =
            ["logits", "--model", path, "--tokens", &tokens, "--chunk", "1", "--out", file.to_str().unwrap()];
        let mut child = command(&args).spawn().unwrap();
        wait_until(&mut child, || names(out.path()).iter().any(|name| name.starts_with(".zmlx-")));
        let kill = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
        assert!(kill.success());
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(status.signal(), Some(number), "{status:?}: {stderr}");
        assert_eq!(names(out.path()), [""; 0]);
    }
}

/// Weights that need more memory than there is are refused before the first byte is generated.
#[test]
#[cfg(target_os = "linux")]
fn random_weights_that_do_not_fit_are_refused() {
    let bench =
        ["bench", "--synthetic", "qwen3-235b-a22b,layers=1,vocab=16777216,bits=8", "-p", "0", "-n", "1"];
    let free: u64 = std::fs::read_to_string("/proc/meminfo")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    // The embedding alone takes 72 GB.
    if free < 64 << 20 {
        zmlx(&bench).refused(&["random weights", "not enough free memory"]);
    }
}
