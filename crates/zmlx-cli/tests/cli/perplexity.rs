//! `zmlx perplexity`.

use crate::*;

/// A file with the text of a recorded prompt.
fn text(name: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &golden(name).prompt("long").unwrap().text).unwrap();
    file
}

fn perplexity(name: &str, more: &[&str]) -> Run {
    let file = text(name);
    zmlx(&[&["perplexity", &model(name), "--file", file.path().to_str().unwrap()], more].concat())
}

#[test]
fn numbers_are_those_of_mlx_lm() {
    let recorded = std::fs::read(fixtures().join("perplexity/recorded.json")).unwrap();
    let recorded: Value = serde_json::from_slice(&recorded).unwrap();
    for name in [GLM, QWEN] {
        let report = perplexity(name, &["--context", "64", "--json"]).ok().json();
        let want = recorded["models"][name]["64"]["perplexity"].as_f64().unwrap();
        let got = report["every_token"]["perplexity"].as_f64().unwrap();
        // The reference engine computes in bf16.
        assert!((got - want).abs() <= 0.03 * want, "{name}: {got}, {want}");
        assert_eq!(report["n_windows"], 4);
        assert_eq!(report["n_tokens"], 300);
        assert_eq!(report["every_token"]["n_scored"], 4 * 63);
        assert_eq!(report["second_half"]["n_scored"], 4 * 31);
        assert!(report["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(report["backend"].as_str().unwrap().starts_with("cpu"));
    }
}

#[test]
fn a_person_sees_both_numbers() {
    let run = perplexity(QWEN, &["-c", "50", "--windows", "2"]).ok();
    let lines: Vec<&str> = run.stdout.lines().filter(|l| l.starts_with("Perplexity ")).collect();
    assert!(
        lines[0].contains(" ± ") && lines[0].contains("mlx_lm.perplexity") && lines[0].contains("98 scored")
    );
    assert!(lines[1].contains("llama-perplexity") && lines[1].contains("48 scored"), "{}", run.stdout);
    assert!(run.stdout.contains("2 windows of 50") && run.stdout.contains("tokens/s"), "{}", run.stdout);
    assert_eq!(run.stderr, "");
    let run = perplexity(QWEN, &["-c", "50", "--stride", "25", "--fusion", "stock"]).ok();
    assert!(
        run.stdout.contains("11 windows of 50, one every 25") && !run.stdout.contains("llama"),
        "{}",
        run.stdout
    );
}

#[test]
fn bad_input() {
    perplexity(QWEN, &["-c", "301"]).refused(&["300 tokens", "one window of 301"]);
    perplexity(QWEN, &["-c", "4000"]).refused(&["4000", "max_position_embeddings"]);
    perplexity(QWEN, &["-c", "1"]).refused(&["context", "at least two"]);
    perplexity(QWEN, &["-c", "20", "--stride", "21"]).refused(&["stride", "21"]);
    perplexity(QWEN, &["-c", "20", "--first-token", "99999"]).refused(&["99999"]);
    perplexity(QWEN, &["--context", "many"]).refused(&["--context"]);
    let (dir, path) = (tempfile::tempdir().unwrap(), model(QWEN));
    let run = |file: &Path| zmlx(&["perplexity", "--model", &path, "-f", file.to_str().unwrap(), "-c", "8"]);
    run(&dir.path().join("gone")).refused(&["gone"]);
    run(dir.path()).refused(&["not a regular file"]);
    let latin = dir.path().join("latin");
    std::fs::write(&latin, b"caf\xe9").unwrap();
    run(&latin).refused(&["latin", "UTF-8"]);
    let without = copy_without(QWEN, &["tokenizer.json"]);
    std::fs::write(dir.path().join("text"), "It is").unwrap();
    let text = dir.path().join("text");
    let args = ["perplexity", without.path().to_str().unwrap(), "--file", text.to_str().unwrap()];
    zmlx(&args).refused(&["tokenizer.json"]);
}
