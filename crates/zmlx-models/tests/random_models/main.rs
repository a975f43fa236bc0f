//! Small random checkpoints of every supported shape and layout, compared with the oracle's model of the same files.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod builder;
mod families;
mod recurrent;
mod windows;

use builder::{Builder, table};
use rstest::rstest;
use serde_json::{Value, json};
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Input, Logits, Model, PoolOptions};
use zmlx_oracle::checkpoint::KvBSplit;
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::quant::{Format, Mode, StorageDtype};

const HIDDEN: usize = 128;
const VOCAB: usize = 200;
/// No model here has more layers.
const MOST_LAYERS: usize = 16;
/// Scores of routers are off by less than this.
const CLEAR_MARGIN: f64 = 2e-4;

/// Compares the logits of all fusions with the oracle's, for a prompt that is long enough for every path of the
/// kernels.
fn check(what: &str, b: &Builder, config: &Value, n_shards: usize) {
    // Activations have 16 bits, those of attention 15, and there are three layers. With latents 2.7e-4 was measured.
    check_within(5e-4, what, b, config, n_shards);
}

/// As [`check`], with another bound of the logits' difference.
fn check_within(bound: f64, what: &str, b: &Builder, config: &Value, n_shards: usize) {
    let dir = tempfile::tempdir().unwrap();
    b.write(dir.path(), config, n_shards);
    let tokens: Vec<u32> = (0..40u32).map(|i| (i * i * 7 + i * 13 + 5) % VOCAB as u32).collect();
    let oracle = zmlx_oracle::checkpoint::Checkpoint::open(dir.path()).unwrap();
    let oracle = zmlx_oracle::model::Model::from_checkpoint(&oracle, KvBSplit::Requantized).unwrap();
    let trace = oracle.forward(&tokens).unwrap();
    // Where two experts are almost equal, either choice is right, and the logits of that token say nothing. Of equal ones the
    // first is chosen everywhere.
    let is_clear = |token: &usize| {
        let mut routings = (0..MOST_LAYERS).filter_map(|layer| trace.routing(layer));
        routings.all(|r| r.margins[*token] == 0.0 || r.margins[*token] >= CLEAR_MARGIN)
    };
    let clear: Vec<usize> = (0..tokens.len()).filter(is_clear).collect();
    assert!(4 * clear.len() >= 3 * tokens.len(), "{what}: only {} tokens have clear choices", clear.len());
    let of_clear = |logits: &[f32]| -> Vec<f32> {
        clear.iter().flat_map(|t| logits[t * VOCAB..(t + 1) * VOCAB].iter().copied()).collect()
    };
    let want = of_clear(&trace.logits.data);

    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let model = Model::load(CpuBackend::new(Some(2)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap();
    for fusion in [Fusion::STOCK, Fusion::CONCAT, Fusion::FUSED] {
        let mut pool = model.pool(PoolOptions::default()).unwrap();
        let slot = pool.allocate().unwrap();
        let mut got = Vec::new();
        // A prompt, then single tokens.
        for tokens in std::iter::once(&tokens[..33]).chain(tokens[33..].chunks(1)) {
            let input = Input { slot, tokens, logits: Logits::All };
            let y = model.forward(&mut pool, &[input], &fusion).unwrap();
            let mut rows = Vec::new();
            model.backend().read(&y, &mut rows).unwrap();
            got.extend(rows);
        }
        let error = rel_rms(&of_clear(&got), &want);
        assert!(error <= bound, "{what}, {fusion}: relative RMS {error}");
    }
}

fn qwen_config(format: Option<Format>, changes: Value) -> Value {
    let mut config = json!({
        "model_type": "qwen3_moe", "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256, "moe_intermediate_size": 128,
        "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "tie_word_embeddings": false, "hidden_act": "silu", "eos_token_id": 0,
    });
    if let Some(format) = format {
        config["quantization"] = table(format);
    }
    merge(&mut config, changes);
    config
}

fn merge(config: &mut Value, changes: Value) {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
}

/// Tensors for a Qwen config, which determines the layers that have experts.
fn qwen(b: &mut Builder, config: &Value) {
    b.weight("model.embed_tokens", &[VOCAB, HIDDEN]);
    if config["tie_word_embeddings"] == false {
        b.weight("lm_head", &[VOCAB, HIDDEN]);
    }
    b.norm("model.norm.weight", HIDDEN);
    for i in 0..3usize {
        let path = format!("model.layers.{i}");
        b.norm(&format!("{path}.input_layernorm.weight"), HIDDEN);
        b.norm(&format!("{path}.post_attention_layernorm.weight"), HIDDEN);
        for (name, n_out, n_in) in
            [("q", 128, HIDDEN), ("k", 64, HIDDEN), ("v", 64, HIDDEN), ("o", HIDDEN, 128)]
        {
            b.weight(&format!("{path}.self_attn.{name}_proj"), &[n_out, n_in]);
        }
        b.norm(&format!("{path}.self_attn.q_norm.weight"), 32);
        b.norm(&format!("{path}.self_attn.k_norm.weight"), 32);
        let dense = config["mlp_only_layers"].as_array().unwrap().contains(&json!(i));
        let sparse_step = config["decoder_sparse_step"].as_u64().unwrap() as usize;
        if dense || !(i + 1).is_multiple_of(sparse_step) {
            b.mlp(&format!("{path}.mlp"), 256, HIDDEN);
        } else {
            b.weight(&format!("{path}.mlp.gate"), &[8, HIDDEN]);
            b.experts(&format!("{path}.mlp"), 8, 128, HIDDEN);
        }
    }
}

fn affine(bits: usize, group_size: usize) -> Option<Format> {
    Some(Format { mode: Mode::Affine, bits, group_size })
}

fn of_mode(mode: Mode) -> Option<Format> {
    Some(Format::of_mode(mode))
}

#[rstest]
#[case(affine(4, 64), StorageDtype::BF16)]
#[case(affine(2, 32), StorageDtype::F32)]
#[case(affine(3, 128), StorageDtype::F16)]
#[case(affine(4, 32), StorageDtype::F16)]
#[case(affine(5, 64), StorageDtype::BF16)]
#[case(affine(6, 32), StorageDtype::F32)]
#[case(affine(8, 128), StorageDtype::BF16)]
#[case(of_mode(Mode::Mxfp4), StorageDtype::BF16)]
#[case(of_mode(Mode::Mxfp8), StorageDtype::BF16)]
#[case(of_mode(Mode::Nvfp4), StorageDtype::BF16)]
#[case(None, StorageDtype::BF16)]
fn qwen_in_every_format(#[case] format: Option<Format>, #[case] scale_dtype: StorageDtype) {
    let config = qwen_config(format, json!({}));
    let mut b = Builder::new(11, format);
    b.scale_dtype = scale_dtype;
    qwen(&mut b, &config);
    check(&format!("{format:?} with {scale_dtype:?} scales"), &b, &config, 1);
}

#[rstest]
#[case("dense layers by list", json!({ "mlp_only_layers": [0, 2] }))]
#[case("dense layers by step", json!({ "decoder_sparse_step": 2 }))]
#[case("tied embeddings", json!({ "tie_word_embeddings": true }))]
#[case("weights as they are", json!({ "norm_topk_prob": false }))]
#[case("one expert", json!({ "num_experts_per_tok": 1 }))]
fn qwen_variants(#[case] what: &str, #[case] changes: Value) {
    let config = qwen_config(affine(4, 64), changes);
    let mut b = Builder::new(23, affine(4, 64));
    qwen(&mut b, &config);
    check(what, &b, &config, 1);
}

#[test]
fn qwen_with_exceptions_per_path_in_several_shards() {
    let global = affine(4, 64);
    let mut config = qwen_config(global, json!({}));
    let mut b = Builder::new(31, global);
    qwen(&mut b, &config);
    for i in 0..3 {
        let gate = format!("model.layers.{i}.mlp.gate");
        b.weight_in(&gate, &[8, HIDDEN], affine(8, 64));
        config["quantization"][gate] = json!({ "group_size": 64, "bits": 8 });
    }
    let down = "model.layers.1.mlp.switch_mlp.down_proj";
    b.weight_in(down, &[8, HIDDEN, 128], affine(6, 32));
    config["quantization"][down] = json!({ "group_size": 32, "bits": 6, "mode": "affine" });
    // Gate and up have different formats, and the products of attention have different row sizes.
    let up = "model.layers.2.mlp.switch_mlp.up_proj";
    b.weight_in(up, &[8, 128, HIDDEN], affine(8, 32));
    config["quantization"][up] = json!({ "group_size": 32, "bits": 8 });
    for path in ["model.layers.0.self_attn.v_proj", "lm_head"] {
        let shape = b.tensors[&format!("{path}.weight")].1[0];
        for part in ["scales", "biases"] {
            b.tensors.remove(&format!("{path}.{part}"));
        }
        b.weight_in(path, &[shape, HIDDEN], None);
        config["quantization"][path] = json!(false);
    }
    check("exceptions", &b, &config, 3);
}

/// The names of an expert's projections in most files.
const LONG: [&str; 3] = ["gate_proj", "down_proj", "up_proj"];

#[rstest]
fn qwen_with_experts_one_by_one(#[values(LONG, ["w1", "w2", "w3"])] names: [&str; 3]) {
    let config = qwen_config(affine(4, 64), json!({}));
    let mut b = Builder::new(41, affine(4, 64));
    qwen(&mut b, &config);
    b.unstack_experts(names);
    check("experts one by one", &b, &config, 2);
}

#[rstest]
fn qwen_with_gate_and_up_in_one(
    #[values("mlp.experts", "mlp.switch_mlp", "mlp.experts.switch_glu")] module: &str,
    #[values("", ".weight")] suffix: &str,
    #[values(None, affine(4, 64), of_mode(Mode::Mxfp4))] format: Option<Format>,
) {
    let config = qwen_config(format, json!({}));
    let mut b = Builder::new(43, format);
    qwen(&mut b, &config);
    b.join_gate_up(module, suffix);
    check(&format!("{module}.gate_up_proj{suffix}"), &b, &config, 1);
}

/// A text model among others. Its config and names are wrapped, and everything else in the file is ignored.
#[rstest]
fn qwen_within_a_model_of_several_kinds_of_input(
    #[values("language_model.model.", "model.language_model.")] root: &str,
) {
    let text = qwen_config(affine(4, 64), json!({ "model_type": "qwen3_moe_text" }));
    let mut b = Builder::new(47, affine(4, 64));
    qwen(&mut b, &text);
    let names: Vec<String> = b.tensors.keys().cloned().collect();
    for name in names {
        let tensor = b.tensors.remove(&name).unwrap();
        let renamed = match name.strip_prefix("model.") {
            Some(rest) => format!("{root}{rest}"),
            // The head.
            None if root.starts_with("language_model.") => format!("language_model.{name}"),
            None => name,
        };
        b.tensors.insert(renamed, tensor);
    }
    // One module has a format of its own, under its full name.
    let path = &format!("{root}layers.1.self_attn.q_proj");
    b.weight_in(path, &[128, HIDDEN], affine(8, 32));
    b.weight("model.visual.blocks.0.attn.qkv", &[96, 64]);
    let quantization = json!({ "group_size": 64, "bits": 4, path: { "group_size": 32, "bits": 8 } });
    let config = json!({ "model_type": "qwen3_moe", "text_config": text, "quantization": quantization });
    check("wrapped", &b, &config, 2);
}

fn dense_qwen_config(scaling: Value) -> Value {
    let mut config = qwen_config(affine(4, 64), json!({ "model_type": "qwen3", "rope_scaling": scaling }));
    config["mlp_only_layers"] = json!([0, 1, 2]); // what the builder goes by
    config
}

#[rstest]
#[case(json!({ "type": "linear", "factor": 3.0 }))]
#[case(json!({ "type": "dynamic", "factor": 3.0 }))]
#[case(json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 }))]
#[case(json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 8,
    "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 0.3 }))]
#[case(json!({ "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32 }))]
#[case(json!({ "rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0],
    "long_factor": [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5] }))]
