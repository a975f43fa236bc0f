//! `zmlx bench`: measures tokens per second of several paths on the same weights, alternating in one process.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};
use zmlx_bench::bandwidth::read_bytes_per_second;
use zmlx_bench::capsule::bench::{Bandwidth, BenchTest};
use zmlx_bench::capsule::model::ModelFacts;
use zmlx_bench::capsule::{Capsule, Context, Prompt, Record};
use zmlx_bench::measure::{Bench, Measured, Plan, relative_spread};
use zmlx_bench::table::Width;
use zmlx_kernels::{Fusion, Instrumented};
use zmlx_models::Checkpoint;

use crate::args::{BackendArgs, ModelArgs, RouteArgs, positive};
use crate::build_info;
use crate::engine::{self, About, Job};
use crate::memory;
use crate::output::{self, Outcome, note, print, print_json};
use crate::progress::WorkProgress;
use crate::ranks::{self, MLX_HOSTFILE, MLX_RANK};
use crate::source::Source;

/// The seed of random weights. It is the same on every machine, so that capsules are comparable.
const SYNTHETIC_SEED: u64 = 1;

/// The command warns if the repetitions of a test spread by more than this fraction.
const MAX_SPREAD: f64 = 0.05;

/// Arguments of `zmlx bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Measure random weights of an architecture instead of a model, such as qwen3-30b-a3b or qwen3.6-35b-a3b. The name
    /// can be followed by ,layers=N ,vocab=N ,mode=affine|mxfp4|mxfp8|nvfp4 ,bits=N ,group=N
    #[arg(long, value_name = "NAME[,layers=N…]", conflicts_with_all = ["model", "positional"])]
    synthetic: Option<String>,
    /// Lengths of the prompts to measure, in tokens. 0 measures no prompt.
    #[arg(short = 'p', long, value_name = "N,…", value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to decode. 0 measures no decoding.
    #[arg(short = 'n', long, value_name = "N,…", value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Numbers of tokens in the KV cache before decoding starts.
    #[arg(short = 'd', long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    n_depth: Vec<usize>,
    /// Numbers of sequences to decode at once.
    #[arg(short = 'b', long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = positive())]
    batch: Vec<usize>,
    /// How often each test is repeated.
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive())]
    repetitions: usize,
    /// What to compare: sets of fused ops on one backend, or all backends of this build.
    #[arg(long, value_enum, default_value = "fusion")]
    compare: Compare,
    /// A path to measure. Can be given several times; the first is the baseline. The default is stock, concat and
    /// fused; with several backends it is stock and fused.
    #[arg(long, help_heading = "What computes", value_name = "PRESET[,±OP]")]
    fusion: Vec<Fusion>,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Also show where the time of a decoded token goes, measured in a separate pass.
    #[arg(long)]
    profile: bool,
    /// Measure only the read bandwidth of memory.
    #[arg(long)]
    bandwidth: bool,
    /// The format of the results.
    #[arg(short, long, value_enum, default_value = "md", help_heading = "Output")]
    output: Format,
    /// Print all columns of the table.
    #[arg(long, help_heading = "Output")]
    wide: bool,
    /// Write all results to a JSON file, together with the machine, the build and the model.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    capsule: Option<PathBuf>,
    /// Overwrite an existing capsule.
    #[arg(long, requires = "capsule", help_heading = "Output")]
    force: bool,
}

/// The values of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table in Markdown.
    Md,
    /// One line per test.
    Csv,
    /// One object with every measurement.
    Json,
    /// One object per line, for each test.
    Jsonl,
}

/// The values of `--compare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Compare {
    /// Paths on one backend.
    Fusion,
    /// Every backend of this build, on the same workload.
    Backend,
}

