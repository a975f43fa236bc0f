//! Puts quantised experts in the place of those of candle-transformers' Qwen3 MoE, and compares what both models say.
//!
//! `cargo run --package zmlx-kernels --features candle --example candle_qwen3_moe`

use candle_core::{D, DType::F32, Device::Cpu, Error, Result, Tensor};
use candle_nn::{VarBuilder, VarMap, ops};
use candle_transformers::models::qwen3_moe::{Config, Model};
use zmlx_kernels::candle::{GatherQmmCombine, GatherQmmSwiglu, QuantizedBank};
use zmlx_kernels::{HostWeight, QuantMode, QuantSpec};

const CONFIG: &str = r#"{"vocab_size": 64, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 2, "head_dim": 32, "attention_bias": false, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "max_window_layers": 1, "tie_word_embeddings": true, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "use_sliding_window": false, "hidden_act": "silu", "decoder_sparse_step": 1,
    "moe_intermediate_size": 128, "num_experts_per_tok": 4, "num_experts": 16, "norm_topk_prob": true}"#;

fn main() -> Result<()> {
    let c: Config = serde_json::from_str(CONFIG).map_err(Error::wrap)?;
    let (hidden, inter) = (c.hidden_size, c.moe_intermediate_size);
    let mut vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, F32, &Cpu);
    let mut theirs = Model::new(&c, vb.clone())?;
    // Attention adds nothing and embeddings are small, so the result is that of the experts.
    let name = "model.layers.0.self_attn.o_proj.weight";
    vars.set_one(name, Tensor::zeros((hidden, c.num_attention_heads * c.head_dim), F32, &Cpu)?)?;
    let embeddings = (vb.get((c.vocab_size, hidden), "model.embed_tokens.weight")? * 0.01)?;
    vars.set_one("model.embed_tokens.weight", &embeddings)?;

    // Quantises the experts, and gives candle's model the values that their codes stand for.
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64).map_err(Error::wrap)?;
    let mut bank = |part: &str, n_out, n_in| {
        let experts = (0..c.num_experts).map(|e| {
            let name = format!("model.layers.0.mlp.experts.{e}.{part}.weight");
            let values = vb.get((n_out, n_in), &name)?.flatten_all()?.to_vec1::<f32>()?;
            let expert = HostWeight::quantize(spec, &values, [1, n_out, n_in]).map_err(Error::wrap)?;
            vars.set_one(&name, Tensor::from_vec(expert.to_f32_vec(), (n_out, n_in), &Cpu)?)?;
            Ok(expert)
        });
        let experts = HostWeight::stack(experts.collect::<Result<_>>()?).map_err(Error::wrap)?;
        QuantizedBank::from_host(experts, &Cpu)
    };
    let swiglu = GatherQmmSwiglu::new(bank("gate_proj", inter, hidden)?, bank("up_proj", inter, hidden)?)?;
    let combine = GatherQmmCombine::new(bank("down_proj", hidden, inter)?);
    let router = vb.get((c.num_experts, hidden), "model.layers.0.mlp.gate.weight")?;
    let moe = |x: &Tensor| {
        let p = ops::softmax_last_dim(&x.matmul(&router.t()?)?)?;
        let experts = p.arg_sort_last_dim(false)?.narrow(1, 0, c.num_experts_per_tok)?.contiguous()?;
        let weights = p.gather(&experts, D::Minus1)?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
        combine.forward(&swiglu.forward(x, &experts)?, &experts, &weights)
    };
    let norm = |x: &Tensor| ops::rms_norm(x, &Tensor::ones(hidden, F32, &Cpu)?, c.rms_norm_eps as f32);

    let ids = Tensor::new(&[3_u32, 14, 15, 9, 26, 53], &Cpu)?;
    let want = theirs.forward(&ids.unsqueeze(0)?, 0)?.squeeze(0)?;
    let x = embeddings.index_select(&ids, 0)?;
    let got = norm(&(&x + moe(&norm(&x)?)?)?)?;
    let size = |x: Tensor| x.sqr()?.mean_all()?.to_scalar::<f32>().map(f32::sqrt);
    let difference = size((got - &want)?)? / size(want)?;
    println!("relative difference of candle's model with zmlx's experts: {difference:.1e}");
    // The weights have the same values; activations were rounded to 16 bits.
    if difference < 1e-3 { Ok(()) } else { Err(Error::msg("the experts differ")) }
}
