//! How many ops of `Backend` a decoded token takes: `docs/LAUNCHES.md` holds what is counted here.

use std::collections::BTreeMap;

use zmlx_kernels::Fusion;
use zmlx_models::{Input, Logits, PoolOptions, TapValue};

use crate::{GLM, QWEN, load, repository};

type Counts = BTreeMap<&'static str, usize>;

const FUSIONS: [(&str, Fusion); 3] =
    [("stock", Fusion::STOCK), ("concat", Fusion::CONCAT), ("fused", Fusion::FUSED)];

/// The ops of one decoded token.
#[derive(Debug, PartialEq)]
struct Step {
    /// The embedding and the norm before the first layer.
    start: Counts,
    layers: Vec<Counts>,
    /// The head.
    end: Counts,
}

impl Step {
    fn total(&self) -> usize {
        [&self.start, &self.end].into_iter().chain(&self.layers).map(sum).sum()
    }
}

fn sum(counts: &Counts) -> usize {
    counts.values().sum()
}

/// Decodes the second token of a sequence.
fn count(name: &str, fusion: &Fusion) -> Step {
    let model = load(name, None);
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let input = Input { slot, tokens: &[5], logits: Logits::Last };
    model.forward(&mut pool, &[input], fusion).unwrap();
    let b = model.backend().hooks();
    b.take_counts();
    let (mut start, mut layers, mut end) = (Counts::new(), Vec::new(), Counts::new());
    let mut tap = |name: &str, _: TapValue<'_, _>| {
        if name == "embed" {
            start = b.take_counts();
        } else if name.starts_with("layers.") && name.ends_with(".out") {
            layers.push(b.take_counts());
        } else if name == "logits" {
            end = b.take_counts();
        }
        None
    };
    let input = Input { tokens: &[7], ..input };
    model.forward_tapped(&mut pool, &[input], fusion, Some(&mut tap)).unwrap();
    // The norm before the first layer is counted with that layer. All other layers end with the norm of the next one.
    *layers[0].get_mut("rms_norm").unwrap() -= 1;
    layers[0].retain(|_, n| *n > 0);
    start.insert("rms_norm", 1);
    Step { start, layers, end }
}

#[test]
fn the_document_holds_the_ops_that_are_counted() {
    let [glm, qwen] = [GLM, QWEN].map(|name| FUSIONS.map(|(_, fusion)| count(name, &fusion)));
    for steps in [&glm, &qwen] {
        for step in steps {
            let n = step.layers.len();
            assert!(n > 2 && step.layers[1..].iter().all(|l| *l == step.layers[1]), "{step:#?}");
        }
    }
    // Layers and dense layers of the real models: fixtures/models and crates/zmlx-models/src/checkpoint/configs.
    let mut totals = "| model | stock | concat | fused |\n|---|---|---|---|\n".to_owned();
    for (name, steps, n_layers) in [
        ("GLM fixture", &glm, None),
        ("GLM-4.7-Flash", &glm, Some(47)),
        ("Qwen3 fixture", &qwen, None),
        ("Qwen3-30B-A3B", &qwen, Some(48)),
    ] {
        let [a, b, c] = [0, 1, 2].map(|i| {
            let step = &steps[i];
            let more = n_layers.map_or(0, |n| n - step.layers.len());
            step.total() + more * sum(&step.layers[1])
        });
        totals +=
            &format!("| {name}, {} layers | {a} | {b} | {c} |\n", n_layers.unwrap_or(steps[0].layers.len()));
    }
    let path = repository().join("docs/LAUNCHES.md");
    let document = std::fs::read_to_string(&path).unwrap_or_default();
    let section = format!("### Ops of a token\n\n{totals}");
    assert!(document.contains(&section), "{} should contain:\n{section}", path.display());
}