/// Verifies that the paths agree, measures them alternately, and prints a table.
pub(crate) fn run(mut args: Args) -> Result<Outcome> {
    if args.bandwidth {
        return bandwidth_only(&args);
    }
    let source = if args.synthetic.is_none() { Some(Source::resolve(&args.model)?) } else { None };
    if let Some(path) = &args.capsule {
        let inputs = source.as_ref().map(Source::files).unwrap_or_default();
        output::check_output(path, args.force, &inputs)?;
    }
    let checkpoint = match (&args.synthetic, source) {
        (Some(spec), _) => Checkpoint::synthetic(spec, SYNTHETIC_SEED)?,
        (None, Some(source)) => source.checkpoint()?,
        (None, None) => bail!("nothing to measure: no model"),
    };
    let backends = match (args.compare, args.backend.backend) {
        (Compare::Fusion, backend) => vec![backend],
        (Compare::Backend, None) => engine::usable().map(Some).collect(),
        (Compare::Backend, Some(_)) => bail!("--backend names one backend; --compare backend takes all"),
    };
    if ranks::shard().is_some() {
        ensure!(args.compare == Compare::Fusion, "--compare backend: several ranks measure one backend");
    }
    if args.fusion.is_empty() {
        args.fusion = match args.compare {
            // Followers know one path.
            Compare::Fusion if ranks::shard().is_some() => vec![Fusion::FUSED],
            Compare::Fusion => vec![Fusion::STOCK, Fusion::CONCAT, Fusion::FUSED],
            Compare::Backend => vec![Fusion::STOCK, Fusion::FUSED],
        };
    }
    for fusion in &mut args.fusion {
        *fusion = args.route.apply(*fusion, checkpoint.architecture())?;
    }
    let plan = Plan {
        n_prompt: args.n_prompt.clone(),
        n_generate: args.n_gen.clone(),
        depths: args.n_depth.clone(),
        batches: args.batch.clone(),
        repetitions: args.repetitions,
        fusions: args.fusion.clone(),
        profile: args.profile,
    };
    if ranks::shard().is_some() {
        ensure!(
            plan.fusions.len() == 1,
            "--fusion: several ranks measure one path, got {}",
            plan.fusions.len()
        );
        ranks::agree(&checkpoint, &format!("{plan:?}"))?;
    }
    let mut bench = Bench::new(&checkpoint, &plan)?;
    for backend in backends {
        let job = Add { bench: &mut bench, checkpoint: &checkpoint, fusions: &plan.fusions };
        engine::with_backend(BackendArgs { backend, ..args.backend }, job)?;
    }
    if ranks::is_follower() {
        return Ok(Outcome::Done);
    }
    if let Some(disagreement) = bench.disagreement()? {
        note(format_args!("error: {disagreement}"));
        return Ok(Outcome::CheckFailed);
    }
    let mut progress = WorkProgress::default();
    let mut measured = bench.run(&mut probe, &mut |work, done, of| progress.update(work, done, of))?;
    measured.record.peak_memory_bytes =
        measured.record.peak_memory_bytes.or_else(memory::peak_resident_bytes);
    if !output::is_quiet() {
        warn_of_spread(&measured.record.tests);
    }
    match args.output {
        Format::Md => print(&measured.markdown(if args.wide { Width::Wide } else { Width::Narrow }))?,
        Format::Csv => print(&measured.csv()?)?,
        Format::Json => print_json(&measured.json())?,
        Format::Jsonl => print(&measured.json_lines())?,
    }
    match &args.capsule {
        Some(path) => write_capsule(path, args.force, &checkpoint, measured),
        None => Ok(Outcome::Done),
    }
}

fn write_capsule(
    path: &std::path::Path,
    force: bool,
    checkpoint: &Checkpoint,
    measured: Measured,
) -> Result<Outcome> {
    let prompt = &measured.prompt;
    let mut progress = WorkProgress::default();
    let context = Context {
        build: build_info::build(),
        model: ModelFacts::of(checkpoint, &mut |work, done, of| progress.update(work, done, of))?,
        backends: &measured.backends,
        prompts: if prompt.is_empty() { vec![] } else { vec![Prompt::new("seeded", prompt)] },
    };
    let capsule = Capsule::new(Record::Bench(measured.record), context)?;
    output::write_new(path, force, &capsule.to_json()?)?;
    Ok(Outcome::Done)
}

/// Loads the model on a backend and adds its paths to the bench.
struct Add<'a, 'b> {
    bench: &'a mut Bench<'b>,
    checkpoint: &'a Checkpoint,
    fusions: &'a [Fusion],
}

impl Job for Add<'_, '_> {
    fn run<B: Instrumented + 'static>(self, backend: B, about: &About) -> Result<Outcome> {
        let mut progress = WorkProgress::default();
        let Self { bench, checkpoint, fusions } = self;
        if ranks::is_follower() {
            let (mut model, _) = engine::load(backend, checkpoint)?;
            ranks::follows(&mut model, &fusions[0])?;
            return Ok(Outcome::Done);
        }
        bench.add(backend, about.info(), ranks::leader(), &mut |work, done, of| {
            progress.update(work, done, of)
        })?;
        about.ensure_room(checkpoint, fusions.iter())?;
        Ok(Outcome::Done)
    }
}

/// Measures the read bandwidth in a separate process, so that its buffer does not count as memory of the bench. Returns
/// `None` if that fails.
fn probe(n_threads: usize) -> Option<Bandwidth> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["bench", "--bandwidth", "-o", "json", "--threads", &n_threads.to_string()]);
    command.env_remove(MLX_RANK).env_remove(MLX_HOSTFILE);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

fn bandwidth_only(args: &Args) -> Result<Outcome> {
    let threads = args.backend.cpu.threads.unwrap_or_else(num_cpus::get_physical);
    let Some(bytes_per_second) = read_bytes_per_second(threads) else {
        bail!("not enough memory for the probe's buffer");
    };
    if args.output == Format::Md {
        print(&format!("memory reads at {:.1} GB/s ({threads} threads)\n", bytes_per_second / 1e9))?;
    } else {
        print_json(&Bandwidth { bytes_per_second, threads })?;
    }
    Ok(Outcome::Done)
}

fn warn_of_spread(tests: &[BenchTest]) {
    for test in tests {
        let spread = relative_spread(test).unwrap_or(0.0);
        if spread > MAX_SPREAD {
            note(format_args!(
                "warning: {} of {} on {} spreads by {:.0} %: other work is running or the machine is hot; try a larger -r",
                test.name,
                test.fusion,
                test.backend,
                spread * 100.0
            ));
        }
    }
}
