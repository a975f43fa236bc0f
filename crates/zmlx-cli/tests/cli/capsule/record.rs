//! Made-up capsules for tests, with round numbers that a reader can follow.

use serde_json::{Value, json};

fn common(kind: &str) -> Value {
    json!({
        "format": 1,
        "kind": kind,
        "date": "2026-11-23T08:00:00Z",
        "command": ["zmlx", kind, "--capsule", "a.json"],
        "zmlx": {
            "version": "0.1.0", "commit": "0123456789abcdef0123456789abcdef01234567", "dirty": false,
            "profile": "release", "target": "x86_64-unknown-linux-gnu", "rustc": "rustc 1.95.0", "rustflags": "",
            "features": ["embedded-model"]
        },
        "machine": {
            "cpu": "Test CPU", "physical_cores": 4, "logical_cores": 8, "memory_bytes": 16_000_000_000u64,
            "os": "Linux (Test 1)", "arch": "x86_64", "gpu": null, "cpu_mhz": 3000, "level": "avx2"
        },
        "engines": {},
        "model": {
            "name": "tiny", "model_type": "glm4_moe_lite", "n_layers": 3, "config_sha256": "aa",
            "weights_sha256": "bb", "synthetic": null, "weight_bytes": 6_000_000,
            "quantization": {"bits": 4, "group_size": 64}
        },
        "backend": {"name": "cpu", "description": "cpu (avx2, 4 threads)", "threads": 4},
        "environment": {"ZMLX_CPU_LEVEL": "avx2"},
        "prompts": [{"name": "novel", "n_tokens": 5, "sha256": "cc"}]
    })
}

/// Stock decodes 64 tokens per second, fused decodes twice as many, and that is half of the bandwidth.
pub(super) fn bench() -> Value {
    let test = |name: &str, fusion: &str, samples: [f64; 3]| {
        let is_prompt = name.starts_with("pp");
        // Latencies with a realistic spread, but without randomness.
        let latencies: Vec<f64> = if is_prompt {
            vec![]
        } else {
            (0..300).map(|i| samples[1] / 128.0 * (1.0 + 0.2 * f64::from(i % 17) / 17.0)).collect()
        };
        json!({
            "name": name, "fusion": fusion, "backend": "cpu",
            "n_prompt": if is_prompt { 128 } else { 0 }, "n_generate": if is_prompt { 0 } else { 128 },
            "depth": 0, "batch": 1, "tokens_per_sample": 128, "samples_s": samples,
            "token_latencies_s": latencies, "probes_bytes_per_second": [], "ttft_s": if is_prompt { vec![0.3, 0.3, 0.3] } else { vec![] },
            "bytes_per_token": if is_prompt { Value::Null } else { json!(1e6) }, "barriers_per_token": null, "barrier_s_per_token": null, "launches_per_token": 40.0
        })
    };
    let mut capsule = common("bench");
    capsule["bench"] = json!({
        "repetitions": 3,
        "fusions": ["stock", "fused"],
        "bandwidth": {"bytes_per_second": 256e6, "threads": 4},
        "peak_memory_bytes": 50_000_000,
        "tests": [
            test("tg128", "stock", [2.0, 2.09, 1.98]),
            test("tg128", "fused", [1.0, 1.1, 0.9]),
            test("pp128", "stock", [0.5, 0.5, 0.5]),
            test("pp128", "fused", [0.4, 0.4, 0.5]),
        ],
        "profile": [
            {"fusion": "fused", "test": "tg128", "phase": "gate_up", "seconds_per_token": 3e-3, "share": 0.4},
            {"fusion": "fused", "test": "tg128", "phase": "head", "seconds_per_token": 4.5e-3, "share": 0.6},
        ]
    });
    capsule
}

/// One check that passes, one that rounding explains, and one of logits.
pub(super) fn validation() -> Value {
    let mut capsule = common("validate");
    capsule["validate"] = json!({
        "suite": "standard", "max_tokens": 64, "runs": 5, "against": ["stock", "oracle"], "verdict": "explained",
        "margin_bound": 1e-3,
        "checks": [
            {"prompt": "novel", "comparison": "fused vs stock", "n_tokens": 64, "first_divergence": null,
             "margin": null, "bound": 1e-3, "verdict": "pass"},
            {"prompt": "letter", "comparison": "fused vs stock", "n_tokens": 64, "first_divergence": 17,
             "margin": 2e-4, "bound": 1e-3, "verdict": "explained"},
        ],
        "logits": [
            {"prompt": "novel", "path": "fused", "reference": "oracle", "n_positions": 8, "max_abs": 1e-3, "mean_abs": 1e-4,
             "rel_rms": 5e-5, "kl": 1e-9, "bound": 1e-4, "verdict": "pass"},
        ],
        "engagement": [{"fusion": "fused", "op": "gather_qmm_swiglu", "calls": 128, "runs": 128, "verdict": "pass"}],
        "timings": [{"configuration": "novel, 64 tokens", "fusion": "fused", "n_tokens": 63, "samples_s": [0.5, 0.6]}]
    });
    capsule
}

/// A bench in which every text contains HTML, control characters or Markdown.
pub(super) fn hostile() -> Value {
    fn spoil(value: &mut Value, key: &str) {
        match value {
            Value::String(text) if !matches!(key, "kind" | "fusion" | "fusions") => {
                *text = format!(
                    "</title></svg><script>alert(1)</script><img src=x onerror='alert(2)'>\"\u{1b}[31m|{text}"
                );
            }
            Value::Array(items) => items.iter_mut().for_each(|v| spoil(v, key)),
            Value::Object(fields) => fields.iter_mut().for_each(|(key, v)| spoil(v, key)),
            _ => {}
        }
    }
    let mut capsule = bench();
    spoil(&mut capsule, "");
    capsule
}
