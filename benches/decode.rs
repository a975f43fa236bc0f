//! One decode step of a whole model on one core: stock, concat, fused.
//!
//! `qwen3-30b-a3b,layers=2` has the layers' real widths; its vocabulary is cut to 8,192, so that the layers and not
//! the head are measured. Every step takes another token, so other experts: they come from memory, not from a cache.

use criterion::{Criterion, criterion_group, criterion_main};
use zmlx_benches::{fixture, prepared, step};
use zmlx_kernels::Fusion;
use zmlx_models::Checkpoint;

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
        let (model, mut state) = prepared(&checkpoint, 1, 64);
        let vocab = model.config().vocab_size() as u32;
        let mut group = c.benchmark_group(format!("decode/{name}"));
        for (fusion_name, fusion) in
            [("stock", Fusion::STOCK), ("concat", Fusion::CONCAT), ("fused", Fusion::FUSED)]
        {
            let mut token = 0;
            group.bench_function(fusion_name, |b| {
                b.iter(|| {
                    token = (token + 101) % vocab;
                    step(&model, &mut state, token, &fusion);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
