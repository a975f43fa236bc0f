//! The results of `zmlx bench`, with every single sample.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The record of a bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BenchRecord {
    /// How often each test was run.
    pub repetitions: usize,
    /// The paths that were compared, the baseline first.
    pub fusions: Vec<String>,
    /// The machine's read bandwidth, measured before and after the tests; null if it was not measured.
    pub bandwidth: Option<Bandwidth>,
    /// The most memory in use: what the one backend counts of its arrays, else the largest resident size; null if unknown.
    pub peak_memory_bytes: Option<u64>,
    /// Every test of every path.
    pub tests: Vec<BenchTest>,
    /// Where the time of a token goes; empty if this was not requested.
    pub profile: Vec<PhaseTime>,
}

/// The result of the memory probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bandwidth {
    /// Bytes per second, from the faster of the two measurements.
    pub bytes_per_second: f64,
    /// Number of threads that read.
    pub threads: usize,
}

/// One test on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BenchTest {
    /// The test's name in llama-bench's form: `pp512`, `tg128`, `tg128 @ d4096`; with several sequences `tg128 b4`.
    pub name: String,
    /// The path.
    pub fusion: String,
    /// The backend.
    pub backend: String,
    /// Number of prompt tokens; 0 if decoding is measured.
    pub n_prompt: usize,
    /// Number of tokens decoded per sequence; 0 if a prompt is measured.
    pub n_generate: usize,
    /// Number of tokens in the caches beforehand.
    pub depth: usize,
    /// Number of sequences that are decoded at once.
    pub batch: usize,
    /// Number of tokens that one sample processes, over all sequences.
    pub tokens_per_sample: usize,
    /// The time of each repetition, in seconds.
    pub samples_s: Vec<f64>,
    /// The time of every decoded token of every repetition, in seconds; empty for prompts.
    pub token_latencies_s: Vec<f64>,
    /// The time from a prompt to its first token, in seconds; empty for decoding.
    pub ttft_s: Vec<f64>,
    /// The machine's read bandwidth just before each repetition, in bytes per second; empty for prompts, and for models
    /// so small that caches could hold them.
    #[serde(default)]
    pub probes_bytes_per_second: Vec<f64>,
    /// Bytes of weights and caches that one token reads; null if this is not known.
    pub bytes_per_token: Option<f64>,
    /// Number of calls of the backend's ops per token; null if they were not counted.
    pub launches_per_token: Option<f64>,
    /// Number of thread barriers per token; null for prompts, and for backends that do not count them.
    pub barriers_per_token: Option<f64>,
    /// The time per token for which the first thread waited at barriers, in seconds; null in the same cases.
    pub barrier_s_per_token: Option<f64>,
}

impl BenchTest {
    /// Whether its weights lie in the memory that the probes read. Those of `cuda` do not.
    pub fn reads_probed_memory(&self) -> bool {
        self.backend != "cuda"
    }
}

/// A part of the time of a decoded token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseTime {
    /// The path.
    pub fusion: String,
    /// The test.
    pub test: String,
    /// `router`, `gate_up`, `down`, `attention`, `head`, `other` or `sync`.
    pub phase: String,
    /// The time per token, in seconds.
    pub seconds_per_token: f64,
    /// The fraction of the token's time, from 0 to 1.
    pub share: f64,
}
