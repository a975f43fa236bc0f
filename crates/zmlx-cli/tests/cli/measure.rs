//! `zmlx bench`.

use serde_json::json;

use crate::*;

#[test]
fn wrong_weights_are_not_timed() {
    let dir = copy_without(GLM, &[]);
    spoil(dir.path(), "model.norm.weight");
    let run = zmlx(&["bench", "-o", "json", "--model", dir.path().to_str().unwrap()]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    assert!(run.stderr.contains("nothing was timed"), "{}", run.stderr);
}

#[test]
fn bench_goes_back_to_a_depth_that_caches_cannot_be_cut_to() {
    for family in ["gpt_oss", "lfm2_moe", "qwen3_5_moe"] {
        let dir = fixtures().join("families").join(family);
        // More tokens than a sliding window keeps in addition to those that it attends to.
        let args =
            ["-p", "0", "-n", "600", "-d", "40", "-b", "1,2", "-r", "1", "--fusion", "fused", "-o", "json"];
        let report = zmlx(&[&["bench", dir.to_str().unwrap()], &args[..]].concat()).ok().json();
        assert_eq!(report["tests"].as_array().unwrap().len(), 2, "{family}");
    }
}

#[test]
fn bench_measures_every_fusion() {
    let dir = model(GLM);
    let args = ["bench", &dir, "-p", "8", "-n", "3,4", "-d", "0,16", "-b", "1,2", "-r", "2"];
    let report = zmlx(&[&args[..], &["-o", "json", "--profile"]].concat()).ok().json();
    let tests = report["tests"].as_array().unwrap();
    let found: Vec<_> =
        tests.iter().map(|t| (t["test"].as_str().unwrap(), t["fusion"].as_str().unwrap())).collect();
    let mut want = Vec::new();
    for test in
        ["pp8", "tg3", "tg4", "tg3 b2", "tg4 b2", "tg3 @ d16", "tg4 @ d16", "tg3 b2 @ d16", "tg4 b2 @ d16"]
    {
        want.extend(["stock", "concat", "fused"].map(|fusion| (test, fusion)));
    }
    assert_eq!(found, want);
    for test in tests {
        let of = |key: &str| test[key].as_f64().unwrap();
        assert!(of("avg_ts") > 0.0 && of("median_ts") > 0.0 && of("stddev_ts") >= 0.0, "{test}");
        assert_eq!(test["samples_s"].as_array().unwrap().len(), 2);
        let n_latencies = test["token_latencies_s"].as_array().unwrap().len();
        assert_eq!(n_latencies as f64, 2.0 * of("n_gen"));
        if of("n_gen") == 0.0 {
            assert!(of("ttft_ms") > 0.0 && test["p50_ms"].is_null(), "{test}");
        } else {
            assert!(
                0.0 < of("p50_ms") && of("p50_ms") <= of("p95_ms") && of("p95_ms") <= of("p99_ms"),
                "{test}"
            );
        }
        assert_eq!(
            test["share_of_bandwidth"].is_null(),
            of("n_gen") == 0.0 || of("n_batch") == 2.0,
            "{test}"
        );
    }
    // The numbers in docs/LAUNCHES.md. A step of two sequences launches as many ops.
    let document = std::fs::read_to_string(fixtures().join("../docs/LAUNCHES.md")).unwrap();
    let row = document.lines().find(|l| l.starts_with("| GLM fixture")).unwrap();
    for (test, cell) in tests[3..6].iter().zip(row.split('|').skip(2)) {
        assert_eq!(test["launches_per_token"].as_f64().unwrap(), cell.trim().parse::<f64>().unwrap());
    }
    assert_eq!(
        tests[9]["launches_per_token"].as_f64(),
        tests[3]["launches_per_token"].as_f64().map(|n| n / 2.0)
    );
    // Each path has seven phases in every decoding test. Their shares add up to the whole.
    let profile = report["profile"].as_array().unwrap();
    assert_eq!(profile.len(), 7 * 3 * 8);
    for phases in profile.chunks(7) {
        let share: f64 = phases.iter().map(|p| p["share"].as_f64().unwrap()).sum();
        assert!((share - 1.0).abs() <= 1e-9, "{phases:?}");
        assert!(phases.iter().take(5).all(|p| p["seconds_per_token"].as_f64().unwrap() > 0.0), "{phases:?}");
    }
}

#[test]
fn bench_prints_tables_and_lines() {
    let dir = model(QWEN);
    let bench =
        |more: &[&str]| zmlx(&[&["bench", "--model", &dir, "-p", "0", "-n", "2", "-r", "1"], more].concat());
    let quiet = bench(&["--quiet"]).ok();
    assert!(quiet.stderr.is_empty() && !quiet.stdout.contains('\x1b'), "{quiet:#?}");
    let table = bench(&["--fusion", "stock", "--fusion", "fused,-route"]).ok().stdout;
    assert!(
        table.contains("| fused,-route |") && table.contains("| tg2 ") && !table.contains("concat"),
        "{table}"
    );
    assert!(table.contains("memory reads at"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    let wide = bench(&["--wide"]).ok().stdout;
    assert!(wide.contains("| launches |") && wide.contains("| p99 ms |"), "{wide}");
    let csv = bench(&["-o", "csv"]).ok().stdout;
    let widths: Vec<_> = csv.lines().map(|l| l.split(',').count()).collect();
    assert!(
        csv.starts_with("model,") && widths.len() == 4 && widths.iter().all(|w| *w == widths[0]),
        "{csv}"
    );
    let lines = bench(&["-o", "jsonl", "--compare", "backend"]).ok().stdout;
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.iter().any(|l| l["backend"] == "cpu" && l["fusion"] == "fused"), "{lines:?}");
    bench(&["-d", "4096"]).refused(&["max_position_embeddings"]);
    zmlx(&["bench", &dir, "-p", "0", "-n", "0"]).refused(&["nothing to measure"]);
    zmlx(&["bench", &dir, "--synthetic", "glm-4.7-flash"]).refused(&["--synthetic"]);
    let bandwidth = zmlx(&["bench", "--bandwidth", "-o", "json"]).ok().json();
    assert!(bandwidth["bytes_per_second"].as_f64().unwrap() > 0.0 && bandwidth["threads"] == json!(1));
}

#[test]
fn a_bench_leaves_a_capsule() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.json");
    let file = file.to_str().unwrap();
    let model = model(QWEN);
    let args = ["bench", &model, "-p", "4", "-n", "2", "-r", "2", "--profile", "--capsule", file];
    zmlx(&args).ok();
    let capsule: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!((&capsule["kind"], &capsule["format"]), (&json!("bench"), &json!(1)));
    assert_eq!(capsule["bench"]["tests"].as_array().unwrap().len(), 6);
    assert_eq!(capsule["bench"]["profile"].as_array().unwrap().len(), 7 * 3);
    assert_eq!(capsule["prompts"][0]["n_tokens"], json!(4));
    zmlx(&args).refused(&["--force"]);
    zmlx(&[&args[..], &["--force"]].concat()).ok();
}

#[test]
fn a_capsule_tells_the_bits_of_activations() {
    let dir = tempfile::tempdir().unwrap();
    for bits in ["int8", "int16"] {
        let file = dir.path().join(bits);
        let file = file.to_str().unwrap();
        let flags = ["-p", "0", "-n", "1", "-r", "1", "--cpu-activations", bits, "--capsule", file];
        zmlx(&[&["bench", &model(QWEN)][..], &flags].concat()).ok();
        let capsule: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let description = capsule["backend"]["description"].as_str().unwrap();
        assert_eq!(description.contains("int8 activations"), bits == "int8", "{description}");
    }
}

#[test]
fn random_weights_are_benched() {
    let bench =
        |spec: &str| zmlx(&["bench", "-o", "json", "-p", "0", "-n", "1", "-r", "1", "--synthetic", spec]);
    let report = bench("glm-4.7-flash,layers=2,vocab=64,mode=mxfp4").ok().json();
    // Layer 0 is dense, layer 1 has 64 experts. 32 quantised weights take 17 bytes; the router and the norms are dense.
    let attention = 768 * 2048 + 768 * 5120 + 576 * 2048 + 20 * 512 * (192 + 256) + 2048 * 5120;
    let weights = 2 * attention + 3 * 2048 * (10240 + 5 * 1536) + 65 * 2048;
    let test = &report["tests"][0];
    let (got, want) = (
        test["bytes_per_second"].as_f64().unwrap() / test["median_ts"].as_f64().unwrap(),
        f64::from(weights) * 17.0 / 32.0,
    );
    assert!((got / want - 1.0).abs() <= 0.01, "{got} {want}");
    // Two dense layers and the embedding, which is also the head: 4.5 bits per weight.
    let report = bench("qwen3-0.6b,layers=2,vocab=64").ok().json();
    let test = &report["tests"][0];
    let got = test["bytes_per_second"].as_f64().unwrap() / test["median_ts"].as_f64().unwrap();
    let weights = 2 * 1024 * (4 * 1024 + 2 * 1024 + 3 * 3072) + 64 * 1024;
    let want = f64::from(weights) * 4.5 / 8.0;
    assert!((got / want - 1.0).abs() <= 0.01, "{got} {want}");
    for (spec, tells) in [
        ("gpt-2", "qwen3-235b-a22b"),
        ("qwen3-30b-a3b,layers", "layers=N"),
        ("qwen3-30b-a3b,bits=7", "bits"),
        ("qwen3-30b-a3b,mode=gguf", "nvfp4"),
        ("qwen3-30b-a3b,layers=0", "num_hidden_layers"),
    ] {
        bench(spec).refused(&[tells]);
    }
}
