//! `zmlx validate`: checks whether the stock, concatenated and fused paths give the same tokens, and the right ones.

mod engagement;
mod logits;
#[cfg(test)]
mod mutations;
mod report;
mod suite;
mod tokens;

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Serialize;
use zmlx_kernels::{Fusion, Hooked, Instrumented};
use zmlx_models::{Checkpoint, Model};

use crate::args::{BackendArgs, ModelArgs, RouteArgs, heading, positive};
use crate::build_info;
use crate::engine::{self, About, Job};
use crate::output::{self, Outcome, note, print, print_json};
use crate::progress::{Progress, WorkProgress};
use crate::source::Source;
use engagement::{Counter, Engaged};
use logits::Reference;
use suite::{Configuration, Suite};
use tokens::Runs;
use zmlx_bench::capsule::model::ModelFacts;
use zmlx_bench::capsule::validate::{Timing, ValidateRecord, Verdict};
use zmlx_bench::capsule::{self, Capsule, Context, Record};

/// Arguments of `zmlx validate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Selects the prompts, their lengths, and the paths.
    #[arg(long, value_enum, default_value = "standard")]
    suite: Suite,
    /// Your own prompts: a JSON array or lines of {"name", "text" | "tokens" | "messages"}.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The number of tokens to decode after each prompt. The default is 128; in the stress suite it is 256.
    #[arg(short, long, value_name = "N", value_parser = positive())]
    max_tokens: Option<usize>,
    /// How often each path decodes each prompt. The paths alternate, and all runs of a path must give the same bits.
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive())]
    runs: usize,
    /// What to compare the fused path with. The default is every reference that the model allows: the reference
    /// implementation (oracle) for models that are small enough, recorded tokens (golden) for the built-in model.
    #[arg(long, value_enum, value_name = "WHAT,…", value_delimiter = ',')]
    against: Vec<Against>,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print one JSON object.
    #[arg(long, help_heading = heading::OUTPUT)]
    json: bool,
    /// Write all results to a JSON file, together with the machine, the build and the model.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    capsule: Option<PathBuf>,
    /// Overwrite an existing capsule.
    #[arg(long, requires = "capsule", help_heading = heading::OUTPUT)]
    force: bool,
}

/// The values of `--against`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Against {
    /// The stock path: the ops that a stock engine would use.
    Stock,
    /// The stock path with the gate and up projections as one product.
    Concat,
    /// The logits of the independent reference implementation.
    Oracle,
    /// The tokens that the reference engine recorded.
    Golden,
}

impl Against {
    const fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Concat => "concat",
            Self::Oracle => "oracle",
            Self::Golden => "golden",
        }
    }
}

/// A set of fused ops with its name in reports.
#[derive(Clone, Copy, Debug)]
struct Path {
    name: &'static str,
    fusion: Fusion,
    /// Whether the other paths are compared with it.
    is_baseline: bool,
}

/// Decodes every prompt on every path and compares.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    if let Some(path) = &args.capsule {
        let source = Source::resolve(&args.model)?;
        let inputs = [source.files(), args.prompts.iter().cloned().collect()].concat();
        output::check_output(path, args.force, &inputs)?;
    }
    let validate = Validate::new(&args)?;
    engine::with_backend(args.backend, Run { validate, args })
}

/// The comparison to make.
struct Validate {
    source: Source,
    checkpoint: Checkpoint,
    suite: Suite,
    configurations: Vec<Configuration>,
    paths: Vec<Path>,
    against: Vec<Against>,
    max_tokens: usize,
    runs: usize,
}