fn dense_qwen_with_scaled_rope(#[case] scaling: Value) {
    let config = dense_qwen_config(scaling.clone());
    let mut b = Builder::new(49, affine(4, 64));
    qwen(&mut b, &config);
    check(&scaling.to_string(), &b, &config, 1);
}

fn glm_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "glm4_moe_lite", "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 128, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 64, "intermediate_size": 256, "moe_intermediate_size": 64,
        "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": true, "routed_scaling_factor": 1.8, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": VOCAB, "max_position_embeddings": 512,
        "tie_word_embeddings": false, "hidden_act": "silu", "topk_method": "noaux_tc", "eos_token_id": [0, 2],
        "attention_bias": false, "rope_scaling": null, "num_nextn_predict_layers": 0,
        "quantization": table(Format { mode: Mode::Affine, bits: 4, group_size: 64 }),
    });
    merge(&mut config, changes);
    config
}

fn glm_attention(b: &mut Builder, path: &str, config: &Value, old_layout: bool) {
    if config["q_lora_rank"].is_null() {
        b.weight(&format!("{path}.q_proj"), &[4 * 96, HIDDEN]);
    } else {
        b.weight(&format!("{path}.q_a_proj"), &[64, HIDDEN]);
        b.norm(&format!("{path}.q_a_layernorm.weight"), 64);
        b.weight(&format!("{path}.q_b_proj"), &[4 * 96, 64]);
    }
    b.weight(&format!("{path}.kv_a_proj_with_mqa"), &[128 + 32, HIDDEN]);
    b.norm(&format!("{path}.kv_a_layernorm.weight"), 128);
    if old_layout {
        b.weight(&format!("{path}.kv_b_proj"), &[4 * (64 + 64), 128]);
    } else {
        b.weight(&format!("{path}.embed_q"), &[4, 128, 64]);
        b.weight(&format!("{path}.unembed_out"), &[4, 64, 128]);
    }
    b.weight(&format!("{path}.o_proj"), &[HIDDEN, 4 * 64]);
}

