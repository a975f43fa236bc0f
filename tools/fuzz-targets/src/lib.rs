//! The readers of untrusted bytes, each as a function that takes any bytes. A reader may refuse its input, but it must
//! neither panic nor take long. A test runs all of them on mutated examples, and `fuzz/` runs them under cargo-fuzz.
#![forbid(unsafe_code)]

mod ops;

use bytes::Bytes;
pub use ops::{op_outcome, ops};
use zmlx_bench::capsule::{Capsule, compare, facts};
use zmlx_bench::report::{self, Recorded};
use zmlx_kernels::cpu::{CpuBackend, Level};
use zmlx_kernels::{Backend, DType, HostWeight, QuantSpec, WeightBytes, WeightFormat};
use zmlx_models::config::ConfigFile;
use zmlx_models::{ChatMessage, ChatRequest, ChatTemplate, Checkpoint, Tokenizer};
use zmlx_oracle::checkpoint as oracle;
use zmlx_oracle::golden::{GoldenFile, Rounding};

/// The name of a target, which is also that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("config", config),
    ("shard", shard),
    ("quantized", quantized),
    ("tokenizer", tokenizer),
    ("template", template),
    ("golden", golden),
    ("capsule", capsule),
    ("ops", ops),
];

/// The config of the model whose shards are fuzzed. It has a single layer, so that few tensors are enough for a
/// complete model.
pub const CONFIG: &str = r#"{
    "model_type": "qwen3_moe", "vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 32, "moe_intermediate_size": 32, "num_experts": 2,
    "num_experts_per_tok": 1, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": true, "eos_token_id": 7
}"#;

/// Reads `config.json`, with the engine and with the reference implementation.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = ConfigFile::parse("config.json", &text, Some(&text));
    let _ = oracle::Checkpoint::from_bytes(&text, &[]);
}

/// Reads a safetensors file: its header, and the weights of a model.
pub fn shard(data: &[u8]) {
    let shards = vec![("model.safetensors".to_owned(), Bytes::copy_from_slice(data))];
    if let Ok(checkpoint) = Checkpoint::from_parts("fuzz", CONFIG, None, shards) {
        let mut reader = checkpoint.reader();
        let _ = reader.matrix("model.embed_tokens", 8, 32);
        for expert in ["gate_proj", "up_proj"] {
            let one = |e| format!("model.layers.0.mlp.experts.{e}.{expert}");
            let _ = reader.bank(&format!("model.layers.0.mlp.switch_mlp.{expert}"), one, [2, 32, 32]);
        }
        if let Err(error) = reader.finish() {
            let _ = error.to_string();
        }
    }
    if let Ok(checkpoint) = oracle::Checkpoint::from_bytes(CONFIG, &[data]) {
        let _ = checkpoint.weight("model.embed_tokens", &[8, 32]);
        let _ = checkpoint.experts("model.layers.0.mlp", [2, 32, 32]);
    }
}

/// Makes a quantised weight of any bytes: they select its format and its size, then fill its buffers. The weight is
/// dequantised and multiplied.
pub fn quantized(data: &[u8]) {
    let [format, n_mats, n_out, n_groups, cut, rest @ ..] = data else { return };
    let all = QuantSpec::all();
    let spec = all[usize::from(*format) % all.len()];
    let floats = [DType::F32, DType::F16, DType::BF16][usize::from(*format) / all.len() % 3];
    let scale_dtype = if spec.has_biases() { floats } else { DType::U8 };
    let [n_mats, n_out, n_groups] = [n_mats, n_out, n_groups].map(|n| usize::from(*n % 9));
    let n_in = n_groups * spec.group_size();
    let n_scales = n_mats * n_out * n_groups * scale_dtype.size_bytes();
    // In some cases one buffer is longer than it should be.
    let len = |n: usize, which: u8| if *cut == which { n + 1 } else { n };
    let take = |n: usize| Bytes::from_iter(rest.iter().copied().chain(std::iter::repeat(0xa5)).take(n));
    let bytes = WeightBytes {
        data: take(len(n_mats * n_out * spec.packed_bytes(n_in), 1)),
        scales: take(len(n_scales, 2)),
        biases: if spec.has_biases() || *cut == 3 { take(len(n_scales, 4)) } else { Bytes::new() },
    };
    let Ok(weight) =
        HostWeight::new(WeightFormat::Quantized { spec, scale_dtype }, [n_mats, n_out, n_in], bytes)
    else {
        return;
    };
    assert_eq!(weight.to_f32_vec().len(), n_mats * n_out * n_in);
    let Ok(backend) = CpuBackend::with_level(Level::fastest(), Some(1)) else { return };
    let done = backend.upload(weight).and_then(|weight| {
        let x = backend.tensor(&vec![1.0; 3 * n_mats * n_in], &[3, n_mats, n_in])?;
        backend.head_linear(&x, &weight)
    });
    if let Ok(y) = done {
        assert_eq!(backend.shape(&y), [3, n_mats, n_out]);
    }
}

/// Reads `tokenizer.json`, and encodes and decodes a text with it.
pub fn tokenizer(data: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_json("tokenizer.json", data)
        && let Ok(tokens) = tokenizer.encode("It is a truth, 1813!\n <|user|> é🦀")
    {
        let _ = tokenizer.decode(&tokens);
        let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    }
}

/// Reads `chat_template.jinja`, and renders a conversation with it.
pub fn template(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let Ok(template) = ChatTemplate::from_parts("fuzz", None, Some(text)) else { return };
    let messages = [ChatMessage::new("system", "Be brief."), ChatMessage::new("user", "Who are you?")];
    if let Err(error) = template.render(&ChatRequest::new(&messages)) {
        let _ = error.to_string();
    }
}

/// Reads a golden file of either version.
pub fn golden(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(file) = GoldenFile::parse("golden.json", &text, Rounding::F32) {
        for prompt in &file.prompts {
            let _ = prompt.check(&[1, 2, 3], 1e-3);
            let _ = prompt.check(&prompt.tokens, 1e-3);
        }
    }
}

/// Reads a capsule, describes it, and writes a report about it.
pub fn capsule(data: &[u8]) {
    let Ok(capsule) = Capsule::parse(&String::from_utf8_lossy(data)) else { return };
    let _ = facts::about(&capsule);
    if let Some(bench) = &capsule.bench {
        let _ = (facts::speed(bench), facts::profile(bench));
    }
    if let Some(validation) = &capsule.validate {
        let _ = facts::validation(validation);
    }
    let _ = compare::facts(&capsule, &capsule);
    let _ = compare::must_be_comparable(&capsule, &capsule, false);
    let _ = compare::table(&compare::pairs(&capsule, &capsule));
    let _ = capsule.to_json();
    let recorded = [Recorded { file: "capsule.json".to_owned(), capsule }];
    let _ = (report::markdown(&recorded), report::html(&recorded));
}
