//! What `zmlx bench` measured: every single sample.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The record of a bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BenchRecord {
    /// How often each test was run.
    pub(crate) repetitions: usize,
    /// The paths that were compared, the baseline first.
    pub(crate) fusions: Vec<String>,
    /// The machine's read bandwidth, measured before and after the tests; null if it was not.
    pub(crate) bandwidth: Option<Bandwidth>,
    /// The process's largest resident memory; null if the system does not tell.
    pub(crate) peak_memory_bytes: Option<u64>,
    /// Every test of every path.
    pub(crate) tests: Vec<BenchTest>,
    /// Where the time went; empty if that was not asked for.
    pub(crate) profile: Vec<PhaseTime>,
}

/// What the probe read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Bandwidth {
    /// Bytes per second, of the faster probe.
    pub(crate) bytes_per_second: f64,
    /// Threads that read.
    pub(crate) threads: usize,
}

/// One test on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BenchTest {
    /// As llama-bench calls it: `pp512`, `tg128`, `tg128 @ d4096`; with several sequences `tg128 b4`.
    pub(crate) name: String,
    /// The path.
    pub(crate) fusion: String,
    /// The backend.
    pub(crate) backend: String,
    /// Tokens of the prompt; 0 if decoding is measured.
    pub(crate) n_prompt: usize,
    /// Tokens decoded per sequence; 0 if a prompt is measured.
    pub(crate) n_generate: usize,
    /// Tokens in the caches beforehand.
    pub(crate) depth: usize,
    /// Sequences at once.
    pub(crate) batch: usize,
    /// Tokens that one sample processes, of all sequences together.
    pub(crate) tokens_per_sample: usize,
    /// Seconds of each repetition.
    pub(crate) samples_s: Vec<f64>,
    /// Seconds of every decoded token of every repetition; empty for prompts.
    pub(crate) token_latencies_s: Vec<f64>,
    /// Seconds from a prompt to its first token; empty for decoding.
    pub(crate) ttft_s: Vec<f64>,
    /// The machine's read bandwidth just before each repetition, in bytes per second; empty for prompts, and for models that
    /// caches could hold.
    #[serde(default)]
    pub(crate) probes_bytes_per_second: Vec<f64>,
    /// Bytes of weights and caches that one token reads; null if unknown.
    pub(crate) bytes_per_token: Option<f64>,
    /// Calls of the backend's ops per token; null if they were not counted.
    pub(crate) launches_per_token: Option<f64>,
    /// Barriers of the threads per token; null for prompts, and where nobody counts them.
    pub(crate) barriers_per_token: Option<f64>,
    /// Seconds per token that the first thread waited there; null as above.
    pub(crate) barrier_s_per_token: Option<f64>,
}

/// A part of a decoded token's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PhaseTime {
    /// The path.
    pub(crate) fusion: String,
    /// The test.
    pub(crate) test: String,
    /// `router`, `gate_up`, `down`, `attention`, `head`, `other` or `sync`.
    pub(crate) phase: String,
    /// Seconds.
    pub(crate) seconds_per_token: f64,
    /// Of the token's time, from 0 to 1.
    pub(crate) share: f64,
}
