//! What a backend counts of its own work, for benches and validation: no model asks for it.

use crate::{Backend, Barriers};

/// A backend that says how it computed.
pub trait Instrumented: Backend {
    /// How often the fused op `op` (the name of its method) has run as a kernel of its own on this thread; `None` where
    /// every call is such a run. Other calls are compositions of plain ops.
    fn kernel_runs(&self, op: &str) -> Option<u64>;

    /// What the threads that compute have waited for each other since the backend was made; `None` where that is not counted.
    fn barriers(&self) -> Option<Barriers>;

    /// The most bytes that its arrays have taken at once, all backends of its kind in this process together; `None` where the
    /// backend does not count them, and the process's own memory says it.
    fn peak_memory_bytes(&self) -> Option<u64> {
        None
    }
}
