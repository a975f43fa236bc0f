//! Statistics of an engine.

/// What an engine has done since it was made, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Number of requests that were accepted.
    pub n_requests: u64,
    /// Number of requests that finished.
    pub n_finished: u64,
    /// Number of requests that their callers ended.
    pub n_cancelled: u64,
    /// Number of requests that failed.
    pub n_failed: u64,
    /// How often a sequence gave up its slot for lack of memory.
    pub n_preemptions: u64,
    /// Number of steps.
    pub n_steps: u64,
    /// Number of prompt tokens that were computed. Tokens that a preemption made it compute again count again.
    pub n_prompt_tokens: u64,
    /// Number of prompt tokens that were not computed, because another sequence had the same beginning.
    pub n_cached_tokens: u64,
    /// Number of tokens that were generated.
    pub n_generated_tokens: u64,
    /// Number of sequences that continued from the beginning of another.
    pub n_prefix_hits: u64,
    /// Number of sequences that started from nothing.
    pub n_prefix_misses: u64,
    /// Number of idle sequences that were dropped to make room.
    pub n_evictions: u64,
    /// Number of sequences that have a slot now.
    pub n_running: usize,
    /// Number of sequences that wait for a slot now.
    pub n_waiting: usize,
    /// Number of idle sequences now.
    pub n_idle: usize,
    /// Bytes of keys and values now.
    pub kv_bytes: u64,
    /// Bytes of idle sequences now. What several share counts for each of them.
    pub idle_bytes: u64,
}
