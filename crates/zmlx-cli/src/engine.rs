//! Chooses a backend and loads a model onto it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
#[cfg(feature = "proof")]
use zmlx_bench::BackendInfo;
#[cfg(feature = "proof")]
use zmlx_kernels::ExpertFusion;
use zmlx_kernels::cpu::Activations;
use zmlx_kernels::{Backend, Fusion, Instrumented};
#[cfg(feature = "proof")]
use zmlx_models::human_bytes;
use zmlx_models::{Architecture, Checkpoint, Model, self_check};
#[cfg(feature = "proof")]
use zmlx_oracle::golden::Rounding;

use crate::args::{BackendArgs, BackendKind, FusionArgs};
use crate::output::Outcome;
#[cfg(feature = "proof")]
use crate::output::{self, note};
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
    /// Limits of the engine that it builds on, as `zmlx doctor` shows them.
    pub(crate) settings: Vec<Setting>,
    /// Where a concatenation of gate and up is a copy: tells how many bytes there are for it.
    room_for_copies: Option<Box<dyn Fn() -> Option<u64>>>,
    /// Whether fused ops are checked before they are used. Set for backends whose kernels are compiled on the device at
    /// run time.
    checks_itself: bool,
    /// The fused ops to use for a model if the user names none.
    default_fusion: Box<dyn Fn(&Architecture) -> Fusion>,
}

/// A limit of the engine that a backend builds on.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    /// `None` where it is the engine's default.
    value: Option<String>,
    chosen_by: &'static str,
    /// Why the default was left.
    why: Option<&'static str>,
}

impl Setting {
    /// `NAME: value, chosen by …`.
    pub(crate) fn text(&self) -> String {
        let value = self.value.as_deref().unwrap_or("the default");
        let why = self.why.map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{}: {value}, chosen by {}{why}", self.name, self.chosen_by)
    }
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
            compiles_at_first_use: self.name != "cpu",
        }
    }

    /// Says what the concatenated path costs, if it is among these and the backend copies for it, before it takes the memory.
    /// Random weights have their sizes once the model is loaded: ask then.
    ///
    /// # Errors
    /// If there is not so much.
    #[cfg(feature = "proof")]
    pub(crate) fn ensure_room<'a>(
        &self,
        checkpoint: &Checkpoint,
        mut fusions: impl Iterator<Item = &'a Fusion>,
    ) -> Result<()> {
        let Some(room) = &self.room_for_copies else { return Ok(()) };
        let n_bytes = zmlx_models::Cost::new(checkpoint).gate_up_bank_bytes;
        if n_bytes < LARGE || !fusions.any(|f| f.experts == ExpertFusion::Concat) {
            return Ok(());
        }
        let need = room_for(n_bytes, room())?;
        if !output::is_quiet() {
            note(format_args!("note: {need}"));
        }
        Ok(())
    }

    /// The fused ops that the arguments select, without those which fail the self-check. The self-check warns about
    /// them.
    ///
    /// # Errors
    /// Those of the self-check. One of several ranks must not go on after an op that ended with an error: the others may wait for what
    /// it would have sent.
    pub(crate) fn fusion<B: Backend>(&self, model: &Model<B>, args: FusionArgs) -> Result<Fusion> {
        let architecture = model.architecture();
        let fusion = args.of(architecture, (self.default_fusion)(architecture))?;
        if !self.checks_itself {
            return Ok(fusion);
        }
        let check = self_check(model, &fusion)?;
        if let Some(failed) = check.failed().filter(|_| ranks::shard().is_some()) {
            bail!("{} ({}): {}", failed.op.name, failed.shape, failed.outcome);
        }
        Ok(check.fusion)
    }
}

/// Smaller copies are not worth a word.
#[cfg(feature = "proof")]
const LARGE: u64 = 256 << 20;

/// What the concatenated path takes, or that there is not so much.
#[cfg(feature = "proof")]
fn room_for(n_bytes: u64, free: Option<u64>) -> Result<String> {
    let need = format!("concat keeps gate and up of the experts a second time: {}", human_bytes(n_bytes));
    match free {
        Some(free) if free < n_bytes => bail!(
            "{need}, and {} are free; leave it out: --fusion of bench, --against of validate",
            human_bytes(free)
        ),
        _ => Ok(need),
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
    if ranks::shard().is_some() && kind == BackendKind::Cpu {
        bail!("--backend: several ranks can share a model on mlx or cuda, not on cpu");
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
                settings: Vec::new(),
                room_for_copies: None,
                checks_itself: false,
                default_fusion: Box::new(|_| Fusion::FUSED),
            };
            job.run(backend, &about)
        }
        BackendKind::Cuda => with_cuda(job),
        BackendKind::Mlx => with_mlx(job),
    }
}

/// Prepares the process for its backends: what must happen before any of them starts, and before the first thread.
pub(crate) fn prepare() {
    #[cfg(any(target_os = "macos", feature = "mlx"))]
    zmlx_kernels::mlx::limit_command_buffers();
}

