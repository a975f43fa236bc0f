//! What `zmlx bench` measured: every single sample.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The record of a bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BenchRecord {
    /// How often each test was run.
    pub repetitions: usize,
    /// The paths that were compared, the baseline first.
    pub fusions: Vec<String>,
    /// The machine's read bandwidth, measured before and after the tests; null if it was not.
    pub bandwidth: Option<Bandwidth>,
    /// The most memory in use: what the one backend counts of its arrays, else the largest resident size; null if unknown.
    pub peak_memory_bytes: Option<u64>,
    /// Every test of every path.
    pub tests: Vec<BenchTest>,
    /// Where the time went; empty if that was not asked for.
    pub profile: Vec<PhaseTime>,
}

/// What the probe read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bandwidth {
    /// Bytes per second, of the faster probe.
    pub bytes_per_second: f64,
    /// Threads that read.
    pub threads: usize,
}

/// One test on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BenchTest {
    /// As llama-bench calls it: `pp512`, `tg128`, `tg128 @ d4096`; with several sequences `tg128 b4`.
    pub name: String,
    /// The path.
    pub fusion: String,
    /// The backend.
    pub backend: String,
    /// Tokens of the prompt; 0 if decoding is measured.
    pub n_prompt: usize,
    /// Tokens decoded per sequence; 0 if a prompt is measured.
    pub n_generate: usize,
    /// Tokens in the caches beforehand.
    pub depth: usize,
    /// Sequences at once.
    pub batch: usize,
    /// Tokens that one sample processes, of all sequences together.
    pub tokens_per_sample: usize,
    /// Seconds of each repetition.
    pub samples_s: Vec<f64>,
    /// Seconds of every decoded token of every repetition; empty for prompts.
    pub token_latencies_s: Vec<f64>,
    /// Seconds from a prompt to its first token; empty for decoding.
    pub ttft_s: Vec<f64>,
    /// The machine's read bandwidth just before each repetition, in bytes per second; empty for prompts, and for models that
    /// caches could hold.
    #[serde(default)]
    pub probes_bytes_per_second: Vec<f64>,
    /// Bytes of weights and caches that one token reads; null if unknown.
    pub bytes_per_token: Option<f64>,
    /// Calls of the backend's ops per token; null if they were not counted.
    pub launches_per_token: Option<f64>,
    /// Barriers of the threads per token; null for prompts, and on backends that do not count them.
    pub barriers_per_token: Option<f64>,
    /// Seconds per token that the first thread waited there; null as above.
    pub barrier_s_per_token: Option<f64>,
}

/// A part of a decoded token's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseTime {
    /// The path.
    pub fusion: String,
    /// The test.
    pub test: String,
    /// `router`, `gate_up`, `down`, `attention`, `head`, `other` or `sync`.
    pub phase: String,
    /// Seconds.
    pub seconds_per_token: f64,
    /// Of the token's time, from 0 to 1.
    pub share: f64,
}
