//! `--backend`, `zmlx doctor`, and the router experiments.

use serde_json::json;

use crate::*;

const LOGITS: &str = "ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS";
const TOP_K: &str = "ZMLX_QWEN_ROUTER_ARGPARTITION_LOGITS_TOPK";

fn tokens(run: &Run) -> Value {
    run.json()["tokens"].clone()
}

#[test]
#[cfg(not(any(target_os = "macos", feature = "mlx")))]
fn without_the_feature_the_message_says_how_to_get_mlx() {
    let refused = ["--features mlx", "cargo xtask setup-mlx"];
    zmlx(&["generate", "--json", "--backend", "mlx", "--model", &model(GLM), "-p", "x"]).refused(&refused);
    zmlx(&["doctor", "--backend", "mlx", "--model", &model(GLM)]).refused(&refused);
    let report = zmlx(&["doctor", "--json", "--model", &model(GLM)]).ok().json();
    assert_eq!(report["backends"][2]["about"], Value::Null);
    assert!(report["backends"][2]["remark"].as_str().unwrap().contains("setup-mlx"), "{report:#}");
}

/// Without a GPU the message says which of the two is missing: the driver or the GPU.
#[test]
#[cfg(target_os = "linux")]
fn without_a_gpu_the_message_says_what_is_missing() {
    let report = zmlx(&["doctor", "--json", "--model", &model(GLM)]).ok().json();
    let cuda = &report["backends"][1];
    if cuda["about"].is_null() {
        let remark = cuda["remark"].as_str().unwrap();
        assert!(!remark.contains("not available"), "the report already says this: {remark}");
        assert!(["driver", "GPU", "NVRTC"].iter().any(|part| remark.contains(part)), "{remark}");
        let run = zmlx(&["generate", "--json", "--backend", "cuda", "--model", &model(GLM), "-p", "x"]);
        run.refused(&["the cuda backend is not available"]);
    }
}

#[test]
#[cfg(feature = "mlx")]
fn mlx_gives_the_recorded_bf16_tokens() {
    let golden = golden(QWEN);
    let prompt = golden.prompt("truth").unwrap();
    let args =
        ["generate", "--json", "--backend", "mlx", "--model", &model(QWEN), "--ignore-eos", "-m", "16"];
    let run = zmlx(&[&args[..], &["--prompt-tokens", &join(&prompt.prompt_tokens)]].concat()).ok();
    assert_eq!(tokens(&run), json!(prompt.bf16.tokens[..16]));
}