impl Validate {
    fn new(args: &Args) -> Result<Self> {
        let source = Source::resolve(&args.model)?;
        let checkpoint = source.checkpoint()?;
        let max_tokens = args.max_tokens.unwrap_or(args.suite.default_max_tokens());
        let configurations =
            args.suite.configurations(&source, &checkpoint, args.prompts.as_deref(), max_tokens)?;
        let has_oracle = logits::is_small_enough(&checkpoint);
        let has_golden = configurations.iter().any(|c| c.recorded.is_some());
        let mut against = args.against.clone();
        if against.is_empty() {
            against = vec![Against::Stock, Against::Concat];
            against.extend(has_oracle.then_some(Against::Oracle));
            against.extend(has_golden.then_some(Against::Golden));
        }
        if against.contains(&Against::Oracle) && !has_oracle {
            bail!(
                "--against oracle: {} is too large for the reference implementation, which takes models of up to {} \
                 million weights",
                checkpoint.name(),
                logits::MAX_PARAMETERS / 1_000_000
            );
        }
        if against.contains(&Against::Golden) && !has_golden {
            bail!(
                "--against golden: recorded tokens exist only for the built-in model and its own prompts; \
                 `zmlx golden` records and checks those of others"
            );
        }
        let mut paths = Vec::new();
        for (what, fusion) in [(Against::Stock, Fusion::STOCK), (Against::Concat, Fusion::CONCAT)] {
            if against.contains(&what) {
                paths.push(Path { name: what.name(), fusion, is_baseline: true });
            }
        }
        paths.extend(args.suite.fused_paths().iter().map(|&(name, fusion)| Path {
            name,
            fusion,
            is_baseline: false,
        }));
        for path in &mut paths {
            path.fusion = args.route.apply(path.fusion, checkpoint.architecture())?;
        }
        let (suite, runs) = (args.suite, args.runs);
        Ok(Self { source, checkpoint, suite, configurations, paths, against, max_tokens, runs })
    }

    /// Decodes and compares on one backend.
    fn examine<B: Instrumented>(&self, backend: B, about: &About) -> Result<ValidateRecord> {
        let (model, _) = engine::load(Hooked::new(backend, Counter::default()), &self.checkpoint)?;
        about.ensure_room(&self.checkpoint, self.paths.iter().map(|path| &path.fusion))?;
        let mut engaged: Vec<Engaged> = self.paths.iter().map(|_| Engaged::default()).collect();
        let mut reference = if self.against.contains(&Against::Oracle) {
            Some(Reference::oracle(&self.source)?)
        } else {
            self.paths.iter().position(|p| p.is_baseline).map(Reference::Path)
        };
        let margin_bound = about.rounding.margin_bound();
        let (mut checks, mut logits, mut timings) = (Vec::new(), Vec::new(), Vec::new());
        let mut progress = Progress::new("Validating");
        let n_all = self.configurations.len() * self.runs * self.paths.len();
        let mut n_done = 0;
        for configuration in &self.configurations {
            let mut decoded: Vec<Runs> = self.paths.iter().map(|_| Runs::default()).collect();
            for run in 0..self.runs {
                for turn in 0..self.paths.len() {
                    // Every other run takes the paths in reverse order, so that a machine which slows down affects all
                    // paths alike.
                    let at = if run % 2 == 0 { turn } else { self.paths.len() - 1 - turn };
                    decoded[at].add(engaged[at].watch(&model, || {
                        let Configuration { tokens, n_tokens, .. } = configuration;
                        tokens::decode(&model, tokens, *n_tokens, &self.paths[at].fusion)
                    })?);
                    n_done += 1;
                    progress.update(n_done, n_all);
                }
            }
            checks.extend(self.token_checks(configuration, &decoded, about, margin_bound));
            for (path, decoded) in self.paths.iter().zip(&decoded) {
                timings.push(Timing {
                    configuration: configuration.name.clone(),
                    fusion: path.name.to_owned(),
                    n_tokens: decoded.n_timed(),
                    samples_s: decoded.samples_s.clone(),
                });
            }
            if let Some(reference) = &mut reference {
                logits.extend(self.logit_checks(
                    &model,
                    configuration,
                    &decoded,
                    reference,
                    &mut engaged,
                    about,
                )?);
            }
        }
        let engagement = engagement::judge(&self.paths, &engaged, about.remark.is_none());
        let verdicts = checks.iter().map(|c| c.verdict).chain(logits.iter().map(|l| l.verdict));
        let verdict = verdicts.chain(engagement.iter().map(|e| e.verdict)).max();
        Ok(ValidateRecord {
            suite: self.suite.name().to_owned(),
            max_tokens: self.max_tokens,
            runs: self.runs,
            against: self.against.iter().map(|a| a.name().to_owned()).collect(),
            // If nothing was compared, nothing was proved.
            verdict: verdict.filter(|_| !checks.is_empty() || !logits.is_empty()).unwrap_or(Verdict::Fail),
            margin_bound,
            checks,
            logits,
            engagement,
            timings,
        })
    }

