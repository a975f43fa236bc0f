//! Every layer shared by all ranks.

use std::ops::ControlFlow;
use std::path::Path;

use rstest::rstest;
use safetensors::tensor::TensorView;
use serde_json::json;
use zmlx_kernels::Fusion;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::{
    Checkpoint, Engine, EngineOptions, Error, Event, Model, Request, TensorInfo, generate, self_check,
};
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::{Golden, Outcome, check_greedy};

use crate::group::{GLM, MARGIN_BOUND, Parallel, QWEN, checkpoint, fixtures, led, logits, on_ranks, refusal};

/// The tiny models with every number of ranks that fits: experts by width and whole, heads of keys and values shared.
#[rstest]
fn greedy_tokens_are_those_of_the_f32_truth(
    #[values((GLM, 2), (GLM, 4), (QWEN, 2), (QWEN, 4), (QWEN, 8))] (name, n_ranks): (&str, usize),
    #[values("stock", "concat", "fused")] fusion: &str,
) {
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let fusion: Fusion = fusion.parse().unwrap();
    let prompt = golden.prompt("novel").unwrap();
    let tokens = on_ranks(&checkpoint(&format!("models/{name}")), n_ranks, |model| {
        assert!(self_check(model, &fusion).unwrap().passed());
        let request = Request::new(prompt.prompt_tokens.clone(), golden.decode.tokens);
        generate(model, None, fusion, request, |_| ControlFlow::Continue(())).unwrap().tokens
    });
    for (rank, (_, tokens)) in tokens.iter().enumerate() {
        let verdict = check_greedy(&prompt.truth_f32, tokens, MARGIN_BOUND);
        assert_eq!(verdict.outcome, Outcome::Equal, "{name} {n_ranks} rank {rank}: {verdict:?}");
    }
}

