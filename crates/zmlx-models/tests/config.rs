//! config.json: what is read, and that every senseless or unsupported value is refused by name.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use rstest::rstest;
use serde_json::{Value, json};
use zmlx_kernels::{QuantMode, QuantSpec};
use zmlx_models::config::{ConfigFile, QuantOverride};
use zmlx_models::{Error, ModelConfig};

fn glm() -> Value {
    json!({
        "model_type": "glm4_moe_lite", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 48,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 128, "moe_intermediate_size": 32,
        "n_routed_experts": 16, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "eos_token_id": [5, 3]
    })
}

fn qwen() -> Value {
    json!({
        "model_type": "qwen3_moe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 1e7,
        "max_position_embeddings": 4096, "tie_word_embeddings": false, "eos_token_id": 7
    })
}

fn with(mut config: Value, changes: &Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn parse(config: &Value) -> Result<ConfigFile, Error> {
    ConfigFile::parse("dir/config.json", &config.to_string(), None)
}

fn moe_layers(config: &Value) -> Vec<usize> {
    let model = parse(config).unwrap().model;
    (0..model.num_hidden_layers()).filter(|&i| model.is_moe_layer(i)).collect()
}

#[test]
fn glm_with_the_references_defaults() {
    let ModelConfig::Glm4MoeLite(c) = parse(&glm()).unwrap().model else { panic!("not GLM") };
    assert_eq!((c.n_group, c.topk_group, c.n_shared_experts, c.moe_layer_freq), (1, 1, 1, 1));
    assert_eq!((c.routed_scaling_factor, c.rope_theta, c.norm_topk_prob), (1.8, 1e6, true));
    assert_eq!((c.first_k_dense_replace, c.max_position_embeddings), (1, 202_752));
    assert_eq!((c.q_lora_rank, c.attention_scale, c.tie_word_embeddings), (Some(32), 0.125, false));
    let plain = with(glm(), &json!({"q_lora_rank": null, "n_shared_experts": null}));
    let ModelConfig::Glm4MoeLite(c) = parse(&plain).unwrap().model else { panic!("not GLM") };
    assert_eq!((c.q_lora_rank, c.n_shared_experts), (None, 0));
}

#[test]
fn rope_parameters() {
    let theta = |config: &Value| match parse(config).unwrap().model {
        ModelConfig::Glm4MoeLite(c) => c.rope_theta,
        ModelConfig::Qwen3Moe(c) => c.rope_theta,
        _ => panic!("an unknown model"),
    };
    let nested = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
    assert_eq!(theta(&with(glm(), &nested)), 5e5);
    assert_eq!(theta(&with(qwen(), &nested)), 5e5);
    assert_eq!(theta(&with(qwen(), &json!({"rope_scaling": {"type": "default"}}))), 1e7);

    let mscale = json!({"rope_scaling": {"rope_type": "default", "mscale_all_dim": 1.0, "factor": 40.0}});
    let ModelConfig::Glm4MoeLite(c) = parse(&with(glm(), &mscale)).unwrap().model else { panic!("not GLM") };
    let m = 0.1 * 40f64.ln() + 1.0;
    assert!((c.attention_scale - 0.125 * m * m).abs() < 1e-15);
}

#[test]
fn which_layers_have_experts() {
    assert_eq!(moe_layers(&glm()), [1, 2, 3, 4, 5]);
    assert_eq!(moe_layers(&with(glm(), &json!({"first_k_dense_replace": 2, "moe_layer_freq": 2}))), [2, 4]);
    assert_eq!(moe_layers(&with(glm(), &json!({"first_k_dense_replace": 0}))), [0, 1, 2, 3, 4, 5]);
    assert_eq!(moe_layers(&with(qwen(), &json!({"mlp_only_layers": [1, 4]}))), [0, 2, 3, 5]);
    assert_eq!(moe_layers(&with(qwen(), &json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]}))), [1, 5]);
    assert_eq!(moe_layers(&with(qwen(), &json!({"num_experts": 0}))), [0; 0]);
}

