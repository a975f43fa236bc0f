//! `zmlx bench`: tokens per second of several paths on the same weights, in one process, in turns.

mod arm;
mod bandwidth;
mod check;
mod plan;
mod probe;
mod report;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use zmlx_kernels::{Fusion, Instrumented};
use zmlx_models::{Checkpoint, Error};
use zmlx_oracle::golden::Rounding;

use super::inspect::cost::Cost;
use crate::args::{BackendArgs, BackendKind, NamedModelArgs, RouteArgs, positive};
use crate::capsule::bench::{Bandwidth, BenchRecord, BenchTest, PhaseTime};
use crate::capsule::model::ModelFacts;
use crate::capsule::{self, Capsule, Context, Prompt, Record};
use crate::engine::{self, About, Job};
use crate::memory;
use crate::output::{self, Outcome, note, print, print_json};
use crate::progress::Progress;
use crate::prompts;
use crate::source::Source;
use arm::{Arm, Decoded, Loaded};
use check::Difference;
use plan::Test;
use probe::Phase;
use report::{Format, MAX_SPREAD, Profile, Report, speeds};

/// What is timed may differ from the first path by this relative root mean square, where tokens go to the same experts, and
/// in this share of the experts' choices. In f32 paths differ by the order of sums at most, on the CPU not even by that; a
/// wrong kernel leaves orders of magnitude more.
const MAX_F32: Difference = Difference { rel_rms: 1e-2, other_experts: 0.02 };
/// As [`MAX_F32`] where activations have the checkpoint's 16-bit type: steps of 2⁻⁸, which add up from layer to layer.
const MAX_16_BIT: Difference = Difference { rel_rms: 1e-1, other_experts: 0.25 };

/// The seed of random weights: the same on every machine, so that capsules compare.
const SYNTHETIC_SEED: u64 = 1;

/// The seed of the measured prompt.
const PROMPT_SEED: u64 = 1;

/// Before each measurement, so that none pays for the heat of the one before alone.
const COOL_DOWN: Duration = Duration::from_millis(100);

/// Steps of a warm-up.
const WARM_UP: usize = 4;
/// Steps of a profile: enough for a mean, and each is slower than a step without clocks.
const PROFILE_STEPS: usize = 32;

/// Arguments of `zmlx bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: NamedModelArgs,
    /// Random weights instead of a model: qwen3-30b-a3b, qwen3-235b-a22b or glm-4.7-flash, then perhaps ,layers=N ,vocab=N
    /// ,mode=affine|mxfp4|mxfp8|nvfp4 ,bits=N ,group=N
    #[arg(long, value_name = "NAME[,layers=N…]", conflicts_with_all = ["model", "positional"])]
    synthetic: Option<String>,
    /// Prompts to measure, in tokens; 0 for none.
    #[arg(short = 'p', long, value_name = "N,…", value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Tokens to decode; 0 for none.
    #[arg(short = 'n', long, value_name = "N,…", value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Tokens in the caches before decoding.
    #[arg(short = 'd', long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    n_depth: Vec<usize>,
    /// Sequences decoded at once.
    #[arg(short = 'b', long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = positive())]
    batch: Vec<usize>,
    /// How often each test is measured.
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive())]
    repetitions: usize,
    /// How the results are printed.
    #[arg(short, long, value_enum, default_value = "md")]
    output: Format,
    /// What is compared: fused ops on one backend, or every backend of this build.
    #[arg(long, value_enum, default_value = "fusion")]
    compare: Compare,
    /// The paths; may be given several times. By default stock, concat and fused, of several backends stock and fused.
    #[arg(long, value_name = "PRESET[,±OP]")]
    fusion: Vec<Fusion>,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Show in a pass of its own where the time of a decoded token goes.
    #[arg(long)]
    profile: bool,
    /// Only measure how fast memory is read.
    #[arg(long)]
    bandwidth: bool,
    /// Write everything to a JSON file, with machine, build and model.
    #[arg(long, value_name = "FILE")]
    capsule: Option<PathBuf>,
    /// Overwrite the capsule.
    #[arg(long, requires = "capsule")]
    force: bool,
}

