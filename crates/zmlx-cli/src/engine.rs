//! Chooses a backend and loads a model onto it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
#[cfg(feature = "proof")]
use zmlx_bench::BackendInfo;
use zmlx_kernels::cpu::Activations;
use zmlx_kernels::{Backend, Fusion, Instrumented};
use zmlx_models::{Architecture, Checkpoint, Model, self_check};
#[cfg(feature = "proof")]
use zmlx_oracle::golden::Rounding;

use crate::args::{BackendArgs, BackendKind, FusionArgs};
use crate::output::Outcome;
use crate::progress::Progress;
use crate::ranks;

/// A description of a backend for reports, and what its users must respect.
pub(crate) struct About {
    /// The backend's name.
    pub(crate) name: &'static str,
    /// The engine of another project that the backend builds on, with its version.
    pub(crate) engine: Option<(&'static str, String)>,
    /// Name and details, such as `cpu (avx2, 8 threads)`.
    pub(crate) text: String,
    /// The number of threads that may compute.
    pub(crate) n_threads: usize,
    /// How activations are rounded.
    #[cfg(feature = "proof")]
    pub(crate) rounding: Rounding,
    /// The size of the device's own memory in bytes; `None` if the backend computes in the memory of the system.
    pub(crate) memory_bytes: Option<u64>,
    /// A remark for readers of `zmlx doctor`.
    pub(crate) remark: Option<&'static str>,
    /// Whether fused ops are checked before they are used. Set for backends whose kernels are compiled on the device at
    /// run time.
    checks_itself: bool,
    /// The fused ops to use for a model if the user names none.
    default_fusion: Box<dyn Fn(&Architecture) -> Fusion>,
}

impl About {
    /// The backend as records describe it.
    #[cfg(feature = "proof")]
    pub(crate) fn info(&self) -> BackendInfo {
        BackendInfo {
            name: self.name,
            engine: self.engine.clone(),
            description: self.text.clone(),
            n_threads: self.n_threads,
            rounding: self.rounding,
        }
    }

    /// The fused ops that the arguments select, without those which fail the self-check. The self-check warns about
    /// them.
    pub(crate) fn fusion<B: Backend>(&self, model: &Model<B>, args: FusionArgs) -> Result<Fusion> {
        let architecture = model.architecture();
        let fusion = args.of(architecture, (self.default_fusion)(architecture))?;
        if !self.checks_itself {
            return Ok(fusion);
        }
        Ok(self_check(model, &fusion)?.fusion)
    }
}

/// Work that can run on any backend.
pub(crate) trait Job {
    fn run<B: Instrumented + 'static>(self, backend: B, about: &About) -> Result<Outcome>;
}

/// The backends of this build that can run on this machine.
pub(crate) fn usable() -> impl Iterator<Item = BackendKind> {
    BUILT.iter().copied().filter(|kind| *kind != BackendKind::Cuda || has_gpu())
}

/// The backends of this build.
const BUILT: &[BackendKind] = match (HAS_CUDA, HAS_MLX) {
    (true, true) => &[BackendKind::Cpu, BackendKind::Cuda, BackendKind::Mlx],
    (true, false) => &[BackendKind::Cpu, BackendKind::Cuda],
    (false, true) => &[BackendKind::Cpu, BackendKind::Mlx],
    (false, false) => &[BackendKind::Cpu],
};

const HAS_CUDA: bool = cfg!(all(target_os = "linux", feature = "cuda"));
const HAS_MLX: bool = cfg!(any(target_os = "macos", feature = "mlx"));

/// Runs a job on the backend that the arguments select. No other code names the backends.
pub(crate) fn with_backend(args: BackendArgs, job: impl Job) -> Result<Outcome> {
    let kind = args.backend.unwrap_or_else(default_backend);
    if ranks::shard().is_some() && kind != BackendKind::Mlx {
        bail!("--backend: several ranks can share a model on mlx only");
    }
    match kind {
        BackendKind::Cpu => {
            let backend = args.cpu.backend()?;
            let (level, n_threads) = (backend.level().name(), backend.n_threads());
            let plural = if n_threads == 1 { "" } else { "s" };
            let activations = match backend.activations() {
                Activations::Int16 => String::new(),
                other => format!(", {} activations", other.name()),
            };
            let about = About {
                name: "cpu",
                engine: None,
                text: format!("cpu ({level}, {n_threads} thread{plural}{activations})"),
                n_threads,
                // Activations of 8 bits are rounded as coarsely as bf16.
                #[cfg(feature = "proof")]
                rounding: match backend.activations() {
                    Activations::Int16 => Rounding::F32,
                    Activations::Int8 => Rounding::Checkpoint,
                },
                memory_bytes: None,
                remark: None,
                checks_itself: false,
                default_fusion: Box::new(|_| Fusion::FUSED),
            };
            job.run(backend, &about)
        }
        BackendKind::Cuda => with_cuda(job),
        BackendKind::Mlx => with_mlx(job),
    }
}

/// On Linux MLX computes on the CPU, slower than this project's own kernels, so it is never the default there.
fn default_backend() -> BackendKind {
    if has_metal() || ranks::shard().is_some() {
        BackendKind::Mlx
    } else if has_gpu() {
        BackendKind::Cuda
    } else {
        BackendKind::Cpu
    }
}

#[cfg(any(target_os = "macos", feature = "mlx"))]
fn has_metal() -> bool {
    zmlx_kernels::mlx::Runtime::start().is_ok_and(|mlx| mlx.has_metal())
}

#[cfg(not(any(target_os = "macos", feature = "mlx")))]
fn has_metal() -> bool {
    false
}

#[cfg(all(target_os = "linux", feature = "cuda"))]
fn has_gpu() -> bool {
    match zmlx_kernels::cuda::CudaBackend::new(0) {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!("{error}");
            false
        }
    }
}