fn glm(b: &mut Builder, config: &Value, old_layout: bool) {
    // 0 if the config has null.
    let number = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    b.weight("model.embed_tokens", &[VOCAB, HIDDEN]);
    b.weight("lm_head", &[VOCAB, HIDDEN]);
    b.norm("model.norm.weight", HIDDEN);
    for i in 0..3usize {
        let path = format!("model.layers.{i}");
        b.norm(&format!("{path}.input_layernorm.weight"), HIDDEN);
        b.norm(&format!("{path}.post_attention_layernorm.weight"), HIDDEN);
        glm_attention(b, &format!("{path}.self_attn"), config, old_layout);
        if i < number("first_k_dense_replace") || !i.is_multiple_of(number("moe_layer_freq")) {
            b.mlp(&format!("{path}.mlp"), 256, HIDDEN);
            continue;
        }
        b.weight_in(&format!("{path}.mlp.gate"), &[8, HIDDEN], None);
        b.floats(&format!("{path}.mlp.gate.e_score_correction_bias"), 8, 0.2);
        b.experts(&format!("{path}.mlp"), 8, 64, HIDDEN);
        if number("n_shared_experts") > 0 {
            b.mlp(&format!("{path}.mlp.shared_experts"), 64 * number("n_shared_experts"), HIDDEN);
        }
    }
}

