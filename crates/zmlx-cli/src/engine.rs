//! Choosing a backend and loading a model onto it.

use std::time::{Duration, Instant};

use anyhow::Result;
use zmlx_kernels::Backend;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::{Checkpoint, Model};

use crate::args::{BackendArgs, BackendKind};
use crate::output::Outcome;
use crate::progress::Progress;

/// What a backend says of itself in reports.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// Name and particulars: `cpu (avx2, 8 threads)`.
    pub(crate) text: String,
    /// Threads that compute.
    pub(crate) n_threads: usize,
}

/// Work that runs on any backend.
pub(crate) trait Job {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome>;
}

/// Runs a job on the backend that the arguments choose: the only place that names them.
pub(crate) fn with_backend(args: BackendArgs, job: impl Job) -> Result<Outcome> {
    match args.backend {
        BackendKind::Cpu => {
            let backend = CpuBackend::new(args.threads)?;
            let (level, n_threads) = (backend.level().name(), backend.n_threads());
            let plural = if n_threads == 1 { "" } else { "s" };
            let text = format!("cpu ({level}, {n_threads} thread{plural})");
            job.run(backend, &About { text, n_threads })
        }
    }
}

/// Loads a model, showing progress, and tells how long it took.
pub(crate) fn load<B: Backend>(backend: B, checkpoint: &Checkpoint) -> Result<(Model<B>, Duration)> {
    let started = Instant::now();
    let mut progress = Progress::new("Loading");
    let model = Model::load(backend, checkpoint, &mut |done, of| progress.update(done, of))?;
    Ok((model, started.elapsed()))
}
