//! Families whose layers keep states.

use half::bf16;
use rstest::rstest;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use zmlx_oracle::quant::{Format, Mode, StorageDtype};

use super::builder::{Builder, table};
use super::{HIDDEN, VOCAB, affine, check_within, merge, of_mode};

/// The norms of queries and keys, and the norm after a state, pass on the errors of 16-bit activations: 5.1e-4 was
/// measured. The seeds are chosen so that no router is near a tie.
fn check(what: &str, b: &Builder, config: &Value, n_shards: usize) {
    check_within(1e-3, what, b, config, n_shards);
}

fn hybrid_config(model_type: &str, format: Option<Format>, changes: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "hidden_size": HIDDEN, "num_hidden_layers": 3, "full_attention_interval": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 192,
        "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 24,
        "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "moe_intermediate_size": 64, "num_experts": 8,
        "num_experts_per_tok": 3, "shared_expert_intermediate_size": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "tie_word_embeddings": false, "hidden_act": "silu", "eos_token_id": 0,
    });
    if let Some(format) = format {
        config["quantization"] = table(format);
    }
    merge(&mut config, changes);
    config
}

/// A convolution's taps, `[n_channels, kernel, 1]`.
fn taps(b: &mut Builder, path: &str, n_channels: usize, kernel: usize) {
    b.weight_in(path, &[n_channels, kernel], None);
    b.tensors.get_mut(&format!("{path}.weight")).unwrap().1.push(1);
}

fn bias(b: &mut Builder, path: &str, len: usize) {
    b.floats(&format!("{path}.bias"), len, 0.3);
}

fn hybrid(b: &mut Builder, config: &Value) {
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let is_next = config["model_type"] == "qwen3_next";
    let (n_k, n_v) = (number("linear_num_key_heads"), number("linear_num_value_heads"));
    let (dk, dv) = (number("linear_key_head_dim"), number("linear_value_head_dim"));
    let (head_dim, n_heads, n_kv) =
        (number("head_dim"), number("num_attention_heads"), number("num_key_value_heads"));
    let n_channels = 2 * n_k * dk + n_v * dv;
    b.weight("model.embed_tokens", &[VOCAB, HIDDEN]);
    if config["tie_word_embeddings"] == false {
        b.weight("lm_head", &[VOCAB, HIDDEN]);
    }
    b.norm("model.norm.weight", HIDDEN);
    for i in 0..3usize {
        let layer = format!("model.layers.{i}");
        b.norm(&format!("{layer}.input_layernorm.weight"), HIDDEN);
        b.norm(&format!("{layer}.post_attention_layernorm.weight"), HIDDEN);
        if (i + 1).is_multiple_of(number("full_attention_interval")) {
            let at = |name: &str| format!("{layer}.self_attn.{name}");
            for (name, n_out, n_in) in [
                ("q_proj", 2 * n_heads * head_dim, HIDDEN),
                ("k_proj", n_kv * head_dim, HIDDEN),
                ("v_proj", n_kv * head_dim, HIDDEN),
                ("o_proj", HIDDEN, n_heads * head_dim),
            ] {
                b.weight(&at(name), &[n_out, n_in]);
                if config["attention_bias"] == true {
                    bias(b, &at(name), n_out);
                }
            }
            b.norm(&at("q_norm.weight"), head_dim);
            b.norm(&at("k_norm.weight"), head_dim);
        } else {
            let at = |name: &str| format!("{layer}.linear_attn.{name}");
            if is_next {
                b.weight(&at("in_proj_qkvz"), &[n_channels + n_v * dv, HIDDEN]);
                b.weight(&at("in_proj_ba"), &[2 * n_v, HIDDEN]);
            } else {
                b.weight(&at("in_proj_qkv"), &[n_channels, HIDDEN]);
                b.weight(&at("in_proj_z"), &[n_v * dv, HIDDEN]);
                b.weight(&at("in_proj_b"), &[n_v, HIDDEN]);
                b.weight(&at("in_proj_a"), &[n_v, HIDDEN]);
            }
            taps(b, &at("conv1d"), n_channels, number("linear_conv_kernel_dim"));
            b.floats(&at("A_log"), n_v, 1.5);
            b.floats(&at("dt_bias"), n_v, 1.0);
            b.norm(&at("norm.weight"), dv);
            b.weight(&at("out_proj"), &[HIDDEN, n_v * dv]);
        }
        let is_dense = config["mlp_only_layers"].as_array().is_some_and(|list| list.contains(&json!(i)));
        if is_dense || number("num_experts") == 0 {
            b.mlp(&format!("{layer}.mlp"), number("intermediate_size"), HIDDEN);
        } else {
            b.weight(&format!("{layer}.mlp.gate"), &[number("num_experts"), HIDDEN]);
            b.weight(&format!("{layer}.mlp.shared_expert_gate"), &[1, HIDDEN]);
            b.experts(
                &format!("{layer}.mlp"),
                number("num_experts"),
                number("moe_intermediate_size"),
                HIDDEN,
            );
            let inter = number("shared_expert_intermediate_size");
            b.mlp(&format!("{layer}.mlp.shared_expert"), inter, HIDDEN);
        }
    }
}

