//! Measures tokens per second of several paths on the same weights, in turns, in one process.

mod arm;
mod check;
mod plan;
mod probe;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use zmlx_kernels::{Fusion, Instrumented};
use zmlx_models::{Checkpoint, Cost, Lead};
use zmlx_oracle::golden::Rounding;

use crate::capsule::bench::{Bandwidth, BenchRecord, BenchTest, PhaseTime};
use crate::stats::mean_sd;
use crate::{BackendInfo, Error, OnProgress, Result, Work, bandwidth, seeded_tokens};
use arm::{Arm, Decoded, Loaded};
use check::Difference;
use plan::Test;
use probe::Phase;

/// A path that is timed may differ from the first path by this relative root mean square, for tokens that go to the
/// same experts, and by this fraction of the choices of experts. In f32, paths differ at most by the order of sums, and
/// on the CPU not even by that. A wrong kernel gives differences that are orders of magnitude larger.
const MAX_F32: Difference = Difference { rel_rms: 1e-2, other_experts: 0.02 };
/// As [`MAX_F32`], for activations in the checkpoint's 16-bit type. Their steps of 2⁻⁸ add up from layer to layer.
const MAX_16_BIT: Difference = Difference { rel_rms: 1e-1, other_experts: 0.25 };

/// The seed of the measured prompt.
const PROMPT_SEED: u64 = 1;

/// A pause before each measurement, so that no test runs on a processor that only the previous one has heated.
const COOL_DOWN: Duration = Duration::from_millis(100);

/// Number of steps in a warm-up. Backends that compile or record kernels at first use warm up with all steps that are measured:
/// later positions may use other kernels.
const WARM_UP: usize = 4;
/// Number of steps in a profile: enough for a mean. Each is slower than a step without timers.
const PROFILE_STEPS: usize = 32;

/// What is measured. Lists give a test for each combination.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Lengths of the prompts to measure; 0 for none.
    pub n_prompt: Vec<usize>,
    /// Numbers of tokens to decode; 0 for none.
    pub n_generate: Vec<usize>,
    /// Numbers of tokens in the caches before decoding.
    pub depths: Vec<usize>,
    /// Numbers of sequences that are decoded at once.
    pub batches: Vec<usize>,
    /// How often each test is measured; at least 1.
    pub repetitions: usize,
    /// The paths, the baseline first.
    pub fusions: Vec<Fusion>,
    /// Whether every op is timed in an additional pass.
    pub profile: bool,
}

/// A model on one or more backends that is ready to be measured.
pub struct Bench<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    tests: Vec<Test>,
    arms: Vec<Box<dyn Arm>>,
    infos: Vec<BackendInfo>,
}

/// The results of a bench.
#[derive(Debug)]
pub struct Measured {
    /// The model's name.
    pub model: String,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// The backends that computed.
    pub backends: Vec<BackendInfo>,
    /// What the memory probe read before and after the tests.
    pub bandwidth: [Option<Bandwidth>; 2],
    /// The record for a capsule.
    pub record: BenchRecord,
    /// Where the time of a token goes; empty if the plan does not request it.
    pub profile: Vec<Profile>,
    /// The prompt that was measured.
    pub prompt: Vec<u32>,
}

/// A phase, with its bytes per second if it is known how much it reads.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// The phase and its time.
    #[serde(flatten)]
    pub time: PhaseTime,
    /// Bytes of weights and caches that it reads per second; `None` if this is not known.
    pub bytes_per_second: Option<f64>,
}

/// A path whose results differ from those of the first path. It must not be timed.
#[derive(Clone, Debug, PartialEq)]
pub struct Disagreement {
    backend: &'static str,
    path: String,
    first: String,
    found: Found,
}

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    NotNumbers,
    Values { got: f64, max: f64 },
    Experts { got: f64, max: f64 },
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, path, first, found } = self;
        match found {
            Found::NotNumbers => {
                write!(f, "the logits of {path} on {backend} are not all numbers: nothing was timed")
            }
            Found::Values { got, max } => write!(
                f,
                "{path} on {backend} differs from {first} by {got:.1e} (relative root mean square of a token; {max:.0e} is \
                 allowed): nothing was timed"
            ),
            Found::Experts { got, max } => write!(
                f,
                "{path} on {backend} chooses other experts than {first} {:.0} % of the time ({:.0} % is allowed): nothing \
                 was timed",
                100.0 * got,
                100.0 * max
            ),
        }
    }
}

impl Plan {
    fn tests(&self) -> Vec<Test> {
        plan::tests(&self.n_prompt, &self.n_generate, &self.depths, &self.batches)
    }
}

impl<'a> Bench<'a> {
    /// A bench without backends.
    ///
    /// # Errors
    /// If the plan has no test, or a test that is longer than the model's context.
    pub fn new(checkpoint: &'a Checkpoint, plan: &'a Plan) -> Result<Self> {
        let tests = plan.tests();
        let n_tokens = tests.iter().map(Test::n_tokens).max().ok_or(Error::NothingToMeasure)?;
        let limit = checkpoint.architecture().max_position_embeddings;
        if n_tokens > limit {
            return Err(zmlx_models::Error::ContextLength { n_tokens, limit }.into());
        }
        Ok(Self { checkpoint, plan, tests, arms: Vec::new(), infos: Vec::new() })
    }

