//! What an engine counts.

/// What an engine has done since it was made, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that were taken in.
    pub n_requests: u64,
    /// Those that came to their end.
    pub n_finished: u64,
    /// Those that their callers ended.
    pub n_cancelled: u64,
    /// Those that failed.
    pub n_failed: u64,
    /// How often a sequence gave its place up for lack of memory.
    pub n_preemptions: u64,
    /// Steps.
    pub n_steps: u64,
    /// Tokens of prompts that were computed, again after a preemption.
    pub n_prompt_tokens: u64,
    /// Tokens of prompts that were not computed, because another sequence had begun so.
    pub n_cached_tokens: u64,
    /// Tokens that were generated.
    pub n_generated_tokens: u64,
    /// Sequences that went on from another's beginning.
    pub n_prefix_hits: u64,
    /// Sequences that began anew.
    pub n_prefix_misses: u64,
    /// Idle sequences that were dropped for others.
    pub n_evictions: u64,
    /// Sequences that have a slot now.
    pub n_running: usize,
    /// Sequences that wait for one now.
    pub n_waiting: usize,
    /// Idle sequences now.
    pub n_idle: usize,
    /// Bytes of keys and values now.
    pub kv_bytes: u64,
    /// Those of idle sequences; what several share counts for each.
    pub idle_bytes: u64,
}
