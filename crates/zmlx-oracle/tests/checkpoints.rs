//! Checkpoint layouts: each variant of a tiny model's file must give the results of the original, or a typed error.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

#[path = "common/fixtures.rs"]
mod common;

use common::rewrite::Rewrite;
use common::{MODELS, model_dir};
use rstest::rstest;
use serde_json::json;
use zmlx_oracle::Error;
use zmlx_oracle::checkpoint::{Checkpoint, KvBSplit};
use zmlx_oracle::compare::{max_abs, rel_rms};
use zmlx_oracle::model::Model;
use zmlx_oracle::ops::{add, matmul, rms_norm, swiglu};
use zmlx_oracle::plan::MlaProjections;
use zmlx_oracle::quant::{Format, StorageDtype, quantize};
use zmlx_oracle::testing::random_in;

const QWEN: &str = MODELS[0];
const GLM: &str = MODELS[1];
const TOKENS: [u32; 9] = [40, 300, 2999, 7, 7, 1200, 0, 555, 31];

fn original(name: &str) -> Vec<f32> {
    Model::load(model_dir(name)).unwrap().logits(&TOKENS).unwrap().data
}

fn logits(file: &Rewrite) -> Vec<f32> {
    file.model().unwrap().logits(&TOKENS).unwrap().data
}

