//! One decode step of a whole model on one core: stock, concat, fused.
//!
//! `qwen3-30b-a3b,layers=2` has the layers' real widths; its vocabulary is cut to 8,192, so that the layers and not
//! the head are measured. Every step takes another token, so other experts: they come from memory, not from a cache.
//! Before criterion's own figures come medians of steps taken in turns, as machines drift between two groups.

use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use zmlx_benches::{fixture, prepared, step};
use zmlx_kernels::Fusion;
use zmlx_models::Checkpoint;

const FUSIONS: [(&str, Fusion); 3] =
    [("stock", Fusion::STOCK), ("concat", Fusion::CONCAT), ("fused", Fusion::FUSED)];

/// Steps of all fusions in turns, forwards and backwards; the same token for each of a round.
fn in_turns(name: &str, n_rounds: u32, mut step: impl FnMut(u32, &Fusion)) {
    let mut times = [const { Vec::new() }; FUSIONS.len()];
    for round in 0..n_rounds {
        for turn in 0..FUSIONS.len() {
            let at = if round % 2 == 0 { turn } else { FUSIONS.len() - 1 - turn };
            // Another token than the turn before, or its experts would come from a cache.
            let token = 101 * (round * FUSIONS.len() as u32 + turn as u32);
            let started = Instant::now();
            step(token, &FUSIONS[at].1);
            times[at].push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let medians = times.each_mut().map(median);
    for ((fusion, _), ms) in FUSIONS.iter().zip(medians) {
        println!("decode in turns/{name}/{fusion}: median {ms:.3} ms, {:.3} of stock", ms / medians[0]);
    }
}

fn decode(c: &mut Criterion) {
    let open = |name: &str| Checkpoint::open(&fixture(name)).expect("a fixture");
    let models = [
        ("embedded", open("austen-glm4-moe-lite-4bit")),
        ("austen-qwen3-moe", open("austen-qwen3-moe-4bit")),
        (
            "qwen3-30b-a3b,layers=2",
            Checkpoint::synthetic("qwen3-30b-a3b,layers=2,vocab=8192", 1).expect("a known architecture"),
        ),
    ];
    for (name, checkpoint) in models {
        let (model, mut pool, slot) = prepared(&checkpoint, 1, 64);
        let vocab = model.architecture().vocab_size as u32;
        let n_rounds = if name.contains("layers") { 200 } else { 2000 };
        in_turns(name, n_rounds, |token, fusion| step(&model, (&mut pool, slot), token % vocab, fusion));
        let mut group = c.benchmark_group(format!("decode/{name}"));
        for (fusion_name, fusion) in
            [("stock", Fusion::STOCK), ("concat", Fusion::CONCAT), ("fused", Fusion::FUSED)]
        {
            let mut token = 0;
            group.bench_function(fusion_name, |b| {
                b.iter(|| {
                    token = (token + 101) % vocab;
                    step(&model, (&mut pool, slot), token, &fusion);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
