//! A layer's block for mlx-rs programs gives the same bits as the recorded taps around it.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::mlx::mlx_rs::Dtype;
use zmlx_kernels::mlx::{Array, MlxBackend, Numerics};
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Error, mlx};
use zmlx_oracle::golden::TensorFile;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixtures().join("models").join(name)).unwrap()
}

/// `out = attn + block(norm(attn))` for every layer with experts, as a batch of one sequence.
#[rstest]
fn blocks_fit_between_the_taps_of_mlx_lm(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let file = TensorFile::open(fixtures().join(format!("golden/{name}-taps.safetensors"))).unwrap();
    let (checkpoint, b) = (open(name), MlxBackend::new(Numerics::Exact).unwrap());
    let architecture = checkpoint.architecture();
    let mut reader = checkpoint.reader();
    let mut n_blocks = 0;
    for (layer_idx, _) in architecture.moe_layers() {
        let tap = |what: &str| -> Array {
            let tap = file.floats(&format!("bf16.layers.{layer_idx}.{what}")).unwrap();
            b.tensor(&tap.data, &[1, tap.shape[0], tap.shape[1]]).unwrap().as_dtype(Dtype::Bfloat16).unwrap()
        };
        let norm = format!("model.layers.{layer_idx}.post_attention_layernorm.weight");
        let norm = b.upload(reader.vector(&norm, architecture.hidden_size)).unwrap();
        let attn = tap("attn");
        let x = b.rms_norm(&attn, &norm, architecture.rms_norm_eps as f32).unwrap();
        let block = mlx::moe_block(&checkpoint, layer_idx, &b).unwrap();
        let block = block.with_fusion(Fusion::FUSED);
        for y in [block.forward(&x).unwrap(), block.forward_stock(&x).unwrap()] {
            assert_eq!(y.dtype(), Dtype::Bfloat16);
            let out = attn.add(&y).unwrap();
            assert!(out.eq_exact(tap("out")).unwrap(), "{name} layer {layer_idx}");
        }
        n_blocks += 1;
    }
    assert_eq!(n_blocks, 3, "{name}");
}

#[rstest]
fn without_a_gpu_nothing_is_fused(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let (checkpoint, b) = (open(name), MlxBackend::new(Numerics::Exact).unwrap());
    let choice = mlx::default_fusion(checkpoint.architecture(), &b);
    if b.runtime().gpu().is_some() {
        assert_ne!(choice.fusion, Fusion::STOCK);
    } else {
        assert_eq!(choice.fusion, Fusion::STOCK);
        assert!(choice.reason.contains("without a GPU"), "{}", choice.reason);
    }
}

#[test]
fn a_layer_without_experts_has_no_block() {
    let (checkpoint, b) = (open("austen-glm4-moe-lite-4bit"), MlxBackend::new(Numerics::Exact).unwrap());
    for layer_idx in [0, 4, usize::MAX] {
        let error = mlx::moe_block(&checkpoint, layer_idx, &b).unwrap_err();
        assert!(matches!(error, Error::Parameter { field: "layer_idx", .. }), "{error}");
    }
}