#[rstest]
#[case("plain", json!({}))]
#[case("queries in one matrix", json!({ "q_lora_rank": null }))]
#[case("groups", json!({ "n_group": 4, "topk_group": 2 }))]
#[case("two shared experts", json!({ "n_shared_experts": 2 }))]
#[case("no dense layer", json!({ "first_k_dense_replace": 0 }))]
#[case("every other layer", json!({ "moe_layer_freq": 2 }))]
#[case("scores as they are", json!({ "norm_topk_prob": false }))]
fn glm_variants(#[case] what: &str, #[case] changes: Value) {
    let config = glm_config(changes);
    let mut b = Builder::new(53, affine(4, 64));
    glm(&mut b, &config, false);
    check(what, &b, &config, 1);
}

#[test]
fn glm_with_kv_b_proj() {
    let config = glm_config(json!({}));
    let mut b = Builder::new(61, affine(4, 64));
    glm(&mut b, &config, true);
    check("kv_b_proj", &b, &config, 1);
}

#[test]
fn glm_with_a_layer_for_multi_token_prediction() {
    let config = glm_config(json!({ "num_nextn_predict_layers": 1 }));
    let mut b = Builder::new(71, affine(4, 64));
    glm(&mut b, &config, false);
    glm_attention(&mut b, "model.layers.3.self_attn", &config, false);
    b.weight("model.layers.3.eh_proj", &[HIDDEN, 2 * HIDDEN]);
    b.norm("model.layers.3.enorm.weight", HIDDEN);
    check("a layer beyond the last", &b, &config, 2);
}

fn big_glm_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "glm4_moe", "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "partial_rotary_factor": 0.5, "use_qk_norm": true,
        "attention_bias": true, "intermediate_size": 256, "moe_intermediate_size": 64, "n_routed_experts": 8,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
        "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "rope_scaling": null, "vocab_size": VOCAB, "max_position_embeddings": 512, "tie_word_embeddings": false,
        "hidden_act": "silu", "eos_token_id": [0, 2], "num_nextn_predict_layers": 1,
        "quantization": table(Format { mode: Mode::Affine, bits: 4, group_size: 64 }),
    });
    merge(&mut config, changes);
    config
}