#[test]
#[cfg(feature = "mlx")]
fn the_doctor_shows_the_limits_of_mlx_and_who_chose_them() {
    let settings = |of_user: &[(&str, &str)]| {
        let mut command = command(&["doctor", "--json", "--backend", "mlx", "--model", &model(QWEN)]);
        command.env_remove("MLX_MAX_OPS_PER_BUFFER").env_remove("MLX_MAX_MB_PER_BUFFER");
        let run = finish(command.envs(of_user.iter().copied())).ok();
        run.json()["backends"][0]["settings"].as_array().unwrap().clone()
    };
    let names = ["MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER", "wired limit", "cache limit"];
    let found = settings(&[]);
    assert_eq!(found.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    assert!(found.iter().all(|s| s["chosen_by"] != "the user"), "{found:?}");
    if cfg!(target_os = "linux") {
        assert!(found.iter().all(|s| s["chosen_by"] == "MLX" && s["value"].is_null()), "{found:?}");
    }
    let found = settings(&[("MLX_MAX_MB_PER_BUFFER", "77")]);
    assert_eq!(found[1], json!({"name": names[1], "value": "77", "chosen_by": "the user", "why": null}));
    assert!(found[0]["chosen_by"] != "the user", "{found:?}");
}

#[test]
#[cfg(feature = "mlx")]
fn mlx_is_valid() {
    // Two runs instead of five, because MLX's CPU kernels take seconds per text.
    let args = ["validate", "--json", "--backend", "mlx", "--model", &model(QWEN), "-m", "8", "-r", "2"];
    let report = zmlx(&args).ok().json();
    assert_eq!(report["verdict"], "pass", "{report:#}");
    assert!(report["backend"].as_str().unwrap().starts_with("mlx 0.32.2"), "{report:#}");
}

#[test]
fn the_doctor_checks_every_fused_op() {
    for (name, kernels) in [
        (
            GLM,
            &["add_rms_norm", "qmm_swiglu", "route_noaux_tc", "gather_qmm_swiglu", "gather_qmm_combine"][..],
        ),
        (QWEN, &["linear", "add_rms_norm", "route_softmax_top_k", "gather_qmm_swiglu", "gather_qmm_combine"]),
    ] {
        let report = zmlx(&["doctor", "--json", "--model", &model(name)]).ok().json();
        assert!(report["machine"]["levels"].as_array().unwrap().contains(&json!("scalar")), "{report:#}");
        let backends = report["backends"].as_array().unwrap();
        assert_eq!(backends.iter().map(|b| &b["backend"]).collect::<Vec<_>>(), ["cpu", "cuda", "mlx"]);
        for backend in backends.iter().filter(|b| !b["about"].is_null()) {
            for kernel in kernels {
                let ops = backend["ops"].as_array().unwrap().iter();
                let mut found = ops.filter(|op| op["kernel"] == *kernel).peekable();
                assert!(found.peek().is_some(), "{kernel}: {report:#}");
                assert!(found.all(|op| op["ok"] == true), "{kernel}: {report:#}");
            }
        }
    }
    let text = zmlx(&["doctor", "--backend", "cpu", "--model", &model(GLM)]).ok().stdout;
    assert!(text.contains("gather_qmm_swiglu") && text.contains("  ok ("), "{text}");
    assert!(!text.contains("\nmlx"), "only the backend that was named: {text}");
}

#[test]
fn a_model_that_is_no_number_fails_its_self_check() {
    let dir = copy_without(GLM, &[]);
    spoil(dir.path(), "model.norm.weight");
    let run = zmlx(&["doctor", "--json", "--backend", "cpu", "--model", dir.path().to_str().unwrap()]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let report = run.json();
    let failed: Vec<_> =
        report["backends"][0]["ops"].as_array().unwrap().iter().filter(|op| op["ok"] == false).collect();
    assert_eq!(failed.len(), 1, "{report:#}");
    assert_eq!(failed[0]["kernel"], "add_rms_norm");
    assert!(run.stderr.contains("add_rms_norm") && run.stderr.contains("switched off"), "{}", run.stderr);
}

#[test]
fn router_experiments_give_the_same_tokens() {
    let args = ["generate", "--json", "--model", &model(QWEN), "-p", "It is", "-m", "12"];
    let want = tokens(&zmlx(&args).ok());
    let first = ["--qwen-router-argpartition-logits"];
    let both = [first[0], "--qwen-router-argpartition-logits-topk"];
    for flags in [&first[..], &both[..], &["--fusion", "fused,route=logits"]] {
        let run = zmlx(&[&args[..], flags, &["--verbose"]].concat()).ok();
        assert_eq!(tokens(&run), want, "{flags:?}");
        assert!(run.stderr.contains("route="), "{flags:?}: {}", run.stderr);
    }
}

#[test]
fn router_experiments_are_read_by_value() {
    let args = ["generate", "--json", "--verbose", "--model", &model(QWEN), "-p", "It", "-m", "1"];
    let route = |set: &[(&str, &str)]| {
        let mut command = command(&args);
        command.envs(set.iter().copied());
        let stderr = finish(&mut command).ok().stderr;
        let line = stderr.lines().find(|l| l.starts_with("Fusion: ")).unwrap().to_owned();
        line.strip_prefix("Fusion: ").unwrap().to_owned()
    };
    for off in ["", "0", "false", "off", "no"] {
        assert_eq!(route(&[(LOGITS, off), (TOP_K, off)]), "fused", "{off:?}");
    }
    assert_eq!(route(&[(LOGITS, "1")]), "fused,route=logits");
    assert_eq!(route(&[(LOGITS, "true"), (TOP_K, "1")]), "fused,route=chosen_logits");
}

#[test]
fn router_experiments_that_cannot_be() {
    let args = ["generate", "--json", "--model", &model(QWEN), "-p", "It", "-m", "1"];
    zmlx(&[&args[..], &["--qwen-router-argpartition-logits-topk"]].concat()).refused(&["requires", LOGITS]);
    finish(command(&args).env(TOP_K, "1").env(LOGITS, "0")).refused(&["requires", LOGITS]);
    // If the weights are not renormalised, they are not a softmax over the chosen experts.
    let dir = copy_without(QWEN, &[]);
    edit_json(dir.path(), "config.json", |c| c["norm_topk_prob"] = json!(false));
    let args = ["generate", "--json", "--model", dir.path().to_str().unwrap(), "-p", "It", "-m", "1"];
    finish(command(&args).env(LOGITS, "1").env(TOP_K, "1")).refused(&["norm_topk_prob"]);
    finish(command(&args).env(LOGITS, "1")).ok();
}
