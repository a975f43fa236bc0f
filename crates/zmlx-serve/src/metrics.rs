//! The server's metrics for Prometheus.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use zmlx_models::EngineStats;

/// The labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// One of the server's paths, or `other`.
    path: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: CacheState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum CacheState {
    #[allow(non_camel_case_types, reason = "the label's value")]
    running,
    #[allow(non_camel_case_types, reason = "the label's value")]
    idle,
}

/// The metrics, all with the prefix `zmlx_`.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    preemptions: Counter,
    requests: Family<RequestLabels, Counter>,
    running: Gauge,
    waiting: Gauge,
    kv_bytes: Family<StateLabels, Gauge<u64, AtomicU64>>,
    kv_budget: Gauge<u64, AtomicU64>,
    prefix_entries: Gauge,
    /// Requests that were ended by the client or the server before they finished.
    pub(crate) cancelled: Counter,
    pub(crate) first_token_seconds: Histogram,
    pub(crate) inter_token_seconds: Histogram,
    pub(crate) request_seconds: Histogram,
    pub(crate) queue_seconds: Histogram,
    pub(crate) batch_size: Histogram,
    /// The engine's counters at the last update.
    seen: Mutex<EngineStats>,
}

fn seconds() -> Histogram {
    let bounds =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
    Histogram::new(bounds)
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("zmlx"),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            preemptions: Counter::default(),
            requests: Family::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_bytes: Family::default(),
            kv_budget: Gauge::default(),
            prefix_entries: Gauge::default(),
            cancelled: Counter::default(),
            first_token_seconds: seconds(),
            inter_token_seconds: seconds(),
            request_seconds: seconds(),
            queue_seconds: seconds(),
            batch_size: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
            seen: Mutex::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("prompt_tokens", "Tokens of prompts that were computed", self.prompt_tokens.clone());
        r.register("prompt_cached_tokens", "Tokens of prompts that were cached", self.cached_tokens.clone());
        r.register("generated_tokens", "Tokens that were generated", self.generated_tokens.clone());
        r.register("preemptions", "Sequences that gave up their slot", self.preemptions.clone());
        r.register("requests", "Requests by path and status", self.requests.clone());
        r.register("requests_running", "Sequences that run", self.running.clone());
        r.register("requests_waiting", "Sequences that wait", self.waiting.clone());
        r.register("requests_cancelled", "Requests that were ended early", self.cancelled.clone());
        r.register("kv_cache_bytes", "Bytes of keys and values", self.kv_bytes.clone());
        r.register("kv_cache_budget_bytes", "Limit of these bytes", self.kv_budget.clone());
        r.register("prefix_cache_entries", "Idle sequences", self.prefix_entries.clone());
        r.register(
            "time_to_first_token_seconds",
            "From arrival to the first token",
            self.first_token_seconds.clone(),
        );
        r.register("inter_token_seconds", "From one token to the next", self.inter_token_seconds.clone());
        r.register("request_seconds", "From arrival to the end", self.request_seconds.clone());
        r.register("queue_seconds", "From arrival to a slot", self.queue_seconds.clone());
        r.register("batch_size", "Sequences that got a token in a step", self.batch_size.clone());
    }

    /// Counts a request for one of the server's paths.
    pub(crate) fn count(&self, path: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabels { path, status }).inc();
    }

    /// Sets the limit of the bytes of keys and values.
    pub(crate) fn set_budget(&self, bytes: Option<u64>) {
        self.kv_budget.set(bytes.unwrap_or(0));
    }

    /// Updates the metrics from the engine's counters.
    pub(crate) fn update(&self, stats: &EngineStats) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.prompt_tokens.inc_by(stats.n_prompt_tokens.saturating_sub(seen.n_prompt_tokens));
        self.cached_tokens.inc_by(stats.n_cached_tokens.saturating_sub(seen.n_cached_tokens));
        self.generated_tokens.inc_by(stats.n_generated_tokens.saturating_sub(seen.n_generated_tokens));
        self.preemptions.inc_by(stats.n_preemptions.saturating_sub(seen.n_preemptions));
        *seen = *stats;
        self.running.set(stats.n_running as i64);
        self.waiting.set(stats.n_waiting as i64);
        self.prefix_entries.set(stats.n_idle as i64);
        let idle = stats.idle_bytes.min(stats.kv_bytes);
        let set = |state, bytes| {
            self.kv_bytes.get_or_create(&StateLabels { state }).set(bytes);
        };
        set(CacheState::idle, idle);
        set(CacheState::running, stats.kv_bytes - idle);
    }

    /// The metrics in the text format for Prometheus.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
