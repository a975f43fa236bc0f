//! The state that all of the server's tasks share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;

use crate::engine::{EngineHandle, Failure};
use crate::error::ApiError;
use crate::generation::Generation;
use crate::metrics::Metrics;
use crate::model::Loaded;
use crate::options::ServerOptions;
use crate::prepare::Prepared;

/// The unit in which memory for bodies is counted, in bytes.
pub(crate) const BODY_UNIT: usize = 64 << 10;
/// The memory for all bodies while they are read, in bytes. It is larger if the limit of a single body is larger.
const BODIES_BYTES: usize = 128 << 20;
const N_PARSERS: usize = 2;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) options: ServerOptions,
    pub(crate) engine: EngineHandle,
    pub(crate) metrics: Metrics,
    /// The memory for bodies while they are read, in units of [`BODY_UNIT`].
    pub(crate) bodies: Semaphore,
    /// Permits for parsing large bodies, because parsed values take many times as much memory.
    pub(crate) parsers: Semaphore,
    loaded: OnceLock<Arc<Loaded>>,
    is_stopping: AtomicBool,
}

impl State {
    pub(crate) fn new(options: ServerOptions, engine: EngineHandle) -> Self {
        let (loaded, is_stopping) = (OnceLock::new(), AtomicBool::new(false));
        let body_bytes = BODIES_BYTES.max(options.max_body_bytes.saturating_mul(4));
        let bodies = Semaphore::new((body_bytes / BODY_UNIT).min(Semaphore::MAX_PERMITS));
        let parsers = Semaphore::new(N_PARSERS);
        Self { options, engine, metrics: Metrics::new(), bodies, parsers, loaded, is_stopping }
    }

    /// Sets the model. From now on requests are accepted.
    pub(crate) fn set_loaded(&self, loaded: Loaded) {
        // The model of a server is set only once.
        let _ = self.loaded.set(Arc::new(loaded));
    }

    pub(crate) fn try_loaded(&self) -> Option<&Arc<Loaded>> {
        self.loaded.get()
    }

    /// The model.
    ///
    /// # Errors
    /// While it is being loaded, after it has failed, and after the server was stopped.
    pub(crate) fn loaded(&self) -> Result<Arc<Loaded>, ApiError> {
        if let Some(why) = self.engine.lost() {
            return Err(ApiError::of_failure(Failure::Lost { why }, "", 1));
        }
        if self.is_stopping() {
            return Err(ApiError::unavailable("the server is stopping", 1));
        }
        self.loaded.get().cloned().ok_or_else(|| ApiError::unavailable("the model is being loaded", 1))
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// From now on no request begins.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.engine.stop();
    }

    /// Prepares a request on a thread that may block, and submits it.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        (id, path): (String, &'static str),
        prepare: impl FnOnce(&Loaded, &ServerOptions) -> Result<Prepared, ApiError> + Send + 'static,
    ) -> Result<Generation, ApiError> {
        let prepared = self.blocking(prepare).await?;
        Generation::begin(Arc::clone(self), prepared, (id, path)).await
    }

    /// Runs work that may take long, on a separate thread: templates, tokenizers and grammars.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Loaded, &ServerOptions) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (loaded, state) = (self.loaded()?, Arc::clone(self));
        let task = tokio::task::spawn_blocking(move || work(&loaded, &state.options));
        task.await.unwrap_or_else(|error| {
            tracing::error!("{error}");
            Err(ApiError::internal())
        })
    }
}

/// A new id: the prefix and 24 letters and digits.
pub(crate) fn new_id(prefix: &str) -> String {
    use rand::Rng;
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric).take(24).map(char::from);
    prefix.chars().chain(letters).collect()
}

/// As [`new_id`], with letters only.
pub(crate) fn new_call_id(prefix: &str) -> String {
    use rand::Rng;
    let mut rng = rand::rng();
    let letters =
        (0..24).map(|_| char::from(if rng.random() { b'a' } else { b'A' } + rng.random_range(0..26u8)));
    prefix.chars().chain(letters).collect()
}