/// Tensors of `glm4_moe`, including a layer for multi-token prediction. `bias_spread` is the spread of the router's
/// correction bias.
fn big_glm(b: &mut Builder, config: &Value, bias_spread: f64) {
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let is_on = |key: &str| config[key] == true;
    b.weight("model.embed_tokens", &[VOCAB, HIDDEN]);
    b.weight("lm_head", &[VOCAB, HIDDEN]);
    b.norm("model.norm.weight", HIDDEN);
    for i in 0..3usize {
        let path = format!("model.layers.{i}");
        b.norm(&format!("{path}.input_layernorm.weight"), HIDDEN);
        b.norm(&format!("{path}.post_attention_layernorm.weight"), HIDDEN);
        for (name, n_out, n_in) in
            [("q", 128, HIDDEN), ("k", 64, HIDDEN), ("v", 64, HIDDEN), ("o", HIDDEN, 128)]
        {
            let path = format!("{path}.self_attn.{name}_proj");
            b.weight(&path, &[n_out, n_in]);
            if name != "o" && is_on("attention_bias") {
                b.floats(&format!("{path}.bias"), n_out, 0.5);
            }
        }
        if is_on("use_qk_norm") {
            b.norm(&format!("{path}.self_attn.q_norm.weight"), 32);
            b.norm(&format!("{path}.self_attn.k_norm.weight"), 32);
        }
        if i < number("first_k_dense_replace") {
            b.mlp(&format!("{path}.mlp"), 256, HIDDEN);
            continue;
        }
        b.weight_in(&format!("{path}.mlp.gate"), &[8, HIDDEN], None);
        b.floats(&format!("{path}.mlp.gate.e_score_correction_bias"), 8, bias_spread);
        b.experts(&format!("{path}.mlp"), 8, 64, HIDDEN);
        if number("n_shared_experts") > 0 {
            b.mlp(&format!("{path}.mlp.shared_experts"), 64 * number("n_shared_experts"), HIDDEN);
        }
    }
    b.weight("model.layers.3.eh_proj", &[HIDDEN, 2 * HIDDEN]);
    b.norm("model.layers.3.enorm.weight", HIDDEN);
}

#[rstest]
#[case("plain", json!({}))]
#[case("as GLM-4.5-Air", json!({ "use_qk_norm": false }))]
#[case("no biases", json!({ "attention_bias": false }))]
#[case("groups", json!({ "n_group": 4, "topk_group": 2 }))]
#[case("one group of two, both experts chosen", json!({ "n_group": 4, "topk_group": 1 }))]
#[case("two shared experts", json!({ "n_shared_experts": 2 }))]
#[case("no shared experts", json!({ "n_shared_experts": 0 }))]
#[case("scores as they are", json!({ "norm_topk_prob": false }))]
#[case("rope on whole heads", json!({ "partial_rotary_factor": 1.0 }))]
#[case("rope as transformers 5 writes it", json!({ "rope_theta": null, "partial_rotary_factor": null,
    "rope_parameters": { "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25 } }))]
#[case("a scaling that the reference does not read", json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } }))]
fn big_glm_variants(#[case] what: &str, #[case] changes: Value) {
    let config = big_glm_config(changes);
    let mut b = Builder::new(83, affine(4, 64));
    big_glm(&mut b, &config, 0.2);
    check(what, &b, &config, 2);
}

/// The biases are so negative that experts of dropped groups, whose scores are 0, are chosen.
#[test]
fn big_glm_chooses_experts_of_other_groups() {
    let config = big_glm_config(json!({ "n_group": 4, "topk_group": 2 }));
    let mut b = Builder::new(89, affine(4, 64));
    big_glm(&mut b, &config, 0.2);
    for layer_idx in [1, 2] {
        let name = format!("model.layers.{layer_idx}.mlp.gate.e_score_correction_bias");
        let (_, _, bytes) = b.tensors.get_mut(&name).unwrap();
        *bytes = (0..8).flat_map(|e| (-1.5f32 - 0.1 * e as f32).to_le_bytes()).collect();
    }
    check("all scores below 0", &b, &config, 1);
}

#[test]
fn big_glm_with_experts_one_by_one() {
    let config = big_glm_config(json!({}));
    let mut b = Builder::new(97, affine(4, 64));
    big_glm(&mut b, &config, 0.2);
    b.unstack_experts(LONG);
    check("experts one by one", &b, &config, 2);
}
