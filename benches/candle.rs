//! candle-transformers' Qwen3 MoE on the CPU, with its own experts and with zmlx's quantised ones: one layer of the widths of
//! Qwen3-30B-A3B whose attention and vocabulary are too small to matter. Both take turns.
//!
//! `cargo bench --package zmlx-benches --features candle --bench candle`

use std::error::Error;
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap, ops};
use candle_transformers::models::qwen3_moe::{Config, ModelForCausalLM};
use zmlx_kernels::candle::{GatherQmmCombine, GatherQmmSwiglu, QuantizedBank};
use zmlx_kernels::{HostWeight, QuantMode, QuantSpec};

const CONFIG: &str = r#"{"vocab_size": 64, "hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 1, "head_dim": 8, "attention_bias": false, "num_key_value_heads": 1,
    "max_position_embeddings": 512, "max_window_layers": 1, "tie_word_embeddings": true, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "use_sliding_window": false, "hidden_act": "silu", "decoder_sparse_step": 1,
    "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": true}"#;

/// Tokens of a step, and turns of both.
const CASES: [(usize, usize); 4] = [(1, 101), (8, 51), (64, 21), (512, 11)];

/// The same model with zmlx's experts. Attention is left out, as the other's adds nothing.
struct Ours {
    config: Config,
    embeddings: Tensor,
    router: Tensor,
    swiglu: GatherQmmSwiglu,
    combine: GatherQmmCombine,
    ones: Tensor,
}

impl Ours {
    fn moe(&self, x: &Tensor) -> Result<Tensor> {
        let p = ops::softmax_last_dim(&x.matmul(&self.router.t()?)?)?;
        let experts = p.arg_sort_last_dim(false)?.narrow(D::Minus1, 0, self.config.num_experts_per_tok)?;
        let experts = experts.contiguous()?;
        let weights = p.gather(&experts, D::Minus1)?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        self.combine.forward(&self.swiglu.forward(x, &experts)?, &experts, &weights)
    }

    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, &self.ones, self.config.rms_norm_eps as f32)
    }

    /// The logits of the last token.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let x = self.embeddings.index_select(ids, 0)?;
        let y = self.norm(&(&x + self.moe(&self.norm(&x)?)?)?)?;
        y.narrow(0, ids.elem_count() - 1, 1)?.matmul(&self.embeddings.t()?)
    }
}

fn models() -> std::result::Result<(ModelForCausalLM, Ours), Box<dyn Error>> {
    let config: Config = serde_json::from_str(CONFIG)?;
    let (hidden, inter, vocab) = (config.hidden_size, config.moe_intermediate_size, config.vocab_size);
    let (mut vars, cpu) = (VarMap::new(), Device::Cpu);
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &cpu);
    let theirs = ModelForCausalLM::new(&config, vb.clone())?;
    let projection = "model.layers.0.self_attn.o_proj.weight";
    vars.set_one(projection, vb.get((hidden, 8), projection)?.zeros_like()?)?;
    let embeddings = (vb.get((vocab, hidden), "model.embed_tokens.weight")? * 0.01)?;
    vars.set_one("model.embed_tokens.weight", &embeddings)?;
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64)?;
    let mut bank = |part: &str, n_out, n_in| -> std::result::Result<_, Box<dyn Error>> {
        let mut experts = Vec::new();
        for e in 0..config.num_experts {
            let name = format!("model.layers.0.mlp.experts.{e}.{part}.weight");
            let values = vb.get((n_out, n_in), &name)?.flatten_all()?.to_vec1::<f32>()?;
            experts.push(HostWeight::quantize(spec, &values, [1, n_out, n_in])?);
            vars.set_one(&name, Tensor::from_vec(experts[e].to_f32_vec(), (n_out, n_in), &cpu)?)?;
        }
        Ok(QuantizedBank::from_host(HostWeight::stack(experts)?, &cpu)?)
    };
    let ours = Ours {
        swiglu: GatherQmmSwiglu::new(bank("gate_proj", inter, hidden)?, bank("up_proj", inter, hidden)?)?,
        combine: GatherQmmCombine::new(bank("down_proj", hidden, inter)?),
        router: vb.get((config.num_experts, hidden), "model.layers.0.mlp.gate.weight")?,
        ones: Tensor::ones(hidden, DType::F32, &cpu)?,
        embeddings,
        config,
    };
    Ok((theirs, ours))
}

/// The median of an odd number of values.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let (mut theirs, ours) = models()?;
    println!(
        "| tokens | turns | candle, f32 | with zmlx's experts, 4 bits | ratio: median (least to most) |"
    );
    println!("|--:|--:|--:|--:|--:|");
    for (n_tokens, turns) in CASES {
        let (mut times, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
        for turn in 0..=turns {
            // Other tokens in each turn, and so other experts.
            let ids: Vec<u32> = (0..n_tokens).map(|i| ((turn * 29 + i * 13) % 64) as u32).collect();
            let ids = Tensor::new(&ids[..], &Device::Cpu)?;
            let mut timed = [0.0; 2];
            let mut logits = Vec::new();
            // The model that begins changes from turn to turn.
            for model in [turn % 2, (turn + 1) % 2] {
                theirs.clear_kv_cache();
                let start = Instant::now();
                let y = match model {
                    0 => theirs.forward(&ids.unsqueeze(0)?, 0)?.flatten_all()?,
                    _ => ours.forward(&ids)?.flatten_all()?,
                };
                timed[model] = start.elapsed().as_secs_f64() * 1e3;
                logits.push(y);
            }
            let size = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>().map(f32::sqrt);
            let difference = size(&(&logits[0] - &logits[1])?)? / size(&logits[0])?;
            if difference.is_nan() || difference > 1e-3 {
                return Err(format!("the logits of {n_tokens} tokens differ by {difference}").into());
            }
            // The first turn warms up.
            if turn > 0 {
                (0..2).for_each(|model| times[model].push(timed[model]));
                ratios.push(timed[0] / timed[1]);
            }
        }
        let (least, most) = (
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
        );
        println!(
            "| {n_tokens} | {turns} | {:.2} ms | {:.2} ms | **{:.1}×** ({least:.1}–{most:.1}) |",
            median(&times[0]),
            median(&times[1]),
            median(&ratios)
        );
    }
    Ok(())
}