/// What `--compare` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Compare {
    /// Paths on one backend.
    Fusion,
    /// Every backend of this build, on the same workload.
    Backend,
}

/// Verifies that the paths agree, measures them in turns, and prints a table.
pub(crate) fn run(mut args: Args) -> Result<Outcome> {
    if args.bandwidth {
        return bandwidth_only(&args);
    }
    let source = match &args.synthetic {
        Some(_) => None,
        None => Some(Source::resolve(&args.model.model())?),
    };
    if let Some(path) = &args.capsule {
        let inputs = source.as_ref().map(Source::files).unwrap_or_default();
        output::check_output(path, args.force, &inputs)?;
    }
    let checkpoint = match (&args.synthetic, source) {
        (Some(spec), _) => Checkpoint::synthetic(spec, SYNTHETIC_SEED)?,
        (None, Some(source)) => source.checkpoint()?,
        (None, None) => unreachable!("without random weights there is a source"),
    };
    let tests = plan::tests(&args.n_prompt, &args.n_gen, &args.n_depth, &args.batch);
    let limit = checkpoint.architecture().max_position_embeddings;
    let Some(n_tokens) = tests.iter().map(Test::n_tokens).max() else {
        bail!("nothing to measure: -p and -n are 0");
    };
    if n_tokens > limit {
        return Err(Error::ContextLength { n_tokens, limit }.into());
    }
    let waiting = match (args.compare, args.backend.backend) {
        (Compare::Fusion, _) => Vec::new(),
        (Compare::Backend, None) => engine::usable().collect(),
        (Compare::Backend, Some(_)) => bail!("--backend names one; --compare backend takes all"),
    };
    if args.fusion.is_empty() {
        args.fusion = match args.compare {
            Compare::Fusion => vec![Fusion::STOCK, Fusion::CONCAT, Fusion::FUSED],
            Compare::Backend => vec![Fusion::STOCK, Fusion::FUSED],
        };
    }
    for fusion in &mut args.fusion {
        *fusion = args.route.apply(*fusion, checkpoint.architecture())?;
    }
    let plan = Plan { args: &args, checkpoint: &checkpoint, tests: &tests };
    let (first, rest) = match waiting.split_first() {
        Some((first, rest)) => (Some(*first), rest),
        None => (args.backend.backend, &[][..]),
    };
    let backend = BackendArgs { backend: first, ..args.backend };
    engine::with_backend(
        backend,
        Collect { plan: &plan, waiting: rest, arms: Vec::new(), abouts: Vec::new() },
    )
}

fn bandwidth_only(args: &Args) -> Result<Outcome> {
    let threads = args.backend.cpu.threads.unwrap_or_else(num_cpus::get_physical);
    let Some(bytes_per_second) = bandwidth::read_bytes_per_second(threads) else {
        bail!("not enough memory for the probe's buffer");
    };
    if args.output == Format::Md {
        print(&format!("memory reads at {:.1} GB/s ({threads} threads)\n", bytes_per_second / 1e9))?;
    } else {
        print_json(&Bandwidth { bytes_per_second, threads })?;
    }
    Ok(Outcome::Done)
}

/// What is measured, on which weights.
struct Plan<'a> {
    args: &'a Args,
    checkpoint: &'a Checkpoint,
    tests: &'a [Test],
}

/// Loads the model on one backend after the other, then measures all.
struct Collect<'a> {
    plan: &'a Plan<'a>,
    waiting: &'a [BackendKind],
    arms: Vec<Box<dyn Arm>>,
    abouts: Vec<&'a About>,
}

impl Job for Collect<'_> {
    fn run<B: Instrumented + 'static>(self, backend: B, about: &About) -> Result<Outcome> {
        let Collect { plan, waiting, mut arms, abouts } = self;
        arms.push(Box::new(Loaded::new(backend, plan.checkpoint)?));
        let mut abouts: Vec<&About> = abouts;
        abouts.push(about);
        let Some((next, rest)) = waiting.split_first() else { return measure(plan, arms, &abouts) };
        let backend = BackendArgs { backend: Some(*next), ..plan.args.backend };
        engine::with_backend(backend, Collect { plan, waiting: rest, arms, abouts })
    }
}

