//! What a backend counts about its own work, for benches and validation. No model uses it.

use crate::{Backend, Barriers};

/// A backend that says how it computed.
pub trait Instrumented: Backend {
    /// How often the fused op `op` (the name of its method) has run as one kernel on this thread. Other calls ran as
    /// compositions of plain ops. `None` if every call runs as one kernel.
    fn kernel_runs(&self, op: &str) -> Option<u64>;

    /// How often and how long the threads have waited for each other since the backend was made; `None` if that is not
    /// counted.
    fn barriers(&self) -> Option<Barriers>;

    /// The most bytes that its arrays have taken at once, all backends of its kind in this process together; `None` where the
    /// backend does not count them, and the process's own memory says it.
    fn peak_memory_bytes(&self) -> Option<u64> {
        None
    }
}