    /// Loads the model on another backend. Where it is one of several ranks, it leads the others with `lead`.
    ///
    /// # Errors
    /// If the model cannot be loaded on it.
    pub fn add<B: Instrumented + 'static>(
        &mut self,
        backend: B,
        info: BackendInfo,
        lead: Option<Arc<dyn Lead>>,
        on_progress: OnProgress<'_>,
    ) -> Result<()> {
        self.arms.push(Box::new(Loaded::new(backend, self.checkpoint, lead, on_progress)?));
        self.infos.push(info);
        Ok(())
    }

    /// Looks for a path whose results differ from those of the first one.
    ///
    /// # Errors
    /// If a backend fails.
    pub fn disagreement(&self) -> Result<Option<Disagreement>> {
        let fusions = &self.plan.fusions;
        for (arm, info) in self.arms.iter().zip(&self.infos) {
            let of = |path: &Fusion, found| Disagreement {
                backend: info.name,
                path: path.to_string(),
                first: fusions[0].to_string(),
                found,
            };
            let Some(differences) = arm.check(fusions)? else {
                return Ok(Some(of(&fusions[0], Found::NotNumbers)));
            };
            let max = match info.rounding {
                Rounding::F32 => MAX_F32,
                Rounding::Checkpoint => MAX_16_BIT,
            };
            for (path, Difference { rel_rms, other_experts }) in fusions.iter().zip(differences) {
                let is_near = rel_rms <= max.rel_rms; // not so if it is NaN
                if !is_near {
                    return Ok(Some(of(path, Found::Values { got: rel_rms, max: max.rel_rms })));
                }
                if other_experts > max.other_experts {
                    let found = Found::Experts { got: other_experts, max: max.other_experts };
                    return Ok(Some(of(path, found)));
                }
            }
        }
        Ok(None)
    }

    /// Measures every test on every path and backend, in turns. `probe` measures the machine's read bandwidth with the
    /// given number of threads. It should do so in another process, so that its buffer does not count as memory of this
    /// one.
    ///
    /// # Errors
    /// If there is no backend, or if one fails.
    pub fn run(
        mut self,
        probe: &mut dyn FnMut(usize) -> Option<Bandwidth>,
        on_progress: OnProgress<'_>,
    ) -> Result<Measured> {
        if self.arms.is_empty() {
            return Err(Error::NoBackend);
        }
        let n_threads = self.infos.iter().map(|info| info.n_threads).max().unwrap_or(1);
        let before = probe(n_threads);
        let cost = Cost::new(self.checkpoint);
        let fusions = &self.plan.fusions;
        let lanes: Vec<(usize, &Fusion)> =
            (0..self.arms.len()).flat_map(|arm| fusions.iter().map(move |f| (arm, f))).collect();
        let longest = self.tests.iter().map(|t| t.n_prompt).max().unwrap_or(0);
        let prompt = seeded_tokens(PROMPT_SEED, longest, self.checkpoint.architecture().vocab_size);
        let mut run = Run {
            repetitions: self.plan.repetitions,
            arms: &mut self.arms,
            infos: &self.infos,
            lanes: &lanes,
            cost: &cost,
            prompt: &prompt,
            n_threads,
            probe,
            on_progress,
            n_done: 0,
            n_all: self.tests.len() * self.plan.repetitions * lanes.len(),
        };
        let (mut tests, mut profile) = (Vec::new(), Vec::new());
        let mut filled = None;
        for test in &self.tests {
            let caches = test.is_decoding().then_some((test.depth, test.batch));
            if caches.is_some() && filled != caches {
                filled = caches;
                run.fill(test)?;
            }
            tests.append(&mut run.measure(test)?);
            if self.plan.profile && test.is_decoding() {
                profile.append(&mut run.profile(test)?);
            }
        }
        let after = (run.probe)(n_threads);
        let best = [&before, &after].into_iter().flatten();
        let best = best.max_by(|a, b| a.bytes_per_second.total_cmp(&b.bytes_per_second)).cloned();
        // Several backends share the process's memory, and none of them counts what the others take.
        let peak_memory_bytes = match &self.arms[..] {
            [arm] => arm.peak_memory_bytes(),
            _ => None,
        };
        let record = BenchRecord {
            repetitions: self.plan.repetitions,
            fusions: fusions.iter().map(ToString::to_string).collect(),
            bandwidth: best,
            peak_memory_bytes,
            tests,
            profile: profile.iter().map(|p| p.time.clone()).collect(),
        };
        Ok(Measured {
            model: self.checkpoint.name().to_owned(),
            weight_bytes: cost.weight_bytes,
            backends: self.infos,
            bandwidth: [before, after],
            record,
            profile,
            prompt,
        })
    }
}

