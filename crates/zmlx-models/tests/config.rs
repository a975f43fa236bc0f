//! config.json: what is read, and that every invalid or unsupported value is refused with its name.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use rstest::rstest;
use serde_json::{Value, json};
use zmlx_kernels::{NoauxTc, QuantMode, QuantSpec, Renormalize, RopeFrequencies, RopePairing};
use zmlx_models::architecture::{Architecture, HeadSpec, MixerSpec, QuerySpec, RouterSpec};
use zmlx_models::config::{ConfigFile, QuantOverride};
use zmlx_models::{Error, model_types};

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

fn architecture(config: &Value) -> Architecture {
    parse(config).unwrap().architecture
}

fn moe_layers(config: &Value) -> Vec<usize> {
    architecture(config).moe_layers().map(|(layer_idx, _)| layer_idx).collect()
}

#[test]
fn glm_with_the_references_defaults() {
    let model = architecture(&glm());
    assert_eq!((model.max_position_embeddings, model.config["rope_theta"].as_f64()), (202_752, Some(1e6)));
    assert!(matches!(&model.head, HeadSpec::Own(head) if head.path == "lm_head"));
    let MixerSpec::Latent(attention) = &model.layers[0].mixer else { panic!("another mixer") };
    assert!(matches!(&attention.q, QuerySpec::LowRank { a, .. } if a.matrix.n_out == 32));
    assert_eq!((attention.scale, attention.rope.pairing), (0.125, RopePairing::Interleaved));
    let (layer_idx, moe) = model.moe_layers().next().unwrap();
    assert_eq!((layer_idx, moe.shared.as_ref().unwrap().gate.n_out), (1, 32));
    let RouterSpec::NoauxTc { settings, .. } = &moe.router else { panic!("another router") };
    let want = NoauxTc {
        top_k: 2,
        n_group: 1,
        topk_group: 1,
        renormalize: Renormalize::Yes,
        eps: 1e-20,
        routed_scaling_factor: 1.8,
    };
    assert_eq!(*settings, want);

    let model = architecture(&with(glm(), &json!({"q_lora_rank": null, "n_shared_experts": null})));
    let MixerSpec::Latent(attention) = &model.layers[0].mixer else { panic!("another mixer") };
    assert!(matches!(&attention.q, QuerySpec::Direct(_)));
    assert!(model.moe_layers().all(|(_, moe)| moe.shared.is_none()));
}

#[test]
fn rope_parameters() {
    let theta = |config: &Value| architecture(config).config["rope_theta"].as_f64().unwrap();
    let nested = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
    assert_eq!(theta(&with(glm(), &nested)), 5e5);
    assert_eq!(theta(&with(qwen(), &nested)), 5e5);
    assert_eq!(theta(&with(qwen(), &json!({"rope_scaling": {"type": "default"}}))), 1e7);

    let mscale = json!({"rope_scaling": {"rope_type": "default", "mscale_all_dim": 1.0, "factor": 40.0}});
    let model = architecture(&with(glm(), &mscale));
    let MixerSpec::Latent(attention) = &model.layers[0].mixer else { panic!("another mixer") };
    let m = 0.1 * 40f64.ln() + 1.0;
    assert!((f64::from(attention.scale) - 0.125 * m * m).abs() < 1e-7);
}

/// The frequencies and the scale of a Qwen model with head_dim 8, base 100 and this scaling.
fn rope(scaling: &Value) -> (Vec<f64>, f32) {
    let config = json!({"head_dim": 8, "rope_theta": 100.0, "max_position_embeddings": 1024});
    let model = architecture(&with(with(qwen(), &config), &json!({"rope_scaling": scaling})));
    let MixerSpec::Attention(attention) = &model.layers[0].mixer else { panic!("another mixer") };
    assert_eq!((attention.rope.dims, attention.rope.pairing), (8, RopePairing::HalfSplit));
    (attention.rope.frequencies(), attention.rope.scale)
}

