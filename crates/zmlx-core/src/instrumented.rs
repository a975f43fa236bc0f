//! What a backend counts of its own work, for benches and validation: no model asks for it.

use crate::{Backend, Barriers};

/// A backend that says how it computed.
pub trait Instrumented: Backend {
    /// How often the fused op `op` (the name of its method) has run as a kernel of its own on this thread; `None` where
    /// every call is such a run. Other calls are compositions of plain ops.
    fn kernel_runs(&self, op: &str) -> Option<u64>;

    /// What the threads that compute have waited for each other since the backend was made; `None` where that is not counted.
    fn barriers(&self) -> Option<Barriers>;
}