/// On Linux MLX computes on the CPU, slower than this project's own kernels, so it is the default there for several ranks only.
fn default_backend() -> BackendKind {
    if has_metal() {
        BackendKind::Mlx
    } else if has_gpu() {
        BackendKind::Cuda
    } else if ranks::shard().is_some() {
        BackendKind::Mlx
    } else {
        BackendKind::Cpu
    }
}

#[cfg(any(target_os = "macos", feature = "mlx"))]
fn has_metal() -> bool {
    zmlx_kernels::mlx::Runtime::start().is_ok_and(|mlx| mlx.gpu() == Some(zmlx_kernels::mlx::Gpu::Metal))
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
    use ranks::Parallel;
    use zmlx_kernels::cuda::CudaBackend;
    // The ranks of a machine have a GPU each.
    let mut backend = CudaBackend::new(ranks::n_before_on_host())?;
    let (arch, driver) = (backend.compute_capability(), backend.driver_version());
    let capability = format!("compute capability {}.{}", arch / 10, arch % 10);
    if let (Some(shard), Some(parallel)) = (ranks::shard(), ranks::parallel()) {
        // Other kernels could round differently, and then the ranks would choose different experts.
        let n_multiprocessors = backend.n_multiprocessors();
        ranks::agree_on("engine", &format!("cuda ({capability}, {n_multiprocessors} multiprocessors)"))?;
        let exchange = |own: &str| ranks::gather(own).map_err(|error| error.to_string());
        backend = match parallel {
            Parallel::Tensor => backend.with_ranks(shard, &exchange)?,
            Parallel::Pipeline => backend.with_stages(shard, &exchange)?,
        };
        if let Some(communicator) = backend.communicator().cloned() {
            ranks::set_barrier(move || Ok(communicator.wait_for_all()?));
        }
    }
    let together = backend.communicator().map(|c| format!(", {}", c.description())).unwrap_or_default();
    let about = About {
        name: "cuda",
        engine: None,
        text: format!(
            "cuda ({}, {capability}, driver for CUDA {}.{}{together})",
            backend.device_name(),
            driver / 1000,
            driver % 1000 / 10
        ),
        n_threads: 1,
        rounding: Rounding::F32,
        memory_bytes: Some(backend.memory_bytes() as u64),
        remark: None,
        settings: Vec::new(),
        room_for_copies: None,
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
    use ranks::Parallel;
    use zmlx_kernels::mlx::{self, MlxBackend, Numerics};
    let mut backend = MlxBackend::new(Numerics::Exact)?;
    if let Some(parallel) = ranks::parallel() {
        ranks::agree_on("engine", &format!("mlx {}", backend.runtime().version()))?;
        let group = ring()?;
        backend = match parallel {
            Parallel::Tensor => backend.with_group(group),
            Parallel::Pipeline => backend.with_stages(group),
        };
    }
    let runtime = backend.runtime();
    let device = runtime.gpu().map_or("CPU", mlx::Gpu::name);
    let setting =
        |s: mlx::Setting| Setting { name: s.name, value: s.value, chosen_by: s.chosen_by.name(), why: s.why };
    let about = About {
        name: "mlx",
        engine: Some(("mlx", runtime.version().to_string())),
        text: match ranks::shard() {
            Some(shard) => format!("mlx {} ({device}), {} ranks", runtime.version(), shard.n_ranks),
            None => format!("mlx {} ({device})", runtime.version()),
        },
        n_threads: std::thread::available_parallelism().map_or(1, usize::from),
        #[cfg(feature = "proof")]
        rounding: Rounding::Checkpoint,
        memory_bytes: None,
        remark: (runtime.gpu().is_none())
            .then_some("no GPU here: every fused op is composed of MLX's own ops"),
        settings: mlx::command_buffers().into_iter().chain(mlx::hold_memory(runtime)?).map(setting).collect(),
        room_for_copies: {
            let runtime = runtime.clone();
            Some(Box::new(move || mlx::free_bytes(&runtime)))
        },
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

/// MLX's ring of the ranks, which all of them join now.
#[cfg(any(target_os = "macos", feature = "mlx"))]
fn ring() -> Result<zmlx_kernels::mlx::Group> {
    use anyhow::Context as _;
    use zmlx_kernels::mlx::Group;
    /// MLX waits for the others without an end.
    const PATIENCE: Duration = Duration::from_secs(8);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("ring".to_owned()).spawn(move || {
        let _ = sender.send(Group::ring());
    })?;
    let group = receiver.recv_timeout(PATIENCE);
    let group = group.with_context(|| {
        format!("MLX has not connected the ranks within {} seconds", PATIENCE.as_secs())
    })??;
    ranks::set_barrier(move || Ok(group.all_gather_values(&[0]).map(drop)?));
    Ok(group)
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

#[cfg(all(test, feature = "proof"))]
mod tests {
    use super::*;

    #[test]
    fn a_second_copy_that_does_not_fit_is_refused() {
        assert!(room_for(10_900_000_000, Some(12_000_000_000)).unwrap().ends_with("10.9 GB"));
        assert!(room_for(10_900_000_000, None).is_ok());
        let error = room_for(10_900_000_000, Some(3_200_000_000)).unwrap_err().to_string();
        assert!(error.contains("10.9 GB") && error.contains("3.20 GB are free"), "{error}");
    }
}