#[test]
fn scaled_rope() {
    // theta^(-2i/8) = 1, 10^-0.5, 10^-1, 10^-1.5.
    let e = [1.0, 0.1f64.sqrt(), 0.1, 0.1f64.powf(1.5)];
    let check = |scaling: &Value, want: [f64; 4], want_scale: f64| {
        let (got, scale) = rope(scaling);
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-7 * want, "{scaling}: {got}, want {want}");
        }
        assert!((f64::from(scale) - want_scale).abs() < 1e-6, "{scaling}: {scale}, want {want_scale}");
    };
    check(&json!(null), e, 1.0);
    check(&json!({"type": "dynamic", "factor": 4.0}), e, 1.0);
    check(&json!({"rope_type": "linear", "factor": 4.0}), e.map(|e| e / 4.0), 1.0);
    // Pairs that make 32 turns and 1 turn over 64 positions: below 0 and at 8 ln(64 / 2π) / (2 ln 100) = 2.016, so 0
    // and 3.
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let slowed = [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0];
    let want = std::array::from_fn(|i| e[i] * (1.0 - slowed[i]) + e[i] / 4.0 * slowed[i]);
    check(&yarn, want, 0.1 * 4f64.ln() + 1.0);
    let both = with(yarn, &json!({"mscale": 0.707, "mscale_all_dim": 0.707}));
    check(&both, want, 1.0);
    // The wave lengths are 2π, 19.9, 62.8 and 198.7 positions; 64 / 4 = 16 and 64 / 1 are the bounds.
    let llama = json!({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let mixed = |e: f64| {
        let s = (64.0 * e / std::f64::consts::TAU - 1.0) / 3.0;
        e * ((1.0 - s) / 8.0 + s)
    };
    check(&llama, [e[0], mixed(e[1]), mixed(e[2]), e[3] / 8.0], 1.0);
    // 1024 positions, originally 64: √(1 + ln 16 / ln 64).
    let long = json!({"type": "longrope", "original_max_position_embeddings": 64,
        "long_factor": [1.0, 2.0, 4.0, 8.0], "short_factor": [1, 1, 1, 1]});
    check(&long, [e[0], e[1] / 2.0, e[2] / 4.0, e[3] / 8.0], (1.0f64 + 4.0 / 6.0).sqrt());
    let model = architecture(&with(qwen(), &json!({"rope_scaling": {"type": "linear", "factor": 2}})));
    let MixerSpec::Attention(attention) = &model.layers[0].mixer else { panic!("another mixer") };
    let powers = RopeFrequencies::Powers { theta: 1e7, position_scale: 0.5 };
    assert_eq!(attention.rope.frequencies, powers, "as MLX takes it: its bits depend on it");
}

#[test]
fn keys_of_other_times_and_places() {
    let mut renamed = qwen();
    renamed.as_object_mut().unwrap().remove("num_experts");
    renamed["num_local_experts"] = json!(8);
    assert_eq!(architecture(&renamed), architecture(&qwen()));

    // Wrapped: the inner type counts if the outer one is unknown, and some keys may be outside.
    let mut inner = qwen();
    for key in ["tie_word_embeddings", "eos_token_id"] {
        inner.as_object_mut().unwrap().remove(key);
    }
    let outside = json!({"model_type": "qwen3_with_ears", "tie_word_embeddings": false, "eos_token_id": 7,
        "quantization": {"bits": 4}, "text_config": inner, "vision_config": {"hidden_size": 7}});
    let wrapped = parse(&outside).unwrap();
    assert_eq!(wrapped.architecture, architecture(&qwen()));
    assert_eq!(wrapped.eos_token_ids, [7]);
    assert_eq!(wrapped.quantization.global(), QuantSpec::new(QuantMode::Affine, 4, 64).ok());
    wrong(
        &with(outside, &json!({"text_config": with(inner_without_layers(), &json!({}))})),
        "text_config.num_hidden_layers",
    );
}

fn inner_without_layers() -> Value {
    let mut config = qwen();
    config.as_object_mut().unwrap().remove("num_hidden_layers");
    config
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
    // A value that is left out is MLX's default for the mode.
    let table = json!({"group_size": 32, "bits": 4, "a": {"bits": 8}, "b": {"mode": "mxfp8"}, "c": {"mode": "nvfp4", "bits": 4}});
    let q = parse(&with(qwen(), &json!({"quantization": table}))).unwrap().quantization;
    assert_eq!(q.get("a"), Some(QuantOverride::Spec(spec(QuantMode::Affine, 8, 64))));
    assert_eq!(q.get("b"), Some(QuantOverride::Spec(spec(QuantMode::Mxfp8, 8, 32))));
    assert_eq!(q.get("c"), Some(QuantOverride::Spec(spec(QuantMode::Nvfp4, 4, 16))));
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
#[case(json!({"rope_scaling": {"type": "ntk", "factor": 4.0}}), "rope_scaling.type", "ntk")]
#[case(json!({"rope_parameters": {"rope_type": "su"}}), "rope_parameters.rope_type", "su")]
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
#[case(glm(), json!({"n_shared_experts": 16_000_000, "moe_intermediate_size": 16_000_000}),
    "model.layers.1.mlp.shared_experts.gate_proj")]
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
#[case(qwen(), json!({"hidden_size": 1 << 24, "head_dim": 1 << 24, "num_attention_heads": 1 << 24}),
    "model.layers.0.self_attn.q_proj")]
#[case(qwen(), json!({"hidden_size": 1 << 24, "num_experts": 1 << 24}), "model.layers.0.mlp")]
#[case(qwen(), json!({"rms_norm_eps": 1e300}), "rms_norm_eps")]
#[case(qwen(), json!({"norm_topk_prob": 1}), "norm_topk_prob")]
#[case(qwen(), json!({"eos_token_id": "x"}), "eos_token_id")]
#[case(qwen(), json!({"quantization": 4}), "quantization")]
#[case(qwen(), json!({"quantization": {"bits": 4, "group_size": 64, "x": {"bits": "8"}}}), "quantization.x.bits")]
#[case(qwen(), json!({"rope_scaling": "none"}), "rope_scaling")]
#[case(qwen(), json!({"rope_scaling": {"type": 4}}), "rope_scaling.type")]
#[case(qwen(), json!({"rope_scaling": {"type": "yarn"}}), "rope_scaling.factor")]
#[case(qwen(), json!({"rope_scaling": {"type": "linear", "factor": 0}}), "rope_scaling.factor")]
#[case(qwen(), json!({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}), "rope_scaling.long_factor")]
fn senseless(#[case] config: Value, #[case] change: Value, #[case] key: &str) {
    wrong(&with(config, &change), key);
}

/// Every width and count in turn: zero, far too large, negative, fractional, text, beyond 64 bits, missing.
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
            assert_eq!((got.as_str(), known), ("llama", model_types().collect()));
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
