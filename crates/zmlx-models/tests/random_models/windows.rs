//! Families with windows: gpt-oss with sinks and biases, and the kinds of Gemma 4.

use rstest::rstest;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use zmlx_oracle::quant::Mode;

use crate::builder::Builder;
use crate::{VOCAB, affine, check, check_within, merge, of_mode};

const HIDDEN: usize = 96;
const N_EXPERTS: usize = 5;
/// Width of an expert.
const INTER: usize = 160;

fn gpt_oss_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "gpt_oss", "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": INTER, "num_local_experts": N_EXPERTS,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 150000, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "hidden_act": "silu", "eos_token_id": 0, "sliding_window": 6,
        "rope_scaling": { "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16,
            "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false },
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "quantization": { "group_size": 32, "bits": 4, "mode": "mxfp4" },
    });
    merge(&mut config, changes);
    config
}

/// All weights except the experts have 8 bits.
fn gpt_oss(b: &mut Builder, config: &mut Value) {
    let eight = affine(8, 32);
    let mut matrix = |b: &mut Builder, path: &str, shape: [usize; 2]| {
        b.weight_in(path, &shape, eight);
        config["quantization"][path] = json!({ "group_size": 32, "bits": 8 });
    };
    matrix(b, "model.embed_tokens", [VOCAB, HIDDEN]);
    matrix(b, "lm_head", [VOCAB, HIDDEN]);
    b.norm("model.norm.weight", HIDDEN);
    for i in 0..3 {
        let path = format!("model.layers.{i}");
        b.norm(&format!("{path}.input_layernorm.weight"), HIDDEN);
        b.norm(&format!("{path}.post_attention_layernorm.weight"), HIDDEN);
        for (name, n_out, n_in) in
            [("q", 96, HIDDEN), ("k", 32, HIDDEN), ("v", 32, HIDDEN), ("o", HIDDEN, 96)]
        {
            let path = format!("{path}.self_attn.{name}_proj");
            matrix(b, &path, [n_out, n_in]);
            b.floats(&format!("{path}.bias"), n_out, 0.5);
        }
        b.floats(&format!("{path}.self_attn.sinks"), 6, 1.5);
        matrix(b, &format!("{path}.mlp.router"), [N_EXPERTS, HIDDEN]);
        b.floats(&format!("{path}.mlp.router.bias"), N_EXPERTS, 0.5);
        for (name, n_out, n_in) in [("gate", INTER, HIDDEN), ("up", INTER, HIDDEN), ("down", HIDDEN, INTER)] {
            let path = format!("{path}.mlp.experts.{name}_proj");
            b.weight(&path, &[N_EXPERTS, n_out, n_in]);
            b.floats(&format!("{path}.bias"), N_EXPERTS * n_out, 2.0);
            b.tensors.get_mut(&format!("{path}.bias")).unwrap().1 = vec![N_EXPERTS, n_out];
        }
    }
}

/// Puts experts into the layout of the released files: blocks of bytes, with rows of gate and up in turns.
fn into_blocks(b: &mut Builder) {
    for i in 0..3 {
        let path = format!("model.layers.{i}.mlp.experts");
        for (part, to) in [("weight", "blocks"), ("scales", "scales"), ("bias", "bias")] {
            let [gate, up, down] = ["gate", "up", "down"]
                .map(|name| b.tensors.remove(&format!("{path}.{name}_proj.{part}")).unwrap());
            let row = gate.2.len() / (N_EXPERTS * INTER);
            let rows = gate.2.chunks_exact(row).zip(up.2.chunks_exact(row));
            let both: Vec<u8> = rows.flat_map(|(gate, up)| [gate, up].concat()).collect();
            for (name, n_out, n_in, bytes) in
                [("gate_up", 2 * INTER, HIDDEN, both), ("down", HIDDEN, INTER, down.2)]
            {
                let (dtype, shape) = match to {
                    "blocks" => (Dtype::U8, vec![N_EXPERTS, n_out, n_in / 32, 16]),
                    "scales" => (Dtype::U8, vec![N_EXPERTS, n_out, n_in / 32]),
                    _ => (Dtype::F32, vec![N_EXPERTS, n_out]),
                };
                b.tensors.insert(format!("{path}.{name}_proj_{to}"), (dtype, shape, bytes));
            }
        }
    }
}