fn measure(plan: &Plan<'_>, mut arms: Vec<Box<dyn Arm>>, abouts: &[&About]) -> Result<Outcome> {
    let Plan { args, checkpoint, tests } = *plan;
    let fusions = &args.fusion;
    for (arm, about) in arms.iter().zip(abouts) {
        if !agree(arm.as_ref(), about, fusions)? {
            return Ok(Outcome::CheckFailed);
        }
    }
    let n_threads = abouts.iter().map(|a| a.n_threads).max().unwrap_or(1);
    let before = bandwidth::probe(n_threads);
    let cost = Cost::new(checkpoint);
    let lanes: Vec<(usize, &Fusion)> =
        (0..arms.len()).flat_map(|arm| fusions.iter().map(move |f| (arm, f))).collect();
    let longest = tests.iter().map(|t| t.n_prompt).max().unwrap_or(0);
    let prompt = prompts::seeded_tokens(PROMPT_SEED, longest, checkpoint.architecture().vocab_size);
    let mut records = Vec::new();
    let mut profile = Vec::new();
    let mut progress = Progress::new("Measuring");
    let n_all = tests.len() * args.repetitions * lanes.len();
    let mut n_done = 0;
    let mut filled = None;
    for test in tests {
        let mut results: Vec<BenchTest> =
            lanes.iter().map(|&(arm, fusion)| test.record(fusion, abouts[arm].name, &cost)).collect();
        if test.is_decoding() && filled.replace((test.depth, test.batch)) != Some((test.depth, test.batch)) {
            for arm in &mut arms {
                arm.fill(&fusions[0], test.depth, test.batch)?;
            }
        }
        for (&(arm, fusion), result) in lanes.iter().zip(&mut results) {
            if test.is_decoding() {
                arms[arm].decode(fusion, test.n_generate.min(WARM_UP))?;
                result.launches_per_token = Some(arms[arm].count(fusion)? as f64 / test.batch as f64);
            } else {
                arms[arm].prompt(fusion, &prompt[..test.n_prompt])?;
            }
        }
        for repetition in 0..args.repetitions {
            for turn in 0..lanes.len() {
                // Alternating order: a machine that slows down meanwhile slows all down alike.
                let at = if repetition % 2 == 0 { turn } else { lanes.len() - 1 - turn };
                let (arm, fusion) = lanes[at];
                std::thread::sleep(COOL_DOWN);
                let result = &mut results[at];
                if test.is_decoding() {
                    if cost.weight_bytes > bandwidth::BUFFER_BYTES as u64 {
                        let probe = bandwidth::probe(n_threads);
                        result.probes_bytes_per_second.extend(probe.map(|b| b.bytes_per_second));
                    }
                    let Decoded { seconds, barriers } = arms[arm].decode(fusion, test.n_generate)?;
                    result.samples_s.push(seconds.iter().sum());
                    result.token_latencies_s.extend(seconds);
                    let n_tokens = (args.repetitions * result.tokens_per_sample) as f64;
                    if let Some(barriers) = barriers {
                        *result.barriers_per_token.get_or_insert(0.0) += barriers.n as f64 / n_tokens;
                        *result.barrier_s_per_token.get_or_insert(0.0) +=
                            barriers.waited.as_secs_f64() / n_tokens;
                    }
                } else {
                    let seconds = arms[arm].prompt(fusion, &prompt[..test.n_prompt])?;
                    result.samples_s.push(seconds);
                    result.ttft_s.push(seconds);
                }
                n_done += 1;
                progress.update(n_done, n_all);
            }
        }
        if args.profile && test.is_decoding() {
            for &(arm, fusion) in &lanes {
                let phases = arms[arm].profile(fusion, test.n_generate.min(PROFILE_STEPS))?;
                // Of several backends the path is named with its own.
                let label = match abouts {
                    [_] => fusion.to_string(),
                    _ => format!("{fusion} on {}", abouts[arm].name),
                };
                profile.extend(profile_rows(&label, test, &phases, &cost));
            }
        }
        records.append(&mut results);
    }
    let peak_memory_bytes = memory::peak_bytes();
    let after = bandwidth::probe(n_threads);
    if !output::is_quiet() {
        warn_of_spread(&records);
    }
    let report = Report {
        model: checkpoint.name(),
        weight_bytes: cost.weight_bytes,
        threads: abouts.iter().map(|a| (a.name, a.n_threads)).collect(),
        bandwidth: [before.clone(), after.clone()],
        peak_memory_bytes,
        tests: &records,
        profile: &profile,
    };
    print(&report.text(args.output)?)?;
    if let Some(path) = &args.capsule {
        let best = [before, after].into_iter().flatten();
        let record = BenchRecord {
            repetitions: args.repetitions,
            fusions: fusions.iter().map(ToString::to_string).collect(),
            bandwidth: best.max_by(|a, b| a.bytes_per_second.total_cmp(&b.bytes_per_second)),
            peak_memory_bytes,
            tests: records,
            profile: profile.into_iter().map(|p| p.time).collect(),
        };
        let prompts = if prompt.is_empty() { vec![] } else { vec![Prompt::new("seeded", &prompt)] };
        let context = Context { model: ModelFacts::of(checkpoint)?, backends: abouts, prompts };
        capsule::write(path, &Capsule::new(Record::Bench(record), context)?)?;
    }
    Ok(Outcome::Done)
}

