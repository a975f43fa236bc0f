//! How many ops a decoded token takes, layer by layer. `docs/LAUNCHES.md` holds these counts.

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

/// A row for each op that a layer has in any fusion, and their sum.
fn table(of: [&Counts; 3]) -> String {
    let mut ops: Vec<&str> = of.iter().flat_map(|c| c.keys().copied()).collect();
    ops.sort_unstable();
    ops.dedup();
    let mut text = "| op | stock | concat | fused |\n|---|---|---|---|\n".to_owned();
    for op in ops {
        let [a, b, c] = of.map(|counts| counts.get(op).map_or("".to_owned(), usize::to_string));
        text += &format!("| `{op}` | {a} | {b} | {c} |\n");
    }
    let [a, b, c] = of.map(sum);
    text + &format!("| sum | {a} | {b} | {c} |\n")
}

#[test]
fn the_document_holds_what_is_counted() {
    let [glm, qwen] = [GLM, QWEN].map(|name| FUSIONS.map(|(_, fusion)| count(name, &fusion)));
    for steps in [&glm, &qwen] {
        for step in steps {
            let n = step.layers.len();
            assert!(n > 2 && step.layers[1..].iter().all(|l| *l == step.layers[1]), "{step:#?}");
        }
    }
    let layer =
        |steps: &[Step; 3], i: usize| table([&steps[0].layers[i], &steps[1].layers[i], &steps[2].layers[i]]);
    // The layers and dense layers of the real models: fixtures/models and crates/zmlx-models/src/checkpoint/configs.
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
    let missing: String = [
        ("GLM, layer with experts", layer(&glm, 1)),
        ("GLM, dense layer", layer(&glm, 0)),
        ("Qwen3, layer with experts", layer(&qwen, 1)),
        ("A token", totals),
    ]
    .into_iter()
    .map(|(title, table)| format!("### {title}\n\n{table}"))
    .filter(|section| !document.contains(section))
    .collect();
    assert!(missing.is_empty(), "{} should contain:\n{missing}", path.display());
}