/// How many ranks share a tensor of the tiny models; `None` for one that only one of them holds.
fn n_sharing(tensor: &TensorInfo<'_>, n_ranks: u64, n_kv_heads: u64) -> Option<u64> {
    let has = |names: &[&str]| names.iter().any(|name| tensor.name.contains(name));
    if has(&["shared_experts"]) {
        None
    } else if has(&["lm_head"]) {
        // Both vocabularies divide.
        Some(n_ranks)
    } else if has(&["k_proj", "v_proj"]) {
        Some(n_ranks.min(n_kv_heads))
    } else if has(&["switch_mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "q_proj", "q_b_proj"])
        || has(&["embed_q", "unembed_out", "o_proj"])
    {
        Some(n_ranks)
    } else {
        Some(1)
    }
}

/// Each rank is given its part of the experts, the heads and the MLPs, and what is not split.
#[rstest]
#[case(QWEN, 2)]
#[case(QWEN, 4)]
#[case(GLM, 2)]
#[case(GLM, 4)]
fn a_rank_loads_its_part_only(#[case] name: &str, #[case] n_ranks: usize) {
    let checkpoint = checkpoint(&format!("models/{name}"));
    let bytes = |n_sharing: &dyn Fn(&TensorInfo<'_>) -> Option<u64>| -> u64 {
        checkpoint.tensors().filter_map(|t| Some(t.n_bytes as u64 / n_sharing(&t)?)).sum()
    };
    let of_rank = bytes(&|t| n_sharing(t, n_ranks as u64, 2));
    let is_expert = |t: &TensorInfo<'_>| t.name.contains("switch_mlp");
    let of_experts = bytes(&|t| is_expert(t).then_some(1));
    let rest = bytes(&|t| (!is_expert(t)).then_some(1));
    let loaded = on_ranks(&checkpoint, n_ranks, |_| ());
    // Three groups of columns: of two ranks the second has two of them, of four the first none.
    let of_shared = bytes(&|t| t.name.contains("shared_experts").then_some(3));
    let n_groups = |rank: usize| ((rank + 1) * 3 / n_ranks - rank * 3 / n_ranks) as u64;
    for (rank, (n_bytes, ())) in loaded.into_iter().enumerate() {
        assert_eq!(n_bytes, of_rank + n_groups(rank) * of_shared, "{name} rank {rank} of {n_ranks}");
        assert!(n_bytes <= of_experts / n_ranks as u64 + rest, "{name} rank {rank} of {n_ranks}");
    }
}

/// Other layers of the same kinds: groups of experts and an older layout of latent attention, dense layers, biases, also of partial sums.
#[rstest]
#[case("families/deepseek_v3", 2)]
#[case("families/gpt_oss", 2)]
#[case("qwen3-0.6b,layers=2,vocab=300", 4)]
#[case("glm-4.5-air,layers=1,vocab=300", 2)]
fn logits_are_those_of_one_rank(#[case] name: &str, #[case] n_ranks: usize) {
    check_logits(&checkpoint(name), n_ranks);
}

fn check_logits(checkpoint: &Checkpoint, n_ranks: usize) {
    let tokens = [3, 250, 17, 4, 4, 99, 1, 42];
    let whole = Model::load(CpuBackend::new(Some(1)).unwrap(), checkpoint, &mut |_, _| ()).unwrap();
    let want: Vec<f64> = logits(&whole, &tokens).iter().map(|v| f64::from(*v)).collect();
    let on_ranks = on_ranks(checkpoint, n_ranks, |model| logits(model, &tokens));
    for (rank, (_, got)) in on_ranks.into_iter().enumerate() {
        // Activations are rounded to 16 bits by rows, which are shorter here.
        let error = rel_rms(&got, &want);
        assert!(error <= 2e-4, "{} rank {rank} of {n_ranks}: {error:e}", checkpoint.name());
    }
}

/// What does not divide, and what is not split yet, is refused by name, with the numbers that fit.
#[rstest]
#[case(
    "models/austen-glm4-moe-lite-4bit",
    3,
    "as model.layers.0.self_attn.o_proj follows 4 heads; it can be split among 2 or 4"
)]
#[case(
    "models/austen-qwen3-moe-4bit",
    3,
    "as model.layers.0.self_attn.o_proj follows 8 heads; it can be split among 2, 4 or 8"
)]
#[case(
    "families/glm4_moe",
    2,
    "as model.layers.0.self_attn.o_proj has 3 groups of columns; it runs on one rank only"
)]
#[case("families/glm4_moe", 3, "as model.layers.0.self_attn.k_proj gives 2 heads; it runs on one rank only")]
#[case(
    "families/gpt_oss",
    4,
    "as model.layers.0.self_attn.o_proj has 2 groups of columns; it can be split among 2"
)]
#[case("families/lfm2_moe", 2, "as model.layers.0 has a short convolution; it runs on one rank only")]
#[case("families/minimax", 2, "o_proj has 3 groups of columns; it runs on one rank only")]
#[case("families/qwen3_next", 2, "as model.layers.0 has linear attention; it runs on one rank only")]
fn what_cannot_be_split_is_refused(#[case] name: &str, #[case] n_ranks: usize, #[case] want: &str) {
    let error = refusal(&checkpoint(name), n_ranks, Parallel::Tensor);
    assert!(matches!(error, Error::Split { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("cannot be split among {n_ranks} ranks")), "{text}");
    assert!(text.contains(want), "{text}");
}

/// A checkpoint of random f32 weights whose norms of queries and keys go over all heads.
fn olmoe(dir: &Path) -> Checkpoint {
    const HIDDEN: usize = 64;
    const INTER: usize = 32;
    const N_EXPERTS: usize = 6;
    let config = json!({
        "model_type": "olmoe", "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 4, "intermediate_size": INTER, "num_experts": N_EXPERTS, "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": 300, "max_position_embeddings": 512,
        "hidden_act": "silu", "eos_token_id": 0, "tie_word_embeddings": false
    });
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![300, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![300, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for i in 0..2 {
        let kv = HIDDEN / 2;
        let of_layer: [(&str, &[usize]); 12] = [
            ("input_layernorm", &[HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[kv, HIDDEN]),
            ("self_attn.v_proj", &[kv, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.q_norm", &[HIDDEN]),
            ("self_attn.k_norm", &[kv]),
            ("mlp.gate", &[N_EXPERTS, HIDDEN]),
            ("mlp.switch_mlp.gate_proj", &[N_EXPERTS, INTER, HIDDEN]),
            ("mlp.switch_mlp.up_proj", &[N_EXPERTS, INTER, HIDDEN]),
            ("mlp.switch_mlp.down_proj", &[N_EXPERTS, HIDDEN, INTER]),
        ];
        let name = |name: &str| format!("model.layers.{i}.{name}.weight");
        shapes.extend(of_layer.map(|(path, shape)| (name(path), shape.to_vec())));
    }
    let mut random = 1u32;
    let tensors: Vec<_> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product()).flat_map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((random >> 8) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
            });
            (name, shape, values.collect::<Vec<u8>>())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    Checkpoint::open(dir).unwrap()
}

/// The heads are gathered for their norm.
#[test]
fn norms_go_over_the_heads_of_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = olmoe(dir.path());
    for n_ranks in [2, 4] {
        check_logits(&checkpoint, n_ranks);
    }
    let text = refusal(&checkpoint, 8, Parallel::Tensor).to_string();
    assert!(text.contains("as model.layers.0.self_attn.k_norm.weight is a norm over all 4 heads"), "{text}");
}

/// Of ranks that share every layer, rank 0 leads and the others follow.
#[rstest]
#[case(QWEN, 4)]
#[case(GLM, 2)]
fn followers_keep_up(#[case] name: &str, #[case] n_ranks: usize) {
    let checkpoint = checkpoint(&format!("models/{name}"));
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let (novel, truth) = (golden.prompt("novel").unwrap(), golden.prompt("truth").unwrap());
    let (_, ()) = led(&checkpoint, n_ranks, Parallel::Tensor, Fusion::FUSED, |model| {
        // Two requests at once, little memory and short steps, then a prompt that the caches know.
        let one = Engine::new(model, None, EngineOptions::new(Fusion::FUSED)).unwrap().kv_bytes_for(200);
        let options = EngineOptions {
            max_kv_bytes: Some(one),
            prefill_chunk: Some(20),
            ..EngineOptions::new(Fusion::FUSED)
        };
        let mut engine = Engine::new(model, None, options).unwrap();
        let first = engine.submit(Request::new(novel.prompt_tokens.clone(), 96)).unwrap();
        engine.submit(Request::new(truth.prompt_tokens.clone(), 60)).unwrap();
        let (mut tokens, mut events) = (Vec::new(), Vec::new());
        while !engine.is_idle() {
            engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Token { id, token } if id == first => tokens.push(token.token),
                    Event::Failed { error, .. } => panic!("{error}"),
                    _ => {}
                }
            }
        }
        let again = Request::new(novel.prompt_tokens.clone(), 96);
        let again = engine.complete(again, |_| ControlFlow::Continue(())).unwrap();
        assert!(again.finished.n_cached_tokens > 0);
        for tokens in [&tokens, &again.tokens] {
            let verdict = check_greedy(&novel.truth_f32, tokens, MARGIN_BOUND);
            assert_eq!(verdict.outcome, Outcome::Equal, "{name} {n_ranks}: {verdict:?}");
        }
    });
}
