//! Paths of the fixtures, and helpers for several tests.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

pub(crate) mod rewrite;

use std::path::PathBuf;

use zmlx_oracle::checkpoint::Checkpoint;
use zmlx_oracle::golden::{Golden, TensorFile};
use zmlx_oracle::ops::{MlaAttention, Rope, add, matmul, mla_attention, rms_norm, rope};
use zmlx_oracle::plan::{AttentionPlan, MlaProjections};

pub(crate) const MODELS: [&str; 2] = ["austen-qwen3-moe-4bit", "austen-glm4-moe-lite-4bit"];

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn ops(name: &str) -> TensorFile {
    TensorFile::open(fixtures().join(format!("golden/ops/{name}.safetensors"))).unwrap()
}

pub(crate) fn model_dir(model: &str) -> PathBuf {
    fixtures().join("models").join(model)
}

pub(crate) fn golden(model: &str) -> Golden {
    Golden::open(fixtures().join(format!("golden/{model}.json"))).unwrap()
}

pub(crate) fn taps(model: &str) -> TensorFile {
    TensorFile::open(fixtures().join(format!("golden/{model}-taps.safetensors"))).unwrap()
}

/// The residual stream after a latent attention block with a plain q_proj, `x + attention(rms_norm(x))`, computed in
/// `f64` with only [`zmlx_oracle::ops`].
pub(crate) fn glm_attention(checkpoint: &Checkpoint, path: &str, x: &[f32], q_proj: &[f32]) -> Vec<f64> {
    let (hidden, eps) = (checkpoint.plan().hidden_size, checkpoint.plan().rms_norm_eps);
    let AttentionPlan::Mla(mla) = &checkpoint.plan().layers[0].attention else { panic!("another attention") };
    let MlaProjections { n_heads, qk_nope_head_dim: nope, v_head_dim, kv_lora_rank: rank } = mla.sizes;
    let (pe, n) = (mla.qk_rope_head_dim, x.len() / hidden);
    let weight = |part: &str, shape: &[usize]| -> Vec<f32> {
        let w = checkpoint.weight(&format!("{path}.{part}"), shape).unwrap();
        w.flatten_all().unwrap().to_vec1().unwrap()
    };
    let norm = |name: &str, n| checkpoint.floats(name, &[n]).unwrap();
    let input = norm("model.layers.0.input_layernorm.weight", hidden);
    let normed = rms_norm(x, &input, eps);
    let q = matmul(&normed, q_proj, n, n_heads * (nope + pe), hidden);
    let q_heads = || q.chunks(nope + pe);
    let q_nope: Vec<f64> = q_heads().flat_map(|head| head[..nope].to_vec()).collect();
    let q_pe: Vec<f64> = q_heads().flat_map(|head| head[nope..].to_vec()).collect();
    let kv_a = weight("kv_a_proj_with_mqa", &[rank + pe, hidden]);
    let ckv_pe = matmul(&normed, &kv_a, n, rank + pe, hidden);
    let ckv: Vec<f64> = ckv_pe.chunks(rank + pe).flat_map(|row| row[..rank].to_vec()).collect();
    let k_pe: Vec<f64> = ckv_pe.chunks(rank + pe).flat_map(|row| row[rank..].to_vec()).collect();
    let kv = rms_norm(&ckv, &norm(&format!("{path}.kv_a_layernorm.weight"), rank), eps);
    let positions: Vec<u32> = (0..n as u32).collect();
    let rotate = |x: &[f64], n_heads| {
        let (frequencies, layout) = (&mla.rope.frequencies[..], mla.rope.layout);
        let sizes = Rope { n_tokens: n, n_heads, head_dim: pe, frequencies, scale: 1.0, layout };
        rope(x, &positions, sizes)
    };
    let sizes = MlaAttention {
        n_tokens: n,
        n_kv: n,
        n_heads,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: pe,
        kv_lora_rank: rank,
        v_head_dim,
        scale: mla.scale,
    };
    let (q_pe, k_pe) = (rotate(&q_pe, n_heads), rotate(&k_pe, 1));
    let embed_q = weight("embed_q", &[n_heads, rank, nope]);
    let unembed_out = weight("unembed_out", &[n_heads, v_head_dim, rank]);
    let heads = mla_attention((&q_nope, &q_pe), (&kv, &k_pe), (&embed_q, &unembed_out), sizes);
    let o_proj = weight("o_proj", &[hidden, n_heads * v_head_dim]);
    add(x, &matmul(&heads, &o_proj, n, hidden, n_heads * v_head_dim))
}
