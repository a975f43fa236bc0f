//! `zmlx doctor`: shows what this machine and this build can do, and checks whether each fused op computes the right
//! values.

mod machine;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, self_check};

use crate::args::{BackendArgs, BackendKind, ModelArgs, heading};
use crate::engine::{self, About, Job, Setting};
use crate::output::{Outcome, message, note, print, print_json};
use crate::source::Source;
use crate::table::Table;
use machine::Machine;

/// Arguments of `zmlx doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print one JSON object.
    #[arg(long, help_heading = heading::OUTPUT)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    zmlx: &'static str,
    machine: Machine,
    model: &'a str,
    backends: Vec<BackendReport>,
}

#[derive(Serialize)]
struct BackendReport {
    backend: String,
    /// Name and versions; `None` if the backend is not available.
    about: Option<String>,
    /// Why the backend is not available, or what a user should know about it.
    remark: Option<String>,
    settings: Vec<Setting>,
    ops: Vec<OpReport>,
}

#[derive(Serialize)]
struct OpReport {
    /// Its name in a fusion: `experts`, `combine`, …
    op: &'static str,
    kernel: &'static str,
    shape: String,
    n_layers: usize,
    ok: bool,
    result: String,
}

/// Probes the machine, checks every backend or the one that was named, and prints a report.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let checkpoint = Source::resolve(&args.model)?.checkpoint()?;
    let mut backends = Vec::new();
    let kinds =
        args.backend.backend.map_or_else(|| BackendKind::value_variants().to_vec(), |kind| vec![kind]);
    for kind in kinds {
        let backend = BackendArgs { backend: Some(kind), ..args.backend };
        match engine::with_backend(backend, Check { checkpoint: &checkpoint, reports: &mut backends }) {
            Ok(_) => {}
            // A backend that the user named must be available.
            Err(e) if is_unavailable(&e) && args.backend.backend.is_none() => backends.push(BackendReport {
                backend: format!("{kind:?}").to_lowercase(),
                about: None,
                remark: Some(why_not(&e)),
                settings: Vec::new(),
                ops: Vec::new(),
            }),
            Err(e) => return Err(e),
        }
    }
    let report = Report {
        zmlx: env!("CARGO_PKG_VERSION"),
        machine: Machine::probe(),
        model: checkpoint.name(),
        backends,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    let failed = report.backends.iter().flat_map(|b| &b.ops).filter(|op| !op.ok).count();
    if failed > 0 {
        note(format_args!("error: {failed} fused ops failed their self-check"));
        return Ok(Outcome::CheckFailed);
    }
    Ok(Outcome::Done)
}

/// Why a backend is not available, without the words "not available" themselves.
fn why_not(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(zmlx_kernels::Error::Unavailable { why, .. }) => why.clone(),
        _ => message(error),
    }
}

fn is_unavailable(error: &anyhow::Error) -> bool {
    let kernels = error.downcast_ref::<zmlx_kernels::Error>();
    matches!(kernels, Some(zmlx_kernels::Error::Unavailable { .. }))
}

/// Loads the model and checks each fused op that it uses.
struct Check<'a> {
    checkpoint: &'a Checkpoint,
    reports: &'a mut Vec<BackendReport>,
}

impl Job for Check<'_> {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let name = backend.name().to_owned();
        let (model, _) = engine::load(backend, self.checkpoint)?;
        let check = self_check(&model, &Fusion::FUSED)?;
        let ops = check.ops.into_iter().map(|op| OpReport {
            op: op.part.name(),
            kernel: op.op.name,
            shape: op.shape,
            n_layers: op.n_layers,
            ok: op.outcome.is_sound(),
            result: if op.outcome.is_sound() {
                op.outcome.to_string()
            } else {
                format!("switched off in layer {}: {}", op.layer_idx, op.outcome)
            },
        });
        self.reports.push(BackendReport {
            backend: name,
            about: Some(about.text.clone()),
            remark: about.remark.map(str::to_owned),
            settings: about.settings.clone(),
            ops: ops.collect(),
        });
        Ok(Outcome::Done)
    }
}

impl Report<'_> {
    fn text(&self) -> String {
        let mut text = format!("zmlx {}\n{}Model: {}\n", self.zmlx, self.machine.text(), self.model);
        for b in &self.backends {
            let Some(about) = &b.about else {
                text += &format!(
                    "\n{}: not available: {}\n",
                    b.backend,
                    b.remark.as_deref().unwrap_or("unknown")
                );
                continue;
            };
            text += &format!("\n{about}\n");
            if let Some(remark) = &b.remark {
                text += &format!("{remark}\n");
            }
            for setting in &b.settings {
                text += &format!("{}\n", setting.text());
            }
            let mut table = Table::new(&["kernel", "shape", "layers", "self-check"]);
            for op in &b.ops {
                table.row(vec![
                    op.kernel.into(),
                    op.shape.clone(),
                    op.n_layers.to_string(),
                    op.result.clone(),
                ]);
            }
            text += &table.render();
        }
        text
    }
}