    /// Compares each fused path with each baseline and the recording. Without either, checks that the runs of a path
    /// agree.
    fn token_checks(
        &self,
        configuration: &Configuration,
        decoded: &[Runs],
        about: &About,
        margin_bound: f64,
    ) -> Vec<capsule::validate::TokenCheck> {
        let mut checks = Vec::new();
        let name = &configuration.name;
        for (path, got) in self.paths.iter().zip(decoded).filter(|(p, _)| !p.is_baseline) {
            for (baseline, want) in self.paths.iter().zip(decoded).filter(|(p, _)| p.is_baseline) {
                let comparison = format!("{} vs {}", path.name, baseline.name);
                checks.push(tokens::compare(name, comparison, want, got, margin_bound));
            }
            if let Some(recorded) = configuration.recorded.as_ref().filter(|_| self.has(Against::Golden)) {
                let comparison = format!("{} vs golden", path.name);
                let want = recorded.of(about.rounding);
                let n = configuration.n_tokens;
                checks.push(tokens::against_recording(name, comparison, want, got, n, margin_bound));
            }
            if !checks.iter().any(|c| c.comparison.starts_with(path.name)) {
                checks.push(tokens::repeated(name, path.name, got));
            }
        }
        checks
    }

    fn has(&self, what: Against) -> bool {
        self.against.contains(&what)
    }

    /// Computes the logits of every path for the tokens of the first path, and compares them.
    fn logit_checks<B: Instrumented>(
        &self,
        model: &Model<Hooked<B, Counter>>,
        configuration: &Configuration,
        decoded: &[Runs],
        reference: &mut Reference,
        engaged: &mut [Engaged],
        about: &About,
    ) -> Result<Vec<capsule::validate::LogitCheck>> {
        let forced = logits::Forced::new(
            &configuration.tokens,
            &decoded[0].tokens(),
            model.architecture().max_position_embeddings,
        );
        let (of, against) = match reference {
            Reference::Oracle(_) => (None, Against::Oracle.name()),
            Reference::Path(at) => (Some(*at), self.paths[*at].name),
        };
        let want = match reference {
            Reference::Oracle(oracle) => forced.of_oracle(oracle)?,
            Reference::Path(at) => {
                engaged[*at].watch(model, || forced.of_model(model, &self.paths[*at].fusion))?
            }
        };
        let mut checks = Vec::new();
        for (at, path) in self.paths.iter().enumerate().filter(|(at, _)| Some(*at) != of) {
            let got = engaged[at].watch(model, || forced.of_model(model, &path.fusion))?;
            let names = [&configuration.name, path.name, against];
            // On the CPU fused ops give the same bits as their compositions, if the experts are chosen in the same way.
            let has_same_bits = of.is_some_and(|of| {
                about.name == "cpu" && path.fusion.softmax_route == self.paths[of].fusion.softmax_route
            });
            let bound = if has_same_bits { 0.0 } else { logits::max_rel_rms(about.rounding) };
            checks.push(logits::compare(names, &got, &want, bound));
        }
        Ok(checks)
    }
}

/// A validation that prints its result.
struct Run {
    validate: Validate,
    args: Args,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    backend: &'a str,
    #[serde(flatten)]
    record: &'a ValidateRecord,
}

impl Job for Run {
    fn run<B: Instrumented + 'static>(self, backend: B, about: &About) -> Result<Outcome> {
        let Self { validate, args } = self;
        let record = validate.examine(backend, about)?;
        let model = validate.checkpoint.name();
        if args.json {
            print_json(&Report { model, backend: &about.text, record: &record })?;
        } else {
            let is_left_out = args.against.is_empty() && !validate.has(Against::Oracle);
            print(&report::text(model, about, &record, is_left_out))?;
        }
        let verdict = record.verdict;
        if let Some(path) = &args.capsule {
            let prompts = validate.configurations.iter();
            let prompts = prompts.map(|c| capsule::Prompt::new(&c.name, &c.tokens)).collect();
            let mut progress = WorkProgress::default();
            let mut on_progress = |work, done, of| progress.update(work, done, of);
            let context = Context {
                build: build_info::build(),
                model: ModelFacts::of(&validate.checkpoint, &mut on_progress)?,
                backends: &[about.info()],
                prompts,
            };
            let capsule = Capsule::new(Record::Validate(record), context)?;
            output::write_new(path, args.force, &capsule.to_json()?)?;
        }
        if verdict == Verdict::Fail {
            note(format_args!("error: {model}: a check failed"));
            return Ok(Outcome::CheckFailed);
        }
        Ok(Outcome::Done)
    }
}