#[rstest]
#[case(affine(4, 64), StorageDtype::BF16)]
#[case(affine(3, 32), StorageDtype::F16)]
#[case(affine(8, 64), StorageDtype::F32)]
#[case(of_mode(Mode::Mxfp4), StorageDtype::BF16)]
#[case(of_mode(Mode::Nvfp4), StorageDtype::BF16)]
#[case(None, StorageDtype::BF16)]
fn linear_attention_in_formats(
    #[case] format: Option<Format>,
    #[case] scale_dtype: StorageDtype,
    #[values("qwen3_5_moe", "qwen3_next")] model_type: &str,
) {
    let config = hybrid_config(model_type, format, json!({}));
    let mut b = Builder::new(102, format);
    b.scale_dtype = scale_dtype;
    hybrid(&mut b, &config);
    check(&format!("{model_type}, {format:?} with {scale_dtype:?} scales"), &b, &config, 1);
}

#[rstest]
#[case("dense", json!({ "num_experts": 0 }))]
#[case("tied embeddings", json!({ "tie_word_embeddings": true }))]
#[case("biases", json!({ "attention_bias": true }))]
#[case("a key head for each value head", json!({ "linear_num_key_heads": 6 }))]
#[case("one key head", json!({ "linear_num_key_heads": 1 }))]
#[case("other widths", json!({ "linear_key_head_dim": 17, "linear_value_head_dim": 128, "head_dim": 48 }))]
#[case("another kernel", json!({ "linear_conv_kernel_dim": 2 }))]
#[case("a wide kernel", json!({ "linear_conv_kernel_dim": 9 }))]
#[case("linear attention only", json!({ "full_attention_interval": 5 }))]
#[case("no linear attention", json!({ "full_attention_interval": 1 }))]
#[case("weights as they are", json!({ "norm_topk_prob": false }))]
#[case("one expert", json!({ "num_experts_per_tok": 1 }))]
#[case("half of each head", json!({ "partial_rotary_factor": 0.5 }))]
fn linear_attention_variants(
    #[case] what: &str,
    #[case] changes: Value,
    #[values("qwen3_5", "qwen3_next")] model_type: &str,
) {
    let config = hybrid_config(model_type, affine(4, 64), changes);
    let mut b = Builder::new(103, affine(4, 64));
    hybrid(&mut b, &config);
    check(&format!("{model_type}, {what}"), &b, &config, 1);
}

#[test]
fn layers_without_experts() {
    let config = hybrid_config("qwen3_next", affine(4, 64), json!({ "mlp_only_layers": [0, 2] }));
    let mut b = Builder::new(107, affine(4, 64));
    hybrid(&mut b, &config);
    check("dense layers by list", &b, &config, 2);
}

/// Hugging Face's form: the dimensions of taps are in another order, and norms are stored as differences from 1.
#[test]
fn linear_attention_that_is_not_converted() {
    let config = hybrid_config("qwen3_5_moe", None, json!({}));
    let mut b = Builder::new(109, None);
    hybrid(&mut b, &config);
    for (name, (dtype, shape, bytes)) in &mut b.tensors {
        if name.ends_with("conv1d.weight") {
            shape.swap(1, 2);
        } else if name.contains("norm") && !name.contains("linear_attn") {
            assert_eq!(*dtype, Dtype::BF16);
            let distance = |b: &[u8; 2]| bf16::from_f32(bf16::from_le_bytes(*b).to_f32() - 1.0);
            *bytes = bytes.as_chunks().0.iter().flat_map(|b| distance(b).to_le_bytes()).collect();
        }
    }
    b.join_gate_up("mlp.experts", "");
    check("unconverted", &b, &config, 1);
}

