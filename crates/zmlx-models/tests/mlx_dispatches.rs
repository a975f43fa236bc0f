//! How many kernels MLX dispatches on Metal for a decoded token, layer by layer: `docs/LAUNCHES.md` holds what is counted
//! here. Nothing of it runs on a GPU: the counts are of the graph that MLX builds.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use zmlx_kernels::mlx::{Array, Dispatches, MlxBackend, Numerics, Recording};
use zmlx_kernels::{Backend, Fusion, SampleSettings};
use zmlx_models::{Checkpoint, Input, Logits, Model, PoolOptions, TapValue};

const FUSIONS: [Fusion; 3] = [Fusion::STOCK, Fusion::CONCAT, Fusion::FUSED];

/// Sequences of a batch.
const BATCHES: [usize; 3] = [2, 4, 8];

/// What a step takes that decodes one token of each sequence.
struct Step {
    layers: Vec<Dispatches>,
    /// The embedding, the last norm, the head and the choice of the next tokens.
    rest: Dispatches,
}

impl Step {
    /// Of a model with so many layers, of which the first is like the first one here and all others are like the second.
    fn total(&self, n_layers: usize) -> usize {
        self.rest.total() + self.layers[0].total() + (n_layers - 1) * self.layers[1].total()
    }
}

/// The second token of each sequence, and the choice of the third on the device, as `generate` does it.
fn count(model: &Model<MlxBackend>, fusion: &Fusion, n_sequences: usize) -> Step {
    let b = model.backend();
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let input = |slot| Input { slot, tokens: &[5], logits: Logits::Last };
    b.wait(&model.forward(&mut pool, &[input(slot)], fusion).unwrap()).unwrap();
    let mut slots = vec![slot];
    slots.extend((1..n_sequences).map(|_| pool.fork(slot, 1).unwrap()));
    let inputs: Vec<_> = slots.into_iter().map(input).collect();
    let recording = Recording::start();
    let mut outs: Vec<Array> = Vec::new();
    let mut tap = |name: &str, value: TapValue<'_, MlxBackend>| {
        if let TapValue::Tensor(x) = value
            && (name == "embed" || name.starts_with("layers.") && name.ends_with(".out"))
        {
            outs.push(x.clone());
        }
        None
    };
    let y = model.forward_tapped(&mut pool, &inputs, fusion, Some(&mut tap)).unwrap();
    let settings =
        SampleSettings { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition: None, seed: 0 };
    let rows: Vec<_> = (0..n_sequences).map(|row| (row, settings)).collect();
    let chosen: Vec<_> = b.sample(&y, &rows).unwrap().into_iter().map(Option::unwrap).collect();
    let counts: Vec<Dispatches> = outs.iter().map(|x| recording.count(&[x]).unwrap()).collect();
    let all = recording.count(&chosen.iter().map(|chosen| chosen.array()).collect::<Vec<_>>()).unwrap();
    let mut layers: Vec<Dispatches> = counts.windows(2).map(|pair| pair[1].since(&pair[0])).collect();
    let before_head = counts.last().unwrap();
    let mut rest = all.since(before_head);
    let mut outside = counts[0].0.clone();
    if fusion.add_rms_norm.is_on() {
        // A layer ends with the norm before the next one; only the first has its own.
        let of_first = layers[0].0.get_mut("rms_norm").unwrap();
        *of_first -= 1;
        layers[0].0.retain(|_, n| *n > 0);
        outside.insert("rms_norm".to_owned(), 1);
    }
    for (name, n) in outside {
        *rest.0.entry(name).or_default() += n;
    }
    Step { layers, rest }
}

/// A row per kernel that a layer of any fusion has, and their sum.
fn table(of: [&Dispatches; 3]) -> String {
    let mut names: Vec<&String> = of.iter().flat_map(|d| d.0.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let mut text = "| dispatches | stock | concat | fused |\n|---|---|---|---|\n".to_owned();
    for name in names {
        let [a, b, c] = of.map(|d| d.0.get(name).map_or(String::new(), usize::to_string));
        text += &format!("| `{name}` | {a} | {b} | {c} |\n");
    }
    let [a, b, c] = of.map(Dispatches::total);
    text + &format!("| sum | {a} | {b} | {c} |\n")
}

#[test]
fn the_document_holds_what_is_counted() {
    let mut sections = Vec::new();
    let mut totals = "| model | stock | concat | fused |\n|---|---|---|---|\n".to_owned();
    let mut batches =
        "| model | sequences | stock | concat | fused | fused, each |\n|---|---|---|---|---|---|\n"
            .to_owned();
    // Layers as the real models have them, but few.
    for (title, name, n_layers) in
        [("Qwen3-30B-A3B", "qwen3-30b-a3b", 48), ("GLM-4.7-Flash", "glm-4.7-flash", 47)]
    {
        let checkpoint = Checkpoint::synthetic(&format!("{name},layers=2,vocab=512"), 1).unwrap();
        let backend = MlxBackend::new(Numerics::Exact).unwrap();
        let model = Model::load(backend, &checkpoint, &mut |_, _| ()).unwrap();
        let steps = FUSIONS.map(|fusion| count(&model, &fusion, 1));
        let layer = |i: usize| table([0, 1, 2].map(|fusion| &steps[fusion].layers[i]));
        if layer(0) != layer(1) {
            sections.push((format!("{title}, dense layer"), layer(0)));
        }
        sections.push((format!("{title}, layer with experts"), layer(1)));
        sections.push((format!("{title}, outside the layers"), table([0, 1, 2].map(|i| &steps[i].rest))));
        let [a, b, c] = steps.each_ref().map(|step| step.total(n_layers));
        totals += &format!("| {title}, {n_layers} layers | {a} | {b} | {c} |\n");
        batches += &format!("| {title}, {n_layers} layers | 1 | {a} | {b} | {c} | {c} |\n");
        for n in BATCHES {
            let steps = FUSIONS.map(|fusion| count(&model, &fusion, n));
            let [a, b, c] = steps.each_ref().map(|step| step.total(n_layers));
            let each = c as f64 / n as f64;
            batches += &format!("| {title}, {n_layers} layers | {n} | {a} | {b} | {c} | {each:.0} |\n");
            if n == 4 {
                let layer = table([0, 1, 2].map(|fusion| &steps[fusion].layers[1]));
                sections.push((format!("{title}, layer with experts, 4 sequences"), layer));
            }
        }
    }
    sections.push(("A step of several sequences".to_owned(), batches));
    sections.push(("A token".to_owned(), totals));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/LAUNCHES.md");
    let document = std::fs::read_to_string(&path).unwrap_or_default();
    let sections = sections.into_iter().map(|(title, table)| format!("### {title}\n\n{table}"));
    let missing: Vec<String> = sections.filter(|section| !document.contains(section)).collect();
    assert!(missing.is_empty(), "{} should contain:\n{}", path.display(), missing.join("\n"));
}
