//! Families that differ from others in names and options. The checkpoints have odd sizes.

use rstest::rstest;
use serde_json::{Value, json};
use zmlx_oracle::quant::{Format, Mode};

use crate::builder::{Builder, table};
use crate::{LONG, VOCAB, affine, check, glm, glm_config, merge};

const HIDDEN: usize = 96;
const N_LAYERS: usize = 2;
/// Query heads, key and value heads, width of a head.
const HEADS: [usize; 3] = [3, 1, 32];
const N_EXPERTS: usize = 5;
/// Width of an expert.
const INTER: usize = 160;

fn config(model_type: &str, changes: Value) -> Value {
    let [n_heads, n_kv_heads, _] = HEADS;
    let mut config = json!({
        "model_type": model_type, "hidden_size": HIDDEN, "num_hidden_layers": N_LAYERS,
        "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads, "intermediate_size": INTER,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "hidden_act": "silu", "eos_token_id": 0,
        "quantization": { "group_size": 32, "bits": 4 },
    });
    merge(&mut config, changes);
    config
}

/// The names in a family's layers.
#[derive(Clone, Copy)]
struct Names {
    /// The mixture of experts, relative to the layer.
    moe: &'static str,
    /// How queries and keys are normed.
    norms: Norms,
}

#[derive(Clone, Copy, PartialEq)]
enum Norms {
    None,
    Each,
    All,
}

fn build(b: &mut Builder, config: &Value, names: Names) {
    let is_on = |key: &str| config[key] == true;
    let [n_heads, n_kv_heads, head_dim] = HEADS;
    b.weight("model.embed_tokens", &[VOCAB, HIDDEN]);
    if !is_on("tie_word_embeddings") {
        b.weight("lm_head", &[VOCAB, HIDDEN]);
    }
    b.norm("model.norm.weight", HIDDEN);
    for i in 0..N_LAYERS {
        let path = format!("model.layers.{i}");
        b.norm(&format!("{path}.input_layernorm.weight"), HIDDEN);
        b.norm(&format!("{path}.post_attention_layernorm.weight"), HIDDEN);
        let (q_width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
        for (name, n_out, n_in) in
            [("q", q_width, HIDDEN), ("k", kv_width, HIDDEN), ("v", kv_width, HIDDEN), ("o", HIDDEN, q_width)]
        {
            let path = format!("{path}.self_attn.{name}_proj");
            b.weight(&path, &[n_out, n_in]);
            if is_on("attention_bias") || (is_on("qkv_bias") && name != "o") {
                b.floats(&format!("{path}.bias"), n_out, 0.5);
            }
        }
        for (name, n_heads) in [("q_norm", n_heads), ("k_norm", n_kv_heads)] {
            let name = format!("{path}.self_attn.{name}.weight");
            match names.norms {
                Norms::None => {}
                Norms::Each => b.norm(&name, head_dim),
                Norms::All => b.norm(&name, n_heads * head_dim),
            }
        }
        let moe = format!("{path}.{}", names.moe);
        let dense = config["mlp_only_layers"].as_array().is_some_and(|list| list.contains(&json!(i)));
        if dense {
            b.mlp(&moe, INTER, HIDDEN);
            continue;
        }
        b.weight_in(&format!("{moe}.gate"), &[N_EXPERTS, HIDDEN], affine(8, 32));
        b.experts(&moe, N_EXPERTS, INTER, HIDDEN);
    }
}

/// Adds the routers to the table of formats.
fn with_routers(mut config: Value, moe: &str, root: &str) -> Value {
    for i in 0..N_LAYERS {
        let path = format!("{root}model.layers.{i}.{moe}.gate");
        config["quantization"][path] = json!({ "group_size": 32, "bits": 8 });
    }
    config
}

#[rstest]
#[case("plain", json!({}))]
#[case("one expert", json!({ "num_experts_per_tok": 1 }))]
#[case("tied, other pairs, all experts", json!({ "tie_word_embeddings": true, "rope_traditional": true,
    "num_experts_per_tok": 5, "head_dim": null, "sliding_window": null }))]
fn mixtral(#[case] what: &str, #[case] changes: Value, #[values(LONG, ["w1", "w2", "w3"])] names: [&str; 3]) {
    let moe = "block_sparse_moe";
    let config = config("mixtral", json!({ "num_local_experts": N_EXPERTS, "tie_word_embeddings": false }));
    let mut config = with_routers(config, moe, "");
    merge(&mut config, changes);
    let mut b = Builder::new(101, affine(4, 32));
    build(&mut b, &config, Names { moe, norms: Norms::None });
    if names != LONG {
        b.unstack_experts(names);
    }
    check(what, &b, &config, 1);
}

#[rstest]
#[case("plain", json!({}))]
#[case("biases, weights divided by their sum", json!({ "attention_bias": true, "norm_topk_prob": true }))]
#[case("tied", json!({ "tie_word_embeddings": true }))]
#[case("tied, though it does not say so", json!({ "tie_word_embeddings": null }))]
fn olmoe(#[case] what: &str, #[case] changes: Value) {
    let config = config("olmoe", json!({ "num_experts": N_EXPERTS, "tie_word_embeddings": false }));
    let mut config = with_routers(config, "mlp", "");
    merge(&mut config, changes);
    let mut b = Builder::new(103, affine(4, 32));
    build(&mut b, &config, Names { moe: "mlp", norms: Norms::All });
    if config["tie_word_embeddings"].is_null() {
        for part in ["weight", "scales", "biases"] {
            b.tensors.remove(&format!("lm_head.{part}"));
        }
    }
    check(what, &b, &config, 2);
}

