//! Paths of the fixtures, and helpers for several tests.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

pub(crate) mod rewrite;

use std::path::PathBuf;

use zmlx_oracle::checkpoint::{Checkpoint, Glm4MoeLiteConfig};
use zmlx_oracle::golden::{Golden, TensorFile};
use zmlx_oracle::ops::{MlaAttention, Rope, RopeLayout, add, matmul, mla_attention, rms_norm, rope};

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

/// The residual stream after a latent attention block with a plain q_proj, `x + attention(rms_norm(x))`, in `f64`
/// and from [`zmlx_oracle::ops`] alone.
pub(crate) fn glm_attention(
    checkpoint: &Checkpoint,
    c: &Glm4MoeLiteConfig,
    path: &str,
    x: &[f32],
    q_proj: &[f32],
) -> Vec<f64> {
    let (n_heads, rank) = (c.num_attention_heads, c.kv_lora_rank);
    let (nope, pe, n) = (c.qk_nope_head_dim, c.qk_rope_head_dim, x.len() / c.hidden_size);
    let weight = |part: &str, shape: &[usize]| -> Vec<f32> {
        let w = checkpoint.weight(&format!("{path}.{part}"), shape).unwrap();
        w.flatten_all().unwrap().to_vec1().unwrap()
    };
    let norm = |name: &str, n| checkpoint.floats(name, &[n]).unwrap();
    let input = norm("model.layers.0.input_layernorm.weight", c.hidden_size);
    let normed = rms_norm(x, &input, c.rms_norm_eps);
    let q = matmul(&normed, q_proj, n, n_heads * (nope + pe), c.hidden_size);
    let q_heads = || q.chunks(nope + pe);
    let q_nope: Vec<f64> = q_heads().flat_map(|head| head[..nope].to_vec()).collect();
    let q_pe: Vec<f64> = q_heads().flat_map(|head| head[nope..].to_vec()).collect();
    let kv_a = weight("kv_a_proj_with_mqa", &[rank + pe, c.hidden_size]);
    let ckv_pe = matmul(&normed, &kv_a, n, rank + pe, c.hidden_size);
    let ckv: Vec<f64> = ckv_pe.chunks(rank + pe).flat_map(|row| row[..rank].to_vec()).collect();
    let k_pe: Vec<f64> = ckv_pe.chunks(rank + pe).flat_map(|row| row[rank..].to_vec()).collect();
    let kv = rms_norm(&ckv, &norm(&format!("{path}.kv_a_layernorm.weight"), rank), c.rms_norm_eps);
    let positions: Vec<u32> = (0..n as u32).collect();
    let rotate = |x: &[f64], n_heads| {
        let sizes = Rope {
            n_tokens: n,
            n_heads,
            head_dim: pe,
            n_rot: pe,
            theta: 1e6,
            position_scale: 1.0,
            layout: RopeLayout::Interleaved,
        };
        rope(x, &positions, sizes)
    };
    let sizes = MlaAttention {
        n_tokens: n,
        n_kv: n,
        n_heads,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: pe,
        kv_lora_rank: rank,
        v_head_dim: c.v_head_dim,
        scale: c.attention_scale(),
    };
    let (q_pe, k_pe) = (rotate(&q_pe, n_heads), rotate(&k_pe, 1));
    let embed_q = weight("embed_q", &[n_heads, rank, nope]);
    let unembed_out = weight("unembed_out", &[n_heads, c.v_head_dim, rank]);
    let heads = mla_attention((&q_nope, &q_pe), (&kv, &k_pe), (&embed_q, &unembed_out), sizes);
    let o_proj = weight("o_proj", &[c.hidden_size, n_heads * c.v_head_dim]);
    add(x, &matmul(&heads, &o_proj, n, c.hidden_size, n_heads * c.v_head_dim))
}