#[test]
fn quantisation() {
    let spec = |mode, bits, group| QuantSpec::new(mode, bits, group).unwrap();
    let table = json!({
        "group_size": 32, "bits": 4, "mode": "mxfp4",
        "a.b": {"group_size": 64, "bits": 8}, "c": false, "d": true,
        "e": {"group_size": 16, "bits": 4, "mode": "nvfp4"}
    });
    for key in ["quantization", "quantization_config"] {
        let q = parse(&with(qwen(), &json!({key: table}))).unwrap().quantization;
        assert_eq!(q.global(), Some(spec(QuantMode::Mxfp4, 4, 32)));
        assert_eq!(q.get("a.b"), Some(QuantOverride::Spec(spec(QuantMode::Affine, 8, 64))));
        assert_eq!((q.get("c"), q.get("d"), q.get("a")), (Some(QuantOverride::Dense), None, None));
        assert_eq!(q.overrides().count(), 3);
    }
    let q =
        parse(&with(qwen(), &json!({"quantization": {"group_size": 64, "bits": 4}}))).unwrap().quantization;
    assert_eq!(q.global(), Some(spec(QuantMode::Affine, 4, 64)));
    assert_eq!(parse(&qwen()).unwrap().quantization.global(), None);
}

#[test]
fn the_declared_type_is_kept() {
    assert_eq!(parse(&glm()).unwrap().dtype, None);
    assert_eq!(
        parse(&with(glm(), &json!({"torch_dtype": "bfloat16"}))).unwrap().dtype.as_deref(),
        Some("bfloat16")
    );
    assert_eq!(parse(&with(glm(), &json!({"dtype": "float16"}))).unwrap().dtype.as_deref(), Some("float16"));
}

#[rstest]
#[case(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "rope_scaling.type", "yarn")]
#[case(json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}), "rope_scaling.rope_type", "linear")]
#[case(json!({"rope_parameters": {"rope_type": "llama3"}}), "rope_parameters.rope_type", "llama3")]
#[case(json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor", "0.5")]
#[case(json!({"attention_bias": true}), "attention_bias", "true")]
#[case(json!({"hidden_act": "gelu"}), "hidden_act", "gelu")]
#[case(json!({"quantization": {"group_size": 64, "bits": 4, "mode": "nf4"}}), "quantization.mode", "nf4")]
#[case(json!({"quantization": {"group_size": 64, "bits": 7}}), "quantization.bits and group_size", "7 bits")]
#[case(json!({"quantization": {"group_size": 64, "bits": 4, "x.y": {"group_size": 48, "bits": 4}}}),
    "quantization.x.y.bits and group_size", "groups of 48")]
#[case(json!({"quantization_config": {"quant_method": "awq", "bits": 4}}), "quantization_config.quant_method", "awq")]
fn unsupported_in_both(#[case] change: Value, #[case] key: &str, #[case] value: &str) {
    for config in [glm(), qwen()] {
        unsupported(&with(config, &change), key, value);
    }
}

#[rstest]
#[case(glm(), json!({"scoring_func": "softmax"}), "scoring_func", "softmax")]
#[case(glm(), json!({"topk_method": "greedy"}), "topk_method", "greedy")]
#[case(qwen(), json!({"use_sliding_window": true}), "use_sliding_window", "true")]
fn unsupported_in_one(#[case] config: Value, #[case] change: Value, #[case] key: &str, #[case] value: &str) {
    unsupported(&with(config, &change), key, value);
}