/// The text model of a model that sees images, with and without the wrapper's prefix of its names.
#[rstest]
fn qwen3_vl_moe(#[values("language_model.", "")] root: &str) {
    let text = config(
        "qwen3_vl_moe_text",
        json!({ "num_experts": N_EXPERTS, "moe_intermediate_size": INTER, "head_dim": 32, "norm_topk_prob": true,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": false,
            "rope_scaling": { "mrope_interleaved": true, "mrope_section": [6, 5, 5], "rope_type": "default" } }),
    );
    let mut b = Builder::new(107, affine(4, 32));
    build(&mut b, &text, Names { moe: "mlp", norms: Norms::Each });
    b.tensors = b.tensors.into_iter().map(|(name, tensor)| (format!("{root}{name}"), tensor)).collect();
    b.weight("vision_tower.blocks.0.attn.qkv", &[96, 64]);
    b.weight("model.visual.merger", &[96, 64]);
    let whole = json!({ "model_type": "qwen3_vl_moe", "text_config": text,
        "quantization": { "group_size": 32, "bits": 4 } });
    // The paths in the table have the prefix even if the names of the tensors lack it.
    let config = with_routers(whole, "mlp", "language_model.");
    check(&format!("root {root:?}"), &b, &config, 1);
}

#[rstest]
#[case("plain", json!({}))]
#[case("no norms", json!({ "use_qk_norm": false }))]
#[case("rope on whole heads, tied", json!({ "rotary_dim": 32, "tie_word_embeddings": true }))]
fn minimax(#[case] what: &str, #[case] changes: Value) {
    let moe = "block_sparse_moe";
    let config = config(
        "minimax_m2",
        json!({ "num_local_experts": N_EXPERTS, "rotary_dim": 12, "head_dim": 32, "scoring_func": "sigmoid",
            "tie_word_embeddings": false, "use_qk_norm": true }),
    );
    let mut config = with_routers(config, moe, "");
    merge(&mut config, changes);
    let norms = if config["use_qk_norm"] == true { Norms::All } else { Norms::None };
    let mut b = Builder::new(109, affine(4, 32));
    build(&mut b, &config, Names { moe, norms });
    for i in 0..N_LAYERS {
        b.floats(&format!("model.layers.{i}.{moe}.e_score_correction_bias"), N_EXPERTS, 0.2);
    }
    b.unstack_experts(["w1", "w2", "w3"]);
    check(what, &b, &config, 1);
}

#[rstest]
#[case("deepseek_v3", json!({}))]
#[case("kimi_k2", json!({ "attention_bias": true, "n_shared_experts": null }))]
#[case("joyai_llm_flash", json!({ "q_lora_rank": null, "attention_bias": true, "rms_norm_eps": 1e-4 }))]
#[case("deepseek_v3", json!({ "n_group": 4, "topk_group": 2, "n_shared_experts": 2, "rope_scaling": {
    "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.7, "mscale_all_dim": 1.0 } }))]
#[case("deepseek_v3", json!({ "n_routed_experts": null, "num_experts_per_tok": null, "first_k_dense_replace": 3 }))]
fn deepseek(#[case] model_type: &str, #[case] changes: Value, #[values(false, true)] has_kv_b_proj: bool) {
    let mut config = glm_config(json!({ "model_type": model_type, "rope_theta": 1e4,
        "quantization": table(Format { mode: Mode::Affine, bits: 4, group_size: 32 }) }));
    merge(&mut config, changes);
    let mut b = Builder::new(113, affine(4, 32));
    glm(&mut b, &config, has_kv_b_proj);
    if config["attention_bias"] == true {
        for i in 0..3 {
            let path = format!("model.layers.{i}.self_attn");
            if !config["q_lora_rank"].is_null() {
                b.floats(&format!("{path}.q_a_proj.bias"), 64, 0.5);
            }
            b.floats(&format!("{path}.kv_a_proj_with_mqa.bias"), 128 + 32, 0.5);
            b.floats(&format!("{path}.o_proj.bias"), crate::HIDDEN, 0.5);
        }
    }
    check(&format!("{model_type} {config}"), &b, &config, 1);
}

#[rstest]
#[case("plain", json!({}))]
#[case("weights as they are, whatever it says", json!({ "norm_topk_prob": true }))]
#[case("a dense layer, tied", json!({ "mlp_only_layers": [0], "tie_word_embeddings": true }))]
fn qwen2_moe(#[case] what: &str, #[case] changes: Value) {
    let shared = 64;
    let config = config(
        "qwen2_moe",
        // The second key is for the builder: attention of this family always has these biases.
        json!({ "num_experts": N_EXPERTS, "qkv_bias": true, "moe_intermediate_size": INTER,
            "shared_expert_intermediate_size": shared, "tie_word_embeddings": false, "norm_topk_prob": false }),
    );
    let mut config = with_routers(config, "mlp", "");
    merge(&mut config, changes);
    let mut b = Builder::new(127, affine(4, 32));
    build(&mut b, &config, Names { moe: "mlp", norms: Norms::None });
    let first = config["mlp_only_layers"].as_array().map_or(0, Vec::len);
    for i in first..N_LAYERS {
        let path = format!("model.layers.{i}.mlp");
        b.mlp(&format!("{path}.shared_expert"), shared, HIDDEN);
        b.weight_in(&format!("{path}.shared_expert_gate"), &[1, HIDDEN], affine(8, 32));
        config["quantization"][format!("{path}.shared_expert_gate")] = json!({ "group_size": 32, "bits": 8 });
    }
    check(what, &b, &config, 1);
}