#[rstest]
#[case("plain", json!({}))]
#[case("all experts, by another name", json!({ "num_experts_per_tok": null, "experts_per_token": 5 }))]
#[case("alternating layers, as none are listed", json!({ "layer_types": null, "sliding_window": 1 }))]
#[case("plain rope in the new place", json!({ "rope_scaling": null, "rope_theta": null,
    "rope_parameters": { "rope_type": "default", "rope_theta": 1e4 } }))]
fn gpt_oss_variants(#[case] what: &str, #[case] changes: Value) {
    let mut config = gpt_oss_config(changes);
    let mut b = Builder::new(211, of_mode(Mode::Mxfp4));
    gpt_oss(&mut b, &mut config);
    check(what, &b, &config, 1);
}

#[test]
fn gpt_oss_as_it_was_released() {
    let mut config = gpt_oss_config(json!({}));
    let mut b = Builder::new(223, of_mode(Mode::Mxfp4));
    gpt_oss(&mut b, &mut config);
    into_blocks(&mut b);
    check("blocks", &b, &config, 2);
}

/// Gemma's scores are not scaled. With normed heads of 64 they are up to 64, so errors of 15 bits matter more in their
/// softmax. 7.2e-4 was measured.
const GEMMA_BOUND: f64 = 1.5e-3;

fn gemma_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "gemma4_text", "hidden_size": HIDDEN, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 64, "intermediate_size": INTER,
        "rms_norm_eps": 1e-6, "vocab_size": VOCAB, "max_position_embeddings": 512,
        "hidden_activation": "gelu_pytorch_tanh", "eos_token_id": 0, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": false,
        "quantization": { "group_size": 32, "bits": 4 },
    });
    merge(&mut config, changes);
    config
}

fn gemma(b: &mut Builder, config: &Value) {
    let is_on = |key: &str| config[key] == true;
    let number = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let n_own = 4 - number("num_kv_shared_layers");
    let width = number("hidden_size_per_layer_input");
    b.weight("model.embed_tokens", &[VOCAB, HIDDEN]);
    if config["tie_word_embeddings"] == false {
        b.weight("lm_head", &[VOCAB, HIDDEN]);
    }
    b.norm("model.norm.weight", HIDDEN);
    if width > 0 {
        b.weight("model.embed_tokens_per_layer", &[VOCAB, 4 * width]);
        b.weight("model.per_layer_model_projection", &[4 * width, HIDDEN]);
        b.norm("model.per_layer_projection_norm.weight", width);
    }
    for i in 0..4 {
        let path = format!("model.layers.{i}");
        let is_full = match config["layer_types"].as_array() {
            Some(types) => types[i] == "full_attention",
            None => (i + 1).is_multiple_of(number("sliding_window_pattern")),
        };
        for name in [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ] {
            b.norm(&format!("{path}.{name}.weight"), HIDDEN);
        }
        b.norm(&format!("{path}.layer_scalar"), 1);
        let d = if is_full { 64 } else { 32 };
        let is_joint = is_full && is_on("attention_k_eq_v");
        let kv = d * if is_joint { number("num_global_key_value_heads") } else { 2 };
        b.weight(&format!("{path}.self_attn.q_proj"), &[4 * d, HIDDEN]);
        b.norm(&format!("{path}.self_attn.q_norm.weight"), d);
        b.weight(&format!("{path}.self_attn.o_proj"), &[HIDDEN, 4 * d]);
        // Files may contain these even where another layer's are used.
        b.weight(&format!("{path}.self_attn.k_proj"), &[kv, HIDDEN]);
        b.norm(&format!("{path}.self_attn.k_norm.weight"), d);
        if !is_joint {
            b.weight(&format!("{path}.self_attn.v_proj"), &[kv, HIDDEN]);
        }
        let wide = if i >= n_own && config["use_double_wide_mlp"] != false { 2 } else { 1 };
        b.mlp(&format!("{path}.mlp"), wide * INTER, HIDDEN);
        b.norm(&format!("{path}.mlp.gate_proj.input_max"), 1);
        if is_on("enable_moe_block") {
            b.norm(&format!("{path}.router.scale"), HIDDEN);
            b.norm(&format!("{path}.router.per_expert_scale"), N_EXPERTS);
            b.weight(&format!("{path}.router.proj"), &[N_EXPERTS, HIDDEN]);
            for name in [
                "post_feedforward_layernorm_1",
                "post_feedforward_layernorm_2",
                "pre_feedforward_layernorm_2",
            ] {
                b.norm(&format!("{path}.{name}.weight"), HIDDEN);
            }
            for (name, n_out, n_in) in [("gate", 64, HIDDEN), ("up", 64, HIDDEN), ("down", HIDDEN, 64)] {
                b.weight(&format!("{path}.experts.switch_glu.{name}_proj"), &[N_EXPERTS, n_out, n_in]);
            }
        }
        if width > 0 {
            b.weight(&format!("{path}.per_layer_input_gate"), &[width, HIDDEN]);
            b.weight(&format!("{path}.per_layer_projection"), &[HIDDEN, width]);
            b.norm(&format!("{path}.post_per_layer_input_norm.weight"), HIDDEN);
        }
    }
}