/// A bench in progress.
struct Run<'a> {
    repetitions: usize,
    arms: &'a mut [Box<dyn Arm>],
    infos: &'a [BackendInfo],
    /// The pairs of backend and path, which take turns.
    lanes: &'a [(usize, &'a Fusion)],
    cost: &'a Cost,
    prompt: &'a [u32],
    n_threads: usize,
    probe: &'a mut dyn FnMut(usize) -> Option<Bandwidth>,
    on_progress: OnProgress<'a>,
    n_done: usize,
    n_all: usize,
}

impl Run<'_> {
    fn fill(&mut self, test: &Test) -> Result<()> {
        for arm in self.arms.iter_mut() {
            arm.fill(self.lanes[0].1, test.depth, test.batch, &mut *self.on_progress)?;
        }
        Ok(())
    }

    /// Measures a test on every lane.
    fn measure(&mut self, test: &Test) -> Result<Vec<BenchTest>> {
        let record = |&(arm, fusion): &(usize, &Fusion)| test.record(fusion, self.infos[arm].name, self.cost);
        let mut results: Vec<BenchTest> = self.lanes.iter().map(record).collect();
        for (&(arm, fusion), result) in self.lanes.iter().zip(&mut results) {
            if test.is_decoding() {
                let most = if self.infos[arm].compiles_at_first_use { usize::MAX } else { WARM_UP };
                self.arms[arm].decode(fusion, test.n_generate.min(most))?;
                result.launches_per_token = Some(self.arms[arm].count(fusion)? as f64 / test.batch as f64);
            } else {
                self.arms[arm].prompt(fusion, &self.prompt[..test.n_prompt])?;
            }
        }
        for repetition in 0..self.repetitions {
            for turn in 0..self.lanes.len() {
                // Every other repetition runs backwards, so that a machine that slows down affects all lanes alike.
                let at = if repetition % 2 == 0 { turn } else { self.lanes.len() - 1 - turn };
                std::thread::sleep(COOL_DOWN);
                self.repeat(test, at, &mut results[at])?;
                self.n_done += 1;
                (self.on_progress)(Work::Measuring, self.n_done, self.n_all);
            }
        }
        Ok(results)
    }

    /// Runs one repetition on one lane.
    fn repeat(&mut self, test: &Test, lane: usize, result: &mut BenchTest) -> Result<()> {
        let (arm, fusion) = self.lanes[lane];
        if !test.is_decoding() {
            let seconds = self.arms[arm].prompt(fusion, &self.prompt[..test.n_prompt])?;
            result.samples_s.push(seconds);
            result.ttft_s.push(seconds);
            return Ok(());
        }
        if result.reads_probed_memory() && self.cost.weight_bytes > bandwidth::BUFFER_BYTES as u64 {
            let probed = (self.probe)(self.n_threads);
            result.probes_bytes_per_second.extend(probed.map(|b| b.bytes_per_second));
        }
        let Decoded { seconds, barriers } = self.arms[arm].decode(fusion, test.n_generate)?;
        result.samples_s.push(seconds.iter().sum());
        result.token_latencies_s.extend(seconds);
        if let Some(barriers) = barriers {
            let n_tokens = (self.repetitions * result.tokens_per_sample) as f64;
            *result.barriers_per_token.get_or_insert(0.0) += barriers.n as f64 / n_tokens;
            *result.barrier_s_per_token.get_or_insert(0.0) += barriers.waited.as_secs_f64() / n_tokens;
        }
        Ok(())
    }

    /// Measures on every lane where the time of a token goes.
    fn profile(&mut self, test: &Test) -> Result<Vec<Profile>> {
        let mut rows = Vec::new();
        for &(arm, fusion) in self.lanes {
            let phases = self.arms[arm].profile(fusion, test.n_generate.min(PROFILE_STEPS))?;
            // With several backends the name of a path includes its backend.
            let path = match self.infos {
                [_] => fusion.to_string(),
                _ => format!("{fusion} on {}", self.infos[arm].name),
            };
            rows.extend(profile_rows(&path, test, &phases, self.cost));
        }
        Ok(rows)
    }
}

fn profile_rows(fusion: &str, test: &Test, phases: &[(Phase, f64)], cost: &Cost) -> Vec<Profile> {
    let total: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
    let row = |&(phase, seconds): &(Phase, f64)| {
        let n_bytes = match phase {
            // The sequences of a batch share experts, and it is not known how many.
            _ if test.batch > 1 => None,
            Phase::Router => Some(cost.parts.router),
            Phase::GateUp => Some(cost.parts.gate_up),
            Phase::Down => Some(cost.parts.down),
            Phase::Attention => {
                let caches = cost.kv_bytes_per_token * test.depth as u64 + 2 * cost.state_bytes;
                Some(cost.parts.attention + caches)
            }
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

/// The standard deviation of a test's speeds as a fraction of their mean; `None` without samples.
pub fn relative_spread(test: &BenchTest) -> Option<f64> {
    let speeds: Vec<f64> = test.samples_s.iter().map(|s| test.tokens_per_sample as f64 / s).collect();
    mean_sd(&speeds).map(|(mean, sd)| sd / mean)
}