fn values(checkpoint: &Checkpoint, path: &str, shape: &[usize]) -> Vec<f32> {
    checkpoint.weight(path, shape).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[rstest]
fn several_shards_equal_one(#[values(QWEN, GLM)] name: &str) {
    let file = Rewrite::of(name);
    let model = Model::from_bytes(&file.config.to_string(), &[&file.shard(0, 2), &file.shard(1, 2)]).unwrap();
    assert_eq!(model.logits(&TOKENS).unwrap().data, original(name));
}

#[rstest]
fn experts_one_by_one_equal_stacked(#[values(QWEN, GLM)] name: &str) {
    let mut file = Rewrite::of(name);
    let stacked: Vec<String> =
        file.tensors.keys().filter(|name| name.contains(".switch_mlp.")).cloned().collect();
    for name in stacked {
        let (dtype, shape, bytes) = file.tensors.remove(&name).unwrap();
        for (expert, bytes) in bytes.chunks(bytes.len() / shape[0]).enumerate() {
            let name = name.replace(".switch_mlp.", &format!(".experts.{expert}."));
            file.tensors.insert(name, (dtype, shape[1..].to_vec(), bytes.to_vec()));
        }
    }
    assert_eq!(logits(&file), original(name));
}

#[rstest]
fn formats_are_inferred_where_the_configuration_is_silent(#[values(QWEN, GLM)] name: &str) {
    let mut file = Rewrite::of(name);
    for key in ["quantization", "quantization_config"] {
        file.config.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(logits(&file), original(name));
    file.config["quantization_config"] = json!({"quant_method": "other"});
    assert_eq!(logits(&file), original(name));
    // `false` in the configuration does not change what the file holds.
    file.config["quantization"] = json!({"bits": 4, "group_size": 64, "lm_head": false, "model.layers.0.mlp.gate": false,
               "model.layers.1.mlp.gate": {"bits": 8}, "model.layers.2.mlp.gate": {"group_size": 64, "bits": 8}});
    assert_eq!(logits(&file), original(name));
}

#[test]
fn a_format_that_does_not_fit_is_an_error() {
    let mut file = Rewrite::of(QWEN);
    for path in ["lm_head", "model.layers.0.mlp.switch_mlp.up_proj"] {
        file.config["quantization"] = json!({"bits": 4, "group_size": 64, path: {"bits": 8}});
        assert!(matches!(file.model(), Err(Error::Shape { .. })));
        file.config["quantization"] = json!({"bits": 4, "group_size": 64, path: {"bits": 7}});
        assert!(matches!(file.model(), Err(Error::Unsupported { .. })));
    }
    // The format of a tensor that no entry names follows from the tensor.
    file.config["quantization"] = json!({"bits": 8, "group_size": 32});
    assert_eq!(logits(&file), original(QWEN));
}

#[rstest]
fn other_formats_load(
    #[values("mxfp4", "mxfp8", "nvfp4")] mode: &str,
    #[values(true, false)] declared: bool,
) {
    let mut file = Rewrite::of(GLM);
    let format = Format::of_mode(zmlx_oracle::quant::Mode::from_name(mode).unwrap());
    let (path, shape) = ("model.layers.1.mlp.shared_experts.up_proj", [192, 256]);
    let before = values(&file.checkpoint().unwrap(), path, &shape);
    let matrix = quantize(&before, 256, format, StorageDtype::F32).unwrap();
    file.set_quantized(path, &shape, &matrix);
    if declared {
        file.config["quantization"][path] = json!({"mode": mode});
    }
    let after = values(&file.checkpoint().unwrap(), path, &shape);
    assert_eq!(after, matrix.dequantize());
    // 4-bit floats are good to about 10 %, 8-bit ones to 3 %.
    let error = rel_rms(&after, &before);
    assert!(error > 0.001 && error < 0.2, "{error}");
    assert!(logits(&file).iter().all(|x| x.is_finite()));
}

/// nvfp4's second scale: one for each expert, or one for a single matrix.
#[test]
fn second_scales_multiply_each_matrix() {
    let mut file = Rewrite::of(GLM);
    let nvfp4 = Format::of_mode(zmlx_oracle::quant::Mode::Nvfp4);
    let (path, shape) = ("model.layers.1.mlp.shared_experts.up_proj", [192, 256]);
    let before = values(&file.checkpoint().unwrap(), path, &shape);
    file.set_quantized(path, &shape, &quantize(&before, 256, nvfp4, StorageDtype::F32).unwrap());
    let plain = values(&file.checkpoint().unwrap(), path, &shape);
    for scales in [vec![1344.0], vec![672.0, 5376.0]] {
        file.set_floats(&format!("{path}.global_scale"), &[scales.len()], &scales);
        let got = values(&file.checkpoint().unwrap(), path, &shape);
        let len = got.len() / scales.len();
        for (i, (got, plain)) in got.iter().zip(&plain).enumerate() {
            assert_eq!(*got, plain * scales[i / len] / 2688.0);
        }
    }
    file.set_floats(&format!("{path}.global_scale"), &[5], &[1.0; 5]);
    assert!(file.checkpoint().unwrap().weight(path, &shape).is_err());
}

#[test]
fn a_complete_index_says_which_files_are_read() {
    let file = Rewrite::of(QWEN);
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("config.json", file.config.to_string().as_bytes());
    write("a.safetensors", &file.shard(0, 2));
    write("b.safetensors", &file.shard(1, 2));
    // A leftover file whose name would take precedence.
    let mut old = Rewrite::of(QWEN);
    old.set_floats("model.norm.weight", &[512], &[0.0; 512]);
    write("model.safetensors", &old.shard(0, 1));
    let map: serde_json::Map<_, _> = (file.tensors.keys().enumerate())
        .map(|(i, name)| (name.clone(), json!(["a.safetensors", "b.safetensors"][i % 2])))
        .collect();
    write("model.safetensors.index.json", json!({"weight_map": map}).to_string().as_bytes());
    let got = Model::load(dir.path()).unwrap().logits(&TOKENS).unwrap().data;
    assert_eq!(got, original(QWEN));
}

#[test]
fn layers_past_the_last_are_ignored() {
    let mut file = Rewrite::of(GLM);
    file.set_floats("model.layers.4.eh_proj.weight", &[1], &[f32::NAN]);
    assert!(!file.checkpoint().unwrap().contains("model.layers.4.eh_proj.weight"));
    assert_eq!(logits(&file), original(GLM));
    // Only the configuration cuts the model down.
    file.config["num_hidden_layers"] = json!(2);
    let cut = file.model().unwrap().forward(&TOKENS).unwrap();
    let whole = Model::load(model_dir(GLM)).unwrap().forward(&TOKENS).unwrap();
    assert_eq!(cut.get("layers.1.out"), whole.get("layers.1.out"));
    assert!(cut.get("layers.2.out").is_none());
}

#[rstest]
fn tied_embeddings_project_back(#[values(QWEN, GLM)] name: &str) {
    let mut file = Rewrite::of(name);
    file.config["tie_word_embeddings"] = json!(true);
    file.tensors.retain(|name, _| !name.starts_with("lm_head."));
    let trace = file.model().unwrap().forward(&TOKENS).unwrap();
    let hidden = trace.get("norm").unwrap();
    let embed = values(&file.checkpoint().unwrap(), "model.embed_tokens", &[3072, hidden.cols]);
    let want = matmul(&hidden.data, &embed, TOKENS.len(), 3072, hidden.cols);
    // One f32 product, compared with f64.
    assert!(rel_rms(&trace.logits.data, &want) <= 1e-6);
}

#[rstest]
fn rope_theta_may_sit_in_rope_parameters(#[values(QWEN, GLM)] name: &str) {
    let mut file = Rewrite::of(name);
    let theta = file.config.as_object_mut().unwrap().remove("rope_theta").unwrap();
    // GLM-4.7-Flash's config class has a default for it.
    let missing = matches!(file.model(), Err(Error::Config { field, .. }) if field == "rope_theta");
    assert_eq!(missing, name == QWEN);
    file.config["rope_parameters"] = json!({"rope_theta": theta, "rope_type": "default"});
    assert_eq!(logits(&file), original(name));
    file.config["rope_scaling"] = json!({"type": "ntk", "factor": 4.0});
    assert!(matches!(file.model(), Err(Error::Unsupported { .. })));
    file.config["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    assert_ne!(logits(&file), original(name));
}

const SIZES: MlaProjections =
    MlaProjections { n_heads: 4, qk_nope_head_dim: 64, v_head_dim: 64, kv_lora_rank: 128 };

/// Replaces every layer's embed_q and unembed_out with the kv_b_proj that they came from, as dense f32.
fn with_dense_kv_b(file: &mut Rewrite) {
    let checkpoint = file.checkpoint().unwrap();
    for layer in 0..4 {
        let prefix = format!("model.layers.{layer}.self_attn");
        let embed_q = values(&checkpoint, &format!("{prefix}.embed_q"), &[4, 128, 64]);
        let unembed_out = values(&checkpoint, &format!("{prefix}.unembed_out"), &[4, 64, 128]);
        let mut kv_b = Vec::new();
        for head in 0..4 {
            kv_b.extend(
                (0..64)
                    .flat_map(|i| (0..128).map(move |r| (i, r)))
                    .map(|(i, r)| embed_q[(head * 128 + r) * 64 + i]),
            );
            kv_b.extend_from_slice(&unembed_out[head * 64 * 128..][..64 * 128]);
        }
        file.tensors.retain(|name, _| {
            !name.starts_with(&format!("{prefix}.embed_q."))
                && !name.starts_with(&format!("{prefix}.unembed_out."))
        });
        file.set_floats(&format!("{prefix}.kv_b_proj.weight"), &[512, 128], &kv_b);
    }
}

#[test]
fn a_dense_kv_b_proj_is_split() {
    let mut file = Rewrite::of(GLM);
    with_dense_kv_b(&mut file);
    assert_eq!(logits(&file), original(GLM));
    let checkpoint = file.checkpoint().unwrap();
    let requantized = Model::from_checkpoint(&checkpoint, KvBSplit::Requantized).unwrap();
    let got = requantized.logits(&TOKENS).unwrap().data;
    assert_eq!(got, original(GLM), "what is not quantised is not requantised");
}

#[test]
fn a_quantised_kv_b_proj_is_split_plainly_or_requantised() {
    let mut file = Rewrite::of(GLM);
    with_dense_kv_b(&mut file);
    let path = "model.layers.0.self_attn.kv_b_proj";
    let dense = values(&file.checkpoint().unwrap(), path, &[512, 128]);
    let matrix = quantize(&dense, 128, Format::affine(4, 64), StorageDtype::BF16).unwrap();
    file.set_quantized(path, &[512, 128], &matrix);
    let stored = matrix.dequantize();
    let checkpoint = file.checkpoint().unwrap();
    let split = |split| {
        let (q, out) = checkpoint.mla_projections("model.layers.0.self_attn", SIZES, split).unwrap();
        assert_eq!((q.dims(), out.dims()), (&[4, 128, 64][..], &[4, 64, 128][..]));
        [q, out].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    let ([q, out], [q4, out4]) = (split(KvBSplit::Plain), split(KvBSplit::Requantized));
    for (head, i, r) in [(0, 0, 0), (1, 5, 127), (3, 63, 64)] {
        assert_eq!(q[(head * 128 + r) * 64 + i], stored[(head * 128 + i) * 128 + r]);
        assert_eq!(out[(head * 64 + i) * 128 + r], stored[(head * 128 + 64 + i) * 128 + r]);
    }
    // The key part gets other groups, so it changes by up to half a 4-bit step, some 10 %. The value part keeps its
    // groups, so quantising it again changes it by no more than bfloat16 does, 2^-8.
    let (key, value) = (rel_rms(&q4, &q), rel_rms(&out4, &out));
    assert!(key > 0.01 && key < 0.15, "{key}");
    assert!(value <= 0.004, "{value}");
}

#[test]
fn q_proj_without_low_rank() {
    let mut file = Rewrite::of(GLM);
    file.config["q_lora_rank"] = json!(null);
    file.config["num_hidden_layers"] = json!(1);
    file.tensors.retain(|name, _| !name.contains(".q_a_") && !name.contains(".q_b_"));
    assert!(
        matches!(file.model(), Err(Error::Missing { name }) if name.ends_with("self_attn.q_proj.weight"))
    );
    let path = "model.layers.0.self_attn";
    let q_proj = random_in(StorageDtype::BF16, 384 * 256, 0.05, 1);
    file.set_floats(&format!("{path}.q_proj.weight"), &[384, 256], &q_proj);

    // The block computed again with only the slice operations, in f64 throughout.
    let trace = file.model().unwrap().forward(&TOKENS).unwrap();
    let checkpoint = file.checkpoint().unwrap();
    let want = common::glm_attention(&checkpoint, path, &trace.get("embed").unwrap().data, &q_proj);
    let error = rel_rms(&trace.get("layers.0.attn").unwrap().data, &want);
    assert!(error <= 1e-6, "f32 products against f64: {error:e}");
}

#[test]
fn dense_layers_of_qwen() {
    let mut file = Rewrite::of(QWEN);
    file.config["mlp_only_layers"] = json!([1]);
    assert!(
        matches!(file.model(), Err(Error::Missing { name }) if name == "model.layers.1.mlp.gate_proj.weight")
    );
    let path = "model.layers.1.mlp";
    let weights = ["gate_proj", "up_proj", "down_proj"].map(|proj| {
        let shape = if proj == "down_proj" { [512, 1024] } else { [1024, 512] };
        let w = random_in(StorageDtype::BF16, 512 * 1024, 0.05, proj.len() as u64);
        file.set_floats(&format!("{path}.{proj}.weight"), &shape, &w);
        w
    });
    let trace = file.model().unwrap().forward(&TOKENS).unwrap();
    assert!(trace.get("layers.1.router_logits").is_none() && trace.routing(1).is_none());
    assert!(trace.routing(0).is_some() && trace.routing(2).is_some());
    let (n, h) = (TOKENS.len(), &trace.get("layers.1.attn").unwrap().data);
    let norm =
        file.checkpoint().unwrap().floats("model.layers.1.post_attention_layernorm.weight", &[512]).unwrap();
    let x = rms_norm(h, &norm, 1e-6);
    let inner = swiglu(&matmul(&x, &weights[0], n, 1024, 512), &matmul(&x, &weights[1], n, 1024, 512));
    let want = add(h, &matmul(&inner, &weights[2], n, 512, 1024));
    let error = rel_rms(&trace.get("layers.1.out").unwrap().data, &want);
    assert!(error <= 1e-6, "f32 products against f64: {error:e}");
    file.config["mlp_only_layers"] = json!([]);
    file.config["decoder_sparse_step"] = json!(2);
    assert!(
        matches!(file.model(), Err(Error::Missing { name }) if name == "model.layers.0.mlp.gate_proj.weight")
    );
}

#[test]
fn broken_files_give_typed_errors() {
    let shard = Rewrite::of(QWEN).shard(0, 1);
    let config = Rewrite::of(QWEN).config;
    let load = |config: &str, shard: &[u8]| Model::from_bytes(config, &[shard]).map(|_| ());
    assert!(matches!(load("{", &shard), Err(Error::Json { .. })));
    assert!(matches!(load(r#"{"model_type": "llama"}"#, &shard), Err(Error::UnknownModelType { .. })));
    assert!(matches!(load(r#"{"model_type": "qwen3_moe"}"#, &shard), Err(Error::Json { .. })));
    for n_bytes in [0, 7, 100, shard.len() - 1] {
        assert!(matches!(load(&config.to_string(), &shard[..n_bytes]), Err(Error::SafeTensors { .. })));
    }
    assert!(matches!(Model::from_bytes(&config.to_string(), &[]), Err(Error::Missing { .. })));
    assert!(matches!(Model::load(model_dir("none")), Err(Error::Io { .. })));
    assert!(matches!(Model::load(common::fixtures().join("golden")), Err(Error::Io { .. })));
    for (field, value) in
        [("num_key_value_heads", 0), ("num_key_value_heads", 3), ("num_experts_per_tok", 17)]
    {
        let mut config = config.clone();
        config[field] = json!(value);
        assert!(matches!(load(&config.to_string(), &shard), Err(Error::Config { .. })), "{field} {value}");
    }
    let mut file = Rewrite::of(QWEN);
    let lm_head = file.tensors.get_mut("lm_head.scales").unwrap();
    *lm_head = (safetensors::Dtype::U8, lm_head.1.clone(), vec![127; lm_head.2.len() / 2]);
    assert!(file.model().is_err(), "u8 scales of no known format");
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let model = Model::load(model_dir(QWEN)).unwrap();
    let mut session = model.session();
    session.step(&[1, 2]).unwrap();
    let error = session.step(&[5, 3072]);
    assert!(matches!(error, Err(Error::Token { token: 3072, position: 1, vocab_size: 3072 })));
    assert!(session.step(&[]).is_err());
    let after = session.step(&[3]).unwrap();
    let want = model.logits(&[1, 2, 3]).unwrap();
    assert!(max_abs(after.last_row(), want.last_row()) <= 1e-3, "the refused step left no trace");
}