#[rstest]
#[case("dense", json!({}))]
#[case("no cap, a head of its own", json!({ "final_logit_softcapping": null, "tie_word_embeddings": false }))]
#[case("values that are keys", json!({ "attention_k_eq_v": true, "num_global_key_value_heads": 1 }))]
#[case("experts", json!({ "enable_moe_block": true, "num_experts": N_EXPERTS, "top_k_experts": 2,
    "moe_intermediate_size": 64, "attention_k_eq_v": true, "num_global_key_value_heads": 2,
    "final_logit_softcapping": 5.0 }))]
#[case("one expert", json!({ "enable_moe_block": true, "num_experts": N_EXPERTS, "top_k_experts": 1,
    "moe_intermediate_size": 64 }))]
#[case("embeddings for each layer, two layers share", json!({ "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB }))]
#[case("narrow layers that share", json!({ "num_kv_shared_layers": 1, "use_double_wide_mlp": false }))]
#[case("types by pattern, other ropes", json!({ "layer_types": null, "sliding_window_pattern": 2,
    "rope_parameters": { "full_attention": { "rope_type": "proportional", "rope_theta": 1e5, "factor": 2.0,
        "partial_rotary_factor": 0.5 }, "sliding_attention": { "rope_type": "linear", "rope_theta": 1e3, "factor": 4.0 } } }))]
fn gemma_variants(#[case] what: &str, #[case] changes: Value) {
    let config = gemma_config(changes);
    let mut b = Builder::new(227, affine(4, 32));
    gemma(&mut b, &config);
    check_within(GEMMA_BOUND, what, &b, &config, 1);
}

/// The wrapper for all kinds of inputs. Its own tensors are ignored.
#[test]
fn gemma_unified() {
    let mut text = gemma_config(json!({ "model_type": "gemma4_unified_text", "vocab_size": null }));
    let mut b = Builder::new(229, affine(4, 32));
    gemma(&mut b, &text);
    b.tensors = b.tensors.into_iter().map(|(name, t)| (format!("language_model.{name}"), t)).collect();
    b.weight("vision_embedder.patch", &[96, 64]);
    let quantization = text.as_object_mut().unwrap().remove("quantization").unwrap();
    let config = json!({ "model_type": "gemma4_unified", "vocab_size": VOCAB, "text_config": text,
        "quantization": quantization });
    check_within(GEMMA_BOUND, "unified", &b, &config, 1);
}