fn unsupported(config: &Value, want_key: &str, value: &str) {
    match parse(config) {
        Err(Error::UnsupportedSetting { file, key, got, .. }) => {
            assert_eq!((file.as_str(), key.as_str()), ("dir/config.json", want_key));
            assert!(got.contains(value), "{got}");
        }
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case(glm(), json!({"num_experts_per_tok": 17}), "num_experts_per_tok")]
#[case(glm(), json!({"n_group": 3}), "n_group")]
#[case(glm(), json!({"n_group": 16, "topk_group": 4}), "n_group")]
#[case(glm(), json!({"n_group": 4, "topk_group": 5}), "topk_group")]
#[case(glm(), json!({"n_group": 4, "topk_group": 1, "num_experts_per_tok": 5}), "num_experts_per_tok")]
#[case(glm(), json!({"qk_rope_head_dim": 15}), "qk_rope_head_dim")]
#[case(glm(), json!({"moe_layer_freq": 0}), "moe_layer_freq")]
#[case(glm(), json!({"routed_scaling_factor": -1.0}), "routed_scaling_factor")]
#[case(glm(), json!({"n_shared_experts": 16_000_000, "moe_intermediate_size": 16_000_000}), "n_shared_experts")]
#[case(glm(), json!({"rope_scaling": {"mscale_all_dim": 1.0}}), "rope_scaling.factor")]
#[case(qwen(), json!({"num_experts_per_tok": 9}), "num_experts_per_tok")]
#[case(qwen(), json!({"num_key_value_heads": 3}), "num_key_value_heads")]
#[case(qwen(), json!({"head_dim": 33}), "head_dim")]
#[case(qwen(), json!({"decoder_sparse_step": 0}), "decoder_sparse_step")]
#[case(qwen(), json!({"mlp_only_layers": [-1]}), "mlp_only_layers")]
#[case(qwen(), json!({"mlp_only_layers": 1}), "mlp_only_layers")]
#[case(qwen(), json!({"rope_theta": 0.0}), "rope_theta")]
#[case(qwen(), json!({"rope_theta": null}), "rope_theta")]
#[case(qwen(), json!({"rope_theta": "1e6"}), "rope_theta")]
#[case(qwen(), json!({"hidden_size": 1 << 24, "head_dim": 1 << 24, "num_attention_heads": 1 << 24}), "num_attention_heads")]
#[case(qwen(), json!({"rms_norm_eps": 1e300}), "rms_norm_eps")]
#[case(qwen(), json!({"norm_topk_prob": 1}), "norm_topk_prob")]
#[case(qwen(), json!({"eos_token_id": "x"}), "eos_token_id")]
#[case(qwen(), json!({"quantization": 4}), "quantization")]
#[case(qwen(), json!({"quantization": {"bits": 4}}), "quantization.group_size")]
#[case(qwen(), json!({"quantization": {"bits": 4, "group_size": 64, "x": {"bits": "8"}}}), "quantization.x.bits")]
#[case(qwen(), json!({"rope_scaling": "none"}), "rope_scaling")]
fn senseless(#[case] config: Value, #[case] change: Value, #[case] key: &str) {
    wrong(&with(config, &change), key);
}

/// Every width and count, in turn: zero, absurd, negative, fractional, text, beyond 64 bits, missing.
#[rstest]
fn senseless_dimensions(
    #[values(
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "moe_intermediate_size",
        "num_experts_per_tok"
    )]
    key: &str,
    #[values(json!(0), json!(1u64 << 60), json!(-1), json!(1.5), json!("8"), json!(1e30), json!([8]), Value::Null)]
    value: Value,
) {
    for config in [glm(), qwen()] {
        wrong(&with(config.clone(), &json!({key: value})), key);
        let mut missing = config;
        missing.as_object_mut().unwrap().remove(key);
        wrong(&missing, key);
    }
}

fn wrong(config: &Value, want_key: &str) {
    match parse(config) {
        Err(Error::Field { file, key, .. }) => {
            assert_eq!((file.as_str(), key.as_str()), ("dir/config.json", want_key));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_models_and_other_files() {
    match parse(&json!({"model_type": "llama"})) {
        Err(Error::UnknownModelType { got, known, .. }) => {
            assert_eq!((got.as_str(), known), ("llama", &["glm4_moe_lite", "qwen3_moe"][..]));
        }
        other => panic!("{other:?}"),
    }
    wrong(&json!({}), "model_type");
    wrong(&json!([]), "the file");
    for text in ["", "{", "{\"model_type\": \"qwen3_moe\",}", "\u{0}"] {
        assert!(matches!(ConfigFile::parse("c", text, None), Err(Error::Json { .. })), "{text}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(ConfigFile::parse("c", &deep, None), Err(Error::Json { .. })));
}
