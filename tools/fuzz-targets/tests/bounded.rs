//! Runs every target on mutated examples. The mutations are the same every time and take some seconds in all. For
//! longer runs see `fuzz/README.md`.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use fuzz_targets::TARGETS;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Makes a few changes: bytes, numbers, pieces that are removed, doubled or copied from another example, and a
    /// truncated end.
    fn mutate(&mut self, data: &mut Vec<u8>, others: &[Vec<u8>]) {
        const TOKENS: [&[u8]; 22] = [
            b"0",
            b"-1",
            b"1e308",
            b"18446744073709551615",
            b"1.5",
            b"null",
            b"true",
            b"\"\"",
            b"[]",
            b"{}",
            b"NaN",
            b"[[[[",
            b"{\"\":",
            b"{{",
            b"{%",
            b"%}",
            b"}}",
            b"|",
            b"(",
            b"\\u0000",
            b"\xff\xfe",
            b"\x1b[2J",
        ];
        for _ in 0..=self.below(4) {
            let n = data.len();
            let at = self.below(n + 1);
            let len = self.below(24).min(n - at);
            match self.below(9) {
                0 if n > 0 => data[at % n] ^= 1 << self.below(8),
                1 if n > 0 => data[at % n] = self.next() as u8,
                2 => drop(data.drain(at..at + len)),
                3 => data.truncate(at),
                4 => {
                    let piece = data[at..at + len].to_vec();
                    let to = self.below(n + 1);
                    data.splice(to..to, piece);
                }
                5 => {
                    let other = &others[self.below(others.len())];
                    let from = self.below(other.len());
                    let piece = other[from..].iter().take(40).copied().collect::<Vec<_>>();
                    data.splice(at..at, piece);
                }
                // Replaces a number by another one.
                6 => {
                    let digit = (at..n).find(|i| data[*i].is_ascii_digit());
                    if let Some(from) = digit {
                        let to = (from..n).find(|i| !data[*i].is_ascii_digit()).unwrap_or(n);
                        let token = TOKENS[self.below(10)];
                        data.splice(from..to, token.iter().copied());
                    }
                }
                _ => {
                    let token = TOKENS[self.below(TOKENS.len())];
                    data.splice(at..at + len.min(self.below(4)), token.iter().copied());
                }
            }
        }
    }
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// A shard for the model of [`fuzz_targets::CONFIG`], with an embedding, and with experts in several formats.
fn small_shard() -> Vec<u8> {
    let data: Vec<u8> = (0..4096).map(|i| (i * 37 % 251) as u8).collect();
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), Dtype::BF16, vec![8, 32])];
    for (name, parts) in [("gate_proj", 2), ("up_proj", 3)] {
        let path = format!("model.layers.0.mlp.switch_mlp.{name}");
        let format = if parts == 3 {
            (vec![2, 32, 4], Dtype::F16, vec![2, 32, 1])
        } else {
            (vec![2, 32, 4], Dtype::U8, vec![2, 32, 2])
        };
        tensors.push((format!("{path}.weight"), Dtype::U32, format.0));
        tensors.push((format!("{path}.scales"), format.1, format.2.clone()));
        if parts == 3 {
            tensors.push((format!("{path}.biases"), format.1, format.2));
        } else {
            tensors.push((format!("{path}.global_scale"), Dtype::F32, vec![2]));
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape)| {
        let n = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name.as_str(), TensorView::new(*dtype, shape.clone(), &data[..n]).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn read_all(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| read(path)).collect()
}

/// Bytes that lead to a call of an op.
fn op_call(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..3).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// The inputs that mutations start from: files of the fixtures, and small files, in which mutations reach every part.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    const MODELS: [&str; 2] = ["austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit"];
    let of_models =
        |file: &str| MODELS.map(|model| read(&format!("fixtures/models/{model}/{file}"))).to_vec();
    let own = |files: &[&str]| {
        files.iter().map(|f| read(&format!("tools/fuzz-targets/corpus/{f}"))).collect::<Vec<_>>()
    };
    match target {
        "config" => [of_models("config.json"), vec![fuzz_targets::CONFIG.into()]].concat(),
        "shard" => vec![small_shard()],
        "quantized" => (0..63u8).map(|f| vec![f, 2, 5, 3, f % 5, 1, 2, 3, 0xff, 0x7f, 0x80]).collect(),
        "tokenizer" => own(&["byte-level.json", "metaspace.json"]),
        "template" => [of_models("chat_template.jinja"), own(&["tools.jinja", "expressions.jinja"])].concat(),
        "golden" => own(&["golden-1.json", "golden-2.json"]),
        "capsule" => read_all(&[
            "benches/record/2026-11-27-xeon-amx-qwen3-threads-1.json",
            "benches/record/2026-11-27-zen4-validate-qwen.json",
        ]),
        "ops" => (0..2000u64).map(op_call).collect(),
        other => panic!("{other} has no corpus"),
    }
}

/// The number of runs, chosen so that each target takes some seconds in a build with debug assertions.
fn n_runs(target: &str) -> usize {
    match target {
        "template" => 4000,
        "tokenizer" => 3000,
        "quantized" | "capsule" => 2000,
        "ops" => 6000,
        _ => 8000,
    }
}

#[test]
fn mutated_files_are_read_or_refused() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        let mut slowest = Duration::ZERO;
        for seed in 0..n_runs(name) {
            let mut random = Random(seed as u64);
            let mut data = corpus[seed % corpus.len()].clone();
            if seed >= corpus.len() {
                random.mutate(&mut data, &corpus);
            }
            let since = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| target(&data)));
            slowest = slowest.max(since.elapsed());
            if outcome.is_err() {
                panic!("{name}, seed {seed}: {}", String::from_utf8_lossy(&data).escape_debug());
            }
        }
        println!("{name}: slowest {slowest:?}");
    }
}

#[test]
fn calls_of_ops_succeed_and_are_refused() {
    let outcomes: Vec<bool> = (0..2000).filter_map(|seed| fuzz_targets::op_outcome(&op_call(seed))).collect();
    let n_done = outcomes.iter().filter(|done| **done).count();
    let n_refused = outcomes.len() - n_done;
    assert!(n_done > 100 && n_refused > 25, "{n_done} done, {n_refused} refused");
}
