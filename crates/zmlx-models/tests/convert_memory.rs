//! Conversion holds blocks and never a whole weight. This test is a program of its own, because it counts the
//! allocations of the whole process.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value, json};
use zmlx_kernels::{DType, QuantMode};
use zmlx_models::{Action, Checkpoint, ConvertOptions, Quantize, convert};

struct Accounting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(n_bytes: usize) {
    let held = HELD.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Accounting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // For a moment both may exist.
        add(new_size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Accounting = Accounting;

const VOCAB: usize = 65_536;
const HIDDEN: usize = 512;
const N_EXPERTS: usize = 8;
const INTER: usize = 1024;

/// Writes a checkpoint of 92 MB, tensor by tensor.
fn write(dir: &Path) -> usize {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 64, "intermediate_size": 64, "moe_intermediate_size": INTER,
        "num_experts": N_EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "torch_dtype": "float16"
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    let mut layer = |name: String, shape: &[usize]| {
        tensors.push((format!("model.layers.0.{name}.weight"), shape.to_vec()))
    };
    for name in ["input_layernorm", "post_attention_layernorm"] {
        layer(name.to_owned(), &[HIDDEN]);
    }
    for (name, shape) in [
        ("q_proj", [256, HIDDEN]),
        ("k_proj", [64, HIDDEN]),
        ("v_proj", [64, HIDDEN]),
        ("o_proj", [HIDDEN, 256]),
    ] {
        layer(format!("self_attn.{name}"), &shape);
    }
    for name in ["q_norm", "k_norm"] {
        layer(format!("self_attn.{name}"), &[64]);
    }
    layer("mlp.gate".to_owned(), &[N_EXPERTS, HIDDEN]);
    for e in 0..N_EXPERTS {
        for (name, shape) in
            [("gate_proj", [INTER, HIDDEN]), ("up_proj", [INTER, HIDDEN]), ("down_proj", [HIDDEN, INTER])]
        {
            layer(format!("mlp.experts.{e}.{name}"), &shape);
        }
    }
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in &tensors {
        let n_bytes = 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes] }),
        );
        at += n_bytes;
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(dir.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut state = 1u64;
    for _ in 0..at / 2 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Between 2^-7 and 2^-6, with both signs.
        let value = 0x3c00 | (state >> 48) as u16 & 0x807f;
        file.write_all(&value.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    at
}

#[test]
fn memory_does_not_grow_with_the_model() {
    /// The memory for each thread, as the module's documentation promises.
    const PER_THREAD: usize = 16 << 20;
    /// The plan, the state, and the buffer of the hash.
    const BESIDE: usize = 3 << 20;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let n_bytes = write(&source);
    let affine =
        |bits| Quantize { mode: QuantMode::Affine, bits: Some(bits), group_size: None, recipe: None };
    let actions = [
        ("8 bits", Action::Quantize(affine(8)), &source, None),
        ("f32", Action::Keep, &source, Some(DType::F32)),
        ("dequantised", Action::Dequantize, &dir.path().join("8 bits"), None),
    ];
    for (name, action, source, dtype) in actions {
        for n_threads in [1, 2] {
            let checkpoint = Checkpoint::open(source).unwrap();
            let options = ConvertOptions { dtype, n_threads: Some(n_threads), ..ConvertOptions::new(action) };
            let to = dir.path().join(if n_threads == 1 { name.to_owned() } else { format!("{name} again") });
            let before = HELD.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            convert(&checkpoint, &to, &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
            let grown = PEAK.load(Ordering::Relaxed) - before;
            assert!(grown <= n_threads * PER_THREAD + BESIDE, "{name}, {n_threads} threads: {grown} bytes");
            assert!(grown < n_bytes / 2 && grown > 1 << 20, "{name}: {grown} bytes for a file of {n_bytes}");
            if n_threads == 2 {
                std::fs::remove_dir_all(&to).unwrap();
            }
        }
    }
}
