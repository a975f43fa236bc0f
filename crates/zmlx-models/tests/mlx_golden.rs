//! Both tiny models on MLX, compared with recordings of mlx-lm: the same bf16 tokens, and the same bits at every tap.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::mlx::{MlxBackend, Numerics};
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::engine::Token;
use zmlx_models::{
    CachePool, Checkpoint, Event, Input, Logits, Model, PoolOptions, Request, Slot, TapValue, generate,
};
use zmlx_oracle::compare::{differing_expert_sets, rel_rms};
use zmlx_oracle::golden::{Golden, Outcome, TensorFile, check_greedy};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn load(name: &str, numerics: Numerics) -> Model<MlxBackend> {
    let checkpoint = Checkpoint::open(&fixtures().join("models").join(name)).unwrap();
    Model::load(MlxBackend::new(numerics).unwrap(), &checkpoint, &mut |_, _| ()).unwrap()
}

fn greedy(
    model: &Model<MlxBackend>,
    prompt: &[u32],
    n: usize,
    fusion: Fusion,
    mut on_token: impl FnMut(&Token),
) -> Vec<u32> {
    let request = Request::new(prompt.to_vec(), n);
    let generation = generate(model, None, fusion, request, |event| {
        if let Event::Token { token, .. } = event {
            on_token(token);
        }
        ControlFlow::Continue(())
    });
    generation.unwrap().tokens
}

/// The presets, and each fused op on its own. Without Metal all of them are compositions of stock ops.
fn fusions() -> Vec<Fusion> {
    let texts =
        ["stock", "concat", "fused", "stock,+combine", "stock,+dense_swiglu", "stock,+route", "stock,+qkv"];
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// The tokens of every prompt, with their margins and log-probabilities as recorded.
#[rstest]
fn greedy_tokens_are_those_of_mlx_lm(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let model = load(name, Numerics::Exact);
    for (i, fusion) in fusions().into_iter().enumerate() {
        for p in &golden.prompts {
            // MLX's CPU kernels take seconds per text. So all texts run stock, a short prompt and a chat prompt run
            // concatenated and fused, and a short one runs with each op alone.
            let is_short = p.name == "truth";
            if i > 0 && !is_short && (i > 2 || p.name != "chat") {
                continue;
            }
            let mut at = 0;
            let check = |step: &Token| {
                // The recording has seven digits.
                let (margin, logprob) = (f64::from(step.margin), step.logprob);
                let is_near = |got: f64, want: f64| (got - want).abs() <= 1e-6 * want.abs().max(1e-3);
                assert!(is_near(margin, p.bf16.top1_top2_margin[at]), "{name} {fusion} {} {at}", p.name);
                assert!(is_near(logprob, p.bf16.logprobs[at]), "{name} {fusion} {} {at}", p.name);
                at += 1;
            };
            let got = greedy(&model, &p.prompt_tokens, golden.decode.tokens, fusion, check);
            assert_eq!(got, p.bf16.tokens, "{name} {fusion} {}", p.name);
        }
    }
}

/// The values of a tap, widened. Experts are numbers, which f32 holds exactly.
fn taps(
    model: &Model<MlxBackend>,
    (pool, slot): (&mut CachePool<MlxBackend>, Slot),
    tokens: &[u32],
    fusion: &Fusion,
) -> BTreeMap<String, Vec<f32>> {
    let mut seen = BTreeMap::new();
    let backend = model.backend();
    let mut tap = |name: &str, value: TapValue<'_, MlxBackend>| {
        let mut values = Vec::new();
        match value {
            TapValue::Tensor(x) => backend.read(x, &mut values).unwrap(),
            TapValue::Indices(x) => {
                let mut indices = Vec::new();
                backend.read_indices(x, &mut indices).unwrap();
                values.extend(indices.into_iter().map(|i| i as f32));
            }
        }
        seen.insert(name.to_owned(), values);
        None
    };
    let input = Input { slot, tokens, logits: Logits::All };
    model.forward_tapped(pool, &[input], fusion, Some(&mut tap)).unwrap();
    seen
}

/// Bit for bit, with experts in the engine's order. Then the logits of sixteen steps with the cache.
#[rstest]
fn taps_have_the_bits_of_mlx_lm(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
    #[values("stock", "concat", "fused")] fusion: &str,
) {
    let file = TensorFile::open(fixtures().join(format!("golden/{name}-taps.safetensors"))).unwrap();
    let (tokens, decode_tokens) =
        (file.ints("tokens").unwrap().data, file.ints("decode_tokens").unwrap().data);
    let fusion: Fusion = fusion.parse().unwrap();
    let model = load(name, Numerics::Exact);
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let got = taps(&model, (&mut pool, slot), &tokens, &fusion);
    let names: Vec<&str> = file.names().filter_map(|n| n.strip_prefix("bf16.")).collect();
    assert_eq!(names.len(), got.len() + 1, "every tap is recorded and every recording is a tap");
    for tap in names.into_iter().filter(|n| *n != "decode_logits") {
        let want: Vec<f32> = if tap.ends_with("expert_indices") {
            file.ints(&format!("bf16.{tap}")).unwrap().data.iter().map(|i| *i as f32).collect()
        } else {
            file.floats(&format!("bf16.{tap}")).unwrap().data
        };
        assert!(got[tap] == want, "{name} {fusion} {tap}: rel_rms {}", rel_rms(&got[tap], &want));
    }
    let want = file.floats("bf16.decode_logits").unwrap();
    for (i, token) in decode_tokens.iter().enumerate() {
        let input = Input { slot, tokens: &[*token], logits: Logits::Last };
        let y = model.forward(&mut pool, &[input], &fusion).unwrap();
        let mut logits = Vec::new();
        model.backend().read(&y, &mut logits).unwrap();
        assert!(logits == want.row(i), "{name} {fusion} step {i}: {}", rel_rms(&logits, want.row(i)));
    }
}

/// f32 sums are in another order than in the recording.
const TAP_BOUND: f64 = 2e-5;

/// The accurate mode, compared with the recorded f32 run.
#[rstest]
fn the_accurate_mode_is_the_f32_truth(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let file = TensorFile::open(fixtures().join(format!("golden/{name}-taps.safetensors"))).unwrap();
    let tokens = file.ints("tokens").unwrap().data;
    let model = load(name, Numerics::Accurate);
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let got = taps(&model, (&mut pool, slot), &tokens, &Fusion::STOCK);
    for tap in file.names().filter_map(|n| n.strip_prefix("f32.")).filter(|n| *n != "decode_logits") {
        if tap.ends_with("expert_indices") {
            let want = file.ints(&format!("f32.{tap}")).unwrap();
            let got: Vec<u32> = got[tap].iter().map(|i| *i as u32).collect();
            assert_eq!(differing_expert_sets(&got, &want.data, want.shape[1]), [0usize; 0], "{name} {tap}");
        } else if !tap.ends_with("expert_weights") {
            // The weights are in another order of experts. The layer's result verifies them.
            let want = file.floats(&format!("f32.{tap}")).unwrap();
            let error = rel_rms(&got[tap], &want.data);
            assert!(error <= TAP_BOUND, "{name} {tap}: {error}");
        }
    }
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let novel = golden.prompts.iter().find(|p| p.name == "novel").unwrap();
    let n = golden.decode.tokens;
    let got = greedy(&model, &novel.prompt_tokens, n, Fusion::STOCK, |_| ());
    assert_eq!(check_greedy(&novel.truth_f32, &got, 1e-3).outcome, Outcome::Equal, "{name}");
}