#[cfg(not(all(target_os = "linux", feature = "cuda")))]
fn has_gpu() -> bool {
    false
}

#[cfg(all(target_os = "linux", feature = "cuda"))]
fn with_cuda(job: impl Job) -> Result<Outcome> {
    let backend = zmlx_kernels::cuda::CudaBackend::new(0)?;
    let (arch, driver) = (backend.compute_capability(), backend.driver_version());
    let about = About {
        name: "cuda",
        engine: None,
        text: format!(
            "cuda ({}, compute capability {}.{}, driver for CUDA {}.{})",
            backend.device_name(),
            arch / 10,
            arch % 10,
            driver / 1000,
            driver % 1000 / 10
        ),
        n_threads: 1,
        rounding: Rounding::F32,
        memory_bytes: Some(backend.memory_bytes() as u64),
        remark: None,
        checks_itself: true,
        default_fusion: Box::new(|_| Fusion::FUSED),
    };
    job.run(backend, &about)
}

#[cfg(not(all(target_os = "linux", feature = "cuda")))]
fn with_cuda(_: impl Job) -> Result<Outcome> {
    let why = "this zmlx is built without it: build on Linux with the feature cuda, which is on by default";
    Err(zmlx_kernels::Error::Unavailable { backend: "cuda", why: why.to_owned() }.into())
}

#[cfg(any(target_os = "macos", feature = "mlx"))]
fn with_mlx(job: impl Job) -> Result<Outcome> {
    use zmlx_kernels::mlx::{MlxBackend, Numerics};
    let mut backend = MlxBackend::new(Numerics::Exact)?;
    if let Some(group) = ranks::group() {
        backend = backend.with_group(group);
    }
    let mlx = backend.runtime();
    let device = if mlx.has_metal() { "Metal" } else { "CPU" };
    let about = About {
        name: "mlx",
        engine: Some(("mlx", mlx.version().to_string())),
        text: match ranks::shard() {
            Some(shard) => format!("mlx {} ({device}), {} ranks", mlx.version(), shard.n_ranks),
            None => format!("mlx {} ({device})", mlx.version()),
        },
        n_threads: std::thread::available_parallelism().map_or(1, usize::from),
        #[cfg(feature = "proof")]
        rounding: Rounding::Checkpoint,
        memory_bytes: None,
        remark: (!mlx.has_metal()).then_some("no Metal here: every fused op is composed of MLX's own ops"),
        checks_itself: true,
        default_fusion: {
            let backend = backend.clone();
            Box::new(move |architecture| {
                let choice = zmlx_models::mlx::default_fusion(architecture, &backend);
                tracing::info!("fusion {}: {}", choice.fusion, choice.reason);
                choice.fusion
            })
        },
    };
    job.run(backend, &about)
}

#[cfg(not(any(target_os = "macos", feature = "mlx")))]
fn with_mlx(_: impl Job) -> Result<Outcome> {
    let why =
        "this zmlx is built without it: build with --features mlx, on Linux after `cargo xtask setup-mlx`";
    Err(zmlx_kernels::Error::Unavailable { backend: "mlx", why: why.to_owned() }.into())
}

/// Loads a model with a progress bar. Returns also how long it took.
pub(crate) fn load<B: Backend>(backend: B, checkpoint: &Checkpoint) -> Result<(Model<B>, Duration)> {
    let started = Instant::now();
    let mut progress = Progress::new("Loading");
    let model = Model::load(backend, checkpoint, &mut |done, of| progress.update(done, of))?;
    Ok((model, started.elapsed()))
}
