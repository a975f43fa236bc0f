//! Writes a random model in llama.cpp's format: blocks of `Q4_0` where MLX has 4-bit groups, f32 elsewhere.
//!
//! Source: the GGUF specification, version 3 (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use half::f16;
use zmlx_models::Qwen3MoeConfig;

const ALIGNMENT: u64 = 32;
/// The number of weights of a block, and of its bytes: a scale and sixteen pairs of codes.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 18;

enum Value {
    U32(u32),
    F32(f32),
    Text(&'static str),
}

/// How the values of a tensor are stored, and how they are generated.
#[derive(Clone, Copy)]
enum Content {
    /// Random codes, with about the spread of trained weights.
    Q4_0,
    /// Random floats with the same spread.
    F32,
    Ones,
}

struct Tensor {
    name: String,
    /// The dimensions, innermost first.
    dims: Vec<usize>,
    content: Content,
}

impl Tensor {
    fn n_values(&self) -> usize {
        self.dims.iter().product()
    }

    fn n_bytes(&self) -> u64 {
        let n = self.n_values() as u64;
        match self.content {
            Content::Q4_0 => n / BLOCK as u64 * BLOCK_BYTES as u64,
            Content::F32 | Content::Ones => 4 * n,
        }
    }
}

/// The bytes of weights that one decoded token reads: everything except the embedding table and the experts that are
/// not chosen.
pub(crate) fn bytes_per_token(c: &Qwen3MoeConfig) -> u64 {
    let bytes = |t: &Tensor| match t.name.as_str() {
        "token_embd.weight" => 0,
        name if name.contains("_exps") => t.n_bytes() / c.num_experts as u64 * c.num_experts_per_tok as u64,
        _ => t.n_bytes(),
    };
    tensors(c).iter().map(bytes).sum()
}

fn metadata(c: &Qwen3MoeConfig) -> Vec<(&'static str, Value)> {
    let n = |v: usize| Value::U32(v as u32);
    vec![
        ("general.architecture", Value::Text("qwen3moe")),
        ("tokenizer.ggml.model", Value::Text("no_vocab")),
        ("qwen3moe.vocab_size", n(c.vocab_size)),
        ("qwen3moe.context_length", n(c.max_position_embeddings)),
        ("qwen3moe.embedding_length", n(c.hidden_size)),
        ("qwen3moe.block_count", n(c.num_hidden_layers)),
        ("qwen3moe.feed_forward_length", n(c.intermediate_size)),
        ("qwen3moe.expert_feed_forward_length", n(c.moe_intermediate_size)),
        ("qwen3moe.expert_count", n(c.num_experts)),
        ("qwen3moe.expert_used_count", n(c.num_experts_per_tok)),
        ("qwen3moe.attention.head_count", n(c.num_attention_heads)),
        ("qwen3moe.attention.head_count_kv", n(c.num_key_value_heads)),
        ("qwen3moe.attention.key_length", n(c.head_dim)),
        ("qwen3moe.attention.value_length", n(c.head_dim)),
        ("qwen3moe.attention.layer_norm_rms_epsilon", Value::F32(c.rms_norm_eps as f32)),
        ("qwen3moe.rope.freq_base", Value::F32(c.rope_theta as f32)),
    ]
}

fn tensors(c: &Qwen3MoeConfig) -> Vec<Tensor> {
    use Content::{F32, Ones, Q4_0};
    let mut tensors = Vec::new();
    let mut add = |name: String, dims: &[usize], content| {
        tensors.push(Tensor { name: format!("{name}.weight"), dims: dims.to_vec(), content });
    };
    let (hidden, expert, n_experts) = (c.hidden_size, c.moe_intermediate_size, c.num_experts);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    add("token_embd".into(), &[hidden, c.vocab_size], Q4_0);
    add("output_norm".into(), &[hidden], Ones);
    add("output".into(), &[hidden, c.vocab_size], Q4_0);
    for i in 0..c.num_hidden_layers {
        let mut add = |name: &str, dims: &[usize], content| add(format!("blk.{i}.{name}"), dims, content);
        add("attn_norm", &[hidden], Ones);
        add("attn_q", &[hidden, q], Q4_0);
        add("attn_k", &[hidden, kv], Q4_0);
        add("attn_v", &[hidden, kv], Q4_0);
        add("attn_output", &[q, hidden], Q4_0);
        add("attn_q_norm", &[c.head_dim], Ones);
        add("attn_k_norm", &[c.head_dim], Ones);
        add("ffn_norm", &[hidden], Ones);
        add("ffn_gate_inp", &[hidden, n_experts], F32);
        add("ffn_gate_exps", &[hidden, expert, n_experts], Q4_0);
        add("ffn_up_exps", &[hidden, expert, n_experts], Q4_0);
        add("ffn_down_exps", &[expert, hidden, n_experts], Q4_0);
    }
    tensors
}

/// Writes the model.
///
/// # Errors
/// If the length of a row is not a multiple of the block size, or the file cannot be written.
pub(crate) fn write(path: &Path, config: &Qwen3MoeConfig) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let (metadata, tensors) = (metadata(config), tensors(config));
    let mut header = Vec::new();
    let text = |to: &mut Vec<u8>, s: &str| {
        to.extend((s.len() as u64).to_le_bytes());
        to.extend(s.as_bytes());
    };
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in &metadata {
        text(&mut header, key);
        match value {
            Value::U32(v) => {
                header.extend(4u32.to_le_bytes());
                header.extend(v.to_le_bytes());
            }
            Value::F32(v) => {
                header.extend(6u32.to_le_bytes());
                header.extend(v.to_le_bytes());
            }
            Value::Text(v) => {
                header.extend(8u32.to_le_bytes());
                text(&mut header, v);
            }
        }
    }
    let mut offset = 0u64;
    for t in &tensors {
        ensure!(
            t.dims[0].is_multiple_of(BLOCK),
            "{}: rows of {} weights are not whole blocks",
            t.name,
            t.dims[0]
        );
        text(&mut header, &t.name);
        header.extend((t.dims.len() as u32).to_le_bytes());
        for d in &t.dims {
            header.extend((*d as u64).to_le_bytes());
        }
        let kind = if matches!(t.content, Content::Q4_0) { 2u32 } else { 0 };
        header.extend(kind.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset = (offset + t.n_bytes()).next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    out.write_all(&header)?;
    let mut random = Random(1);
    for t in &tensors {
        let mut left = t.n_bytes() as usize;
        while left > 0 {
            // The values that fill about a megabyte. The last part is truncated.
            let part = match t.content {
                Content::Q4_0 => random.blocks((1 << 20) / BLOCK_BYTES),
                Content::F32 => random.floats(1 << 18),
                Content::Ones => 1f32.to_le_bytes().repeat(1 << 18),
            };
            let n = left.min(part.len());
            out.write_all(&part[..n])?;
            left -= n;
        }
        let padding = t.n_bytes().next_multiple_of(ALIGNMENT) - t.n_bytes();
        out.write_all(&vec![0; padding as usize])?;
    }
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}

/// Numbers from a seed: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn blocks(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(n * BLOCK_BYTES);
        for _ in 0..n {
            // Codes are -8 to 7; their standard deviation is 4.6.
            let scale = f16::from_f32(0.004 + (self.next() >> 54) as f32 * 1e-6);
            bytes.extend(scale.to_le_bytes());
            bytes.extend(self.next().to_le_bytes());
            bytes.extend(self.next().to_le_bytes());
        }
        bytes
    }

    fn floats(&mut self, n: usize) -> Vec<u8> {
        (0..n)
            .flat_map(|_| (((self.next() >> 40) as f32 / 8_388_608.0 - 1.0) * 0.035).to_le_bytes())
            .collect()
    }
}