#[test]
fn tensors_of_other_parts() {
    let config = hybrid_config("qwen3_5", affine(4, 64), json!({ "num_experts": 0 }));
    let mut b = Builder::new(113, affine(4, 64));
    hybrid(&mut b, &config);
    b.weight("mtp.fc", &[HIDDEN, 2 * HIDDEN]);
    b.norm("mtp.layers.0.input_layernorm.weight", HIDDEN);
    b.weight("vision_tower.blocks.0.attn.qkv", &[96, 64]);
    check("tensors of other parts", &b, &config, 1);
}

fn lfm2_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "lfm2_moe", "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "conv_L_cache": 3, "conv_bias": false, "intermediate_size": 192,
        "layer_types": ["conv", "full_attention", "conv"], "moe_intermediate_size": 64, "num_dense_layers": 1,
        "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": true, "use_expert_bias": true,
        "routed_scaling_factor": 1.0, "norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "eos_token_id": 0,
        "quantization": table(affine(4, 64).unwrap()),
    });
    merge(&mut config, changes);
    config
}

fn lfm2(b: &mut Builder, config: &Value) {
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    b.weight("model.embed_tokens", &[VOCAB, HIDDEN]);
    b.norm("model.embedding_norm.weight", HIDDEN);
    for i in 0..3usize {
        let layer = format!("model.layers.{i}");
        b.norm(&format!("{layer}.operator_norm.weight"), HIDDEN);
        b.norm(&format!("{layer}.ffn_norm.weight"), HIDDEN);
        let is_attention = match config["layer_types"].as_array() {
            Some(types) => types[i] == "full_attention",
            None => config["full_attn_idxs"].as_array().unwrap().contains(&json!(i)),
        };
        if is_attention {
            for (name, n_out) in [("q_proj", HIDDEN), ("k_proj", 64), ("v_proj", 64), ("out_proj", HIDDEN)] {
                b.weight(&format!("{layer}.self_attn.{name}"), &[n_out, HIDDEN]);
            }
            b.norm(&format!("{layer}.self_attn.q_layernorm.weight"), 32);
            b.norm(&format!("{layer}.self_attn.k_layernorm.weight"), 32);
        } else {
            b.weight(&format!("{layer}.conv.in_proj"), &[3 * HIDDEN, HIDDEN]);
            b.weight(&format!("{layer}.conv.out_proj"), &[HIDDEN, HIDDEN]);
            taps(b, &format!("{layer}.conv.conv"), HIDDEN, number("conv_L_cache"));
            if config["conv_bias"] == true {
                for (name, len) in [("in_proj", 3 * HIDDEN), ("conv", HIDDEN), ("out_proj", HIDDEN)] {
                    bias(b, &format!("{layer}.conv.{name}"), len);
                }
            }
        }
        let path = format!("{layer}.feed_forward");
        if i < number("num_dense_layers") {
            b.mlp(&path, number("intermediate_size"), HIDDEN);
        } else {
            b.weight(&format!("{path}.gate"), &[number("num_experts"), HIDDEN]);
            if config["use_expert_bias"] == true {
                b.floats(&format!("{path}.expert_bias"), number("num_experts"), 0.3);
            }
            b.experts(&path, number("num_experts"), number("moe_intermediate_size"), HIDDEN);
        }
    }
}

#[rstest]
#[case("plain", json!({}))]
#[case("biases", json!({ "conv_bias": true }))]
#[case("layers by list", json!({ "layer_types": null, "full_attn_idxs": [0, 1] }))]
#[case("another kernel", json!({ "conv_L_cache": 5 }))]
#[case("no bias of the experts", json!({ "use_expert_bias": false }))]
#[case("weights as they are", json!({ "norm_topk_prob": false, "routed_scaling_factor": 2.5 }))]
#[case("no dense layer", json!({ "num_dense_layers": 0 }))]
fn short_convolutions(#[case] what: &str, #[case] changes: Value) {
    let config = lfm2_config(changes);
    let mut b = Builder::new(127, affine(4, 64));
    lfm2(&mut b, &config);
    check(what, &b, &config, 1);
}
