//! Opening checkpoints and reading their tensors: valid ones, and broken ones of every kind.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod kv_b_proj;
mod open;
mod weights;

use std::path::PathBuf;

use bytes::Bytes;
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use zmlx_kernels::quant::quantize;
use zmlx_kernels::{DType, HostWeight, QuantMode, QuantSpec, WeightFormat};
use zmlx_models::{Checkpoint, Error, KvBDims, WeightProblem};

fn config() -> Value {
    json!({
        "model_type": "qwen3_moe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 1e7,
        "max_position_embeddings": 4096, "tie_word_embeddings": false, "eos_token_id": 7
    })
}

/// A tensor to write.
#[derive(Clone, Debug)]
struct T(String, Dtype, Vec<usize>, Vec<u8>);

fn shard(tensors: &[T]) -> Bytes {
    let views = tensors.iter().map(|T(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    Bytes::from(safetensors::serialize(views, None).unwrap())
}

fn zeros(name: &str, dtype: Dtype, shape: &[usize]) -> T {
    let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    T(name.into(), dtype, shape.to_vec(), vec![0; n_bytes])
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> T {
    T(name.into(), Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// The three tensors of a quantised weight with bf16 scales (u8 for the float modes).
fn quantized(path: &str, lead: &[usize], spec: QuantSpec, w: &[f32], n_in: usize) -> Vec<T> {
    let affine = spec.mode() == QuantMode::Affine;
    let (dtype, kernel_dtype) = if affine { (Dtype::BF16, DType::BF16) } else { (Dtype::U8, DType::U8) };
    let q = quantize(spec, kernel_dtype, w, n_in).unwrap();
    let shape = |last: usize| lead.iter().copied().chain([last]).collect::<Vec<_>>();
    let (words, groups) = (shape(n_in * spec.bits() / 32), shape(n_in / spec.group_size()));
    let mut tensors = vec![
        T(format!("{path}.weight"), Dtype::U32, words, q.data),
        T(format!("{path}.scales"), dtype, groups.clone(), q.scales),
    ];
    if affine {
        tensors.push(T(format!("{path}.biases"), dtype, groups, q.biases));
    }
    tensors
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| bf16::from_f32((i as f32 * 0.37).sin()).to_f32()).collect()
}

fn affine(bits: usize, group: usize) -> QuantSpec {
    QuantSpec::new(QuantMode::Affine, bits, group).unwrap()
}

fn checkpoint_with(config: &Value, shards: &[&[T]]) -> Result<Checkpoint, Error> {
    let shards =
        shards.iter().enumerate().map(|(i, t)| (format!("model-{i}.safetensors"), shard(t))).collect();
    Checkpoint::from_parts("test", &config.to_string(), None, shards)
}

fn checkpoint(tensors: &[T]) -> Checkpoint {
    checkpoint_with(&config(), &[tensors]).unwrap()
}

fn problems(result: Result<(), Error>) -> Vec<WeightProblem> {
    match result {
        Err(Error::Weights { problems, .. }) => problems,
        other => panic!("{other:?}"),
    }
}

fn checkpoint_one(tensors: &[T], n_out: usize, n_in: usize) -> HostWeight {
    let checkpoint = checkpoint(tensors);
    let mut reader = checkpoint.reader();
    let w = reader.matrix("m", n_out, n_in);
    reader.finish().unwrap();
    w
}
