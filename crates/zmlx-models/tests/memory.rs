//! Weights are used where they are mapped: a loaded model takes the memory of its files, and not twice that.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};
use zmlx_kernels::Fusion;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::{Checkpoint, Input, Logits, Model, PoolOptions};

const HIDDEN: usize = 512;
const INTER: usize = 512;
const N_EXPERTS: usize = 64;
const N_LAYERS: usize = 7;
const VOCAB: usize = 1024;

/// The process's peak resident memory in bytes.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Names, types and shapes of all tensors.
fn tensors() -> Vec<(String, &'static str, Vec<usize>)> {
    let mut all = Vec::new();
    let mut quantized = |path: String, shape: &[usize]| {
        let with_last = |last: usize| [&shape[..shape.len() - 1], &[last]].concat();
        let n_in = shape[shape.len() - 1];
        all.push((format!("{path}.weight"), "U32", with_last(n_in / 8)));
        all.push((format!("{path}.scales"), "BF16", with_last(n_in / 64)));
        all.push((format!("{path}.biases"), "BF16", with_last(n_in / 64)));
    };
    quantized("model.embed_tokens".into(), &[VOCAB, HIDDEN]);
    quantized("lm_head".into(), &[VOCAB, HIDDEN]);
    for i in 0..N_LAYERS {
        let path = format!("model.layers.{i}");
        for name in ["q", "k", "v", "o"] {
            quantized(format!("{path}.self_attn.{name}_proj"), &[HIDDEN, HIDDEN]);
        }
        quantized(format!("{path}.mlp.gate"), &[N_EXPERTS, HIDDEN]);
        for (name, n_out, n_in) in [("gate", INTER, HIDDEN), ("up", INTER, HIDDEN), ("down", HIDDEN, INTER)] {
            quantized(format!("{path}.mlp.switch_mlp.{name}_proj"), &[N_EXPERTS, n_out, n_in]);
        }
    }
    all.push(("model.norm.weight".into(), "BF16", vec![HIDDEN]));
    for i in 0..N_LAYERS {
        let path = format!("model.layers.{i}");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            all.push((format!("{path}.{name}.weight"), "BF16", vec![HIDDEN]));
        }
        for name in ["q_norm", "k_norm"] {
            all.push((format!("{path}.self_attn.{name}.weight"), "BF16", vec![64]));
        }
    }
    all
}

/// Writes the checkpoint tensor by tensor, so that the test itself never holds it. Returns its size.
fn write(dir: &Path) -> usize {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": HIDDEN, "num_hidden_layers": N_LAYERS, "num_attention_heads": 8,
        "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": INTER, "moe_intermediate_size": INTER,
        "num_experts": N_EXPERTS, "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "tie_word_embeddings": false, "eos_token_id": 0,
        "quantization": { "group_size": 64, "bits": 4 },
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = tensors();
    let (mut header, mut at) = (Map::new(), 0);
    for (name, dtype, shape) in &tensors {
        let n = shape.iter().product::<usize>() * if *dtype == "U32" { 4 } else { 2 };
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + n] });
        header.insert(name.clone(), entry);
        at += n;
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(dir.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut state = 1u64;
    for (name, dtype, shape) in &tensors {
        let n = shape.iter().product::<usize>();
        for _ in 0..n {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match (*dtype, name.rsplit('.').next()) {
                ("U32", _) => file.write_all(&((state >> 32) as u32).to_le_bytes()).unwrap(),
                (_, Some("scales")) => file.write_all(&half::bf16::from_f32(0.01).to_le_bytes()).unwrap(),
                (_, Some("biases")) => file.write_all(&half::bf16::from_f32(-0.075).to_le_bytes()).unwrap(),
                _ => file.write_all(&half::bf16::ONE.to_le_bytes()).unwrap(),
            }
        }
    }
    file.flush().unwrap();
    8 + header.len() + at
}

#[test]
fn a_model_takes_no_more_memory_than_its_file_and_a_tenth() {
    let dir = tempfile::tempdir().unwrap();
    let file_bytes = write(dir.path());
    let before = peak_bytes();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let model = Model::load(CpuBackend::new(Some(2)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap();
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let prompt: Vec<u32> = (0..64).map(|i| i * 37 % VOCAB as u32).collect();
    for tokens in std::iter::once(&prompt[..]).chain(prompt[..8].chunks(1)) {
        let input = Input { slot, tokens, logits: Logits::Last };
        model.forward(&mut pool, &[input], &Fusion::FUSED).unwrap();
    }
    let grown = peak_bytes() - before;
    assert!(grown <= file_bytes + file_bytes / 10, "{grown} bytes for a file of {file_bytes}");
    // The prompt chose nearly every expert, so the file was really read.
    assert!(grown >= file_bytes / 2, "{grown} bytes for a file of {file_bytes}: the weights were not used");
}