/// Whether every path gives the first one's results; says so if not.
fn agree(arm: &dyn Arm, about: &About, fusions: &[Fusion]) -> Result<bool> {
    let (backend, first) = (about.name, &fusions[0]);
    let Some(differences) = arm.check(fusions)? else {
        note(format_args!(
            "error: the logits of {first} on {backend} are not all numbers: nothing was timed"
        ));
        return Ok(false);
    };
    let max = match about.rounding {
        Rounding::F32 => MAX_F32,
        Rounding::Checkpoint => MAX_16_BIT,
    };
    for (fusion, Difference { rel_rms, other_experts }) in fusions.iter().zip(differences) {
        let is_near = rel_rms <= max.rel_rms; // not so if it is NaN
        if !is_near {
            note(format_args!(
                "error: {fusion} on {backend} differs from {first} by {rel_rms:.1e} (relative root mean square of a token, \
                 at most {:.0e} is sound): nothing was timed",
                max.rel_rms
            ));
        } else if other_experts > max.other_experts {
            note(format_args!(
                "error: {fusion} on {backend} chooses other experts than {first} {:.0} % of the time (at most {:.0} % is \
                 sound): nothing was timed",
                100.0 * other_experts,
                100.0 * max.other_experts
            ));
        } else {
            continue;
        }
        return Ok(false);
    }
    Ok(true)
}

fn profile_rows(fusion: &str, test: &Test, phases: &[(Phase, f64)], cost: &Cost) -> Vec<Profile> {
    let total: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
    let row = |&(phase, seconds): &(Phase, f64)| {
        let n_bytes = match phase {
            // Sequences of a batch share experts, how many is not known.
            _ if test.batch > 1 => None,
            Phase::Router => Some(cost.parts.router),
            Phase::GateUp => Some(cost.parts.gate_up),
            Phase::Down => Some(cost.parts.down),
            Phase::Attention => Some(cost.parts.attention + cost.kv_bytes_per_token * test.depth as u64),
            Phase::Head => Some(cost.parts.head),
            Phase::Other | Phase::Sync => None,
        };
        Profile {
            time: PhaseTime {
                fusion: fusion.to_owned(),
                test: test.name(),
                phase: phase.name().to_owned(),
                seconds_per_token: seconds / test.batch as f64,
                share: if total > 0.0 { seconds / total } else { 0.0 },
            },
            bytes_per_second: n_bytes.filter(|_| seconds > 0.0).map(|n| n as f64 / seconds),
        }
    };
    phases.iter().map(row).collect()
}

fn warn_of_spread(tests: &[BenchTest]) {
    for test in tests {
        let spread = speeds(test).spread();
        if spread > MAX_SPREAD {
            note(format_args!(
                "warning: {} of {} on {} spreads by {:.0} %: other work on this machine, or heat; more -r may help",
                test.name,
                test.fusion,
                test.backend,
                spread * 100.0
            ));
        }
    }
}
