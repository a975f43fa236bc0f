//! Prints a validation as text.

use crate::engine::About;
use crate::table::Table;
use zmlx_bench::capsule::validate::{Timing, ValidateRecord};
use zmlx_bench::stats::{median, range};

/// The text for stdout. `is_reference_left_out` means that the model is too large for the reference, and that the user
/// did not ask for it.
pub(super) fn text(
    model: &str,
    about: &About,
    record: &ValidateRecord,
    is_reference_left_out: bool,
) -> String {
    let number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.1e}"));
    let mut text = format!("{model} on {}\n", about.text);
    text += &format!(
        "Greedy tokens, {} runs of each path in turns; a flip is explained where the margin is below {:.0e} of the logits' \
         spread\n\n",
        record.runs, record.margin_bound
    );
    let mut table =
        Table::new(&["prompt", "comparison", "tokens", "first flip", "margin", "bound", "verdict"]);
    for c in &record.checks {
        table.row(vec![
            c.prompt.clone(),
            c.comparison.clone(),
            c.n_tokens.to_string(),
            c.first_divergence.map_or_else(|| "-".into(), |i| i.to_string()),
            number(c.margin),
            number(c.bound),
            c.verdict.name().into(),
        ]);
    }
    text += &table.render();
    if is_reference_left_out {
        text += "\nThe model is too large for the reference implementation: its logits are compared with a baseline's.\n";
    }
    if !record.logits.is_empty() {
        text += "\nLogits at the same tokens; rel rms is the difference's root mean square over that of the logits\n\n";
        let header =
            ["prompt", "comparison", "positions", "max abs", "mean abs", "KL", "rel rms", "bound", "verdict"];
        let mut table = Table::new(&header);
        for l in &record.logits {
            table.row(vec![
                l.prompt.clone(),
                format!("{} vs {}", l.path, l.reference),
                l.n_positions.to_string(),
                number(l.max_abs),
                number(l.mean_abs),
                number(l.kl),
                number(l.rel_rms),
                number(l.bound),
                l.verdict.name().into(),
            ]);
        }
        text += &table.render();
    }
    text += "\nFused ops: calls, and how many of them ran as one kernel\n\n";
    let mut table = Table::new(&["path", "op", "calls", "kernels", "verdict"]);
    for e in &record.engagement {
        let (calls, runs) = (e.calls.to_string(), e.runs.to_string());
        table.row(vec![e.fusion.clone(), e.op.clone(), calls, runs, e.verdict.name().into()]);
    }
    text += &table.render();
    if let Some(remark) = about.remark {
        text += &format!("\n{remark}\n");
    }
    text += &speeds(&record.timings);
    text + &format!("\n{}\n", record.verdict.name())
}

/// Tokens per second of the median run.
fn median_speed(timing: &Timing) -> Option<f64> {
    median(&timing.samples_s).map(|seconds| timing.n_tokens as f64 / seconds)
}

/// The medians of every configuration, and their means.
fn speeds(timings: &[Timing]) -> String {
    let Some(first) = timings.first() else { return String::new() };
    let paths: Vec<&str> =
        timings.iter().take_while(|t| t.configuration == first.configuration).map(|t| &*t.fusion).collect();
    let configurations: Vec<Vec<f64>> =
        timings.chunks(paths.len()).map(|row| row.iter().filter_map(median_speed).collect()).collect();
    if configurations.iter().any(|row| row.len() < paths.len()) {
        // The first token is not timed, so a single token has no time.
        return String::new();
    }
    let mut text =
        "\nDecoded tokens per second, median of the runs. The verdict does not depend on them\n\n".to_owned();
    let header: Vec<&str> = std::iter::once("prompt").chain(paths.iter().copied()).collect();
    let mut table = Table::new(&header);
    let cells = |values: &[f64]| values.iter().map(|v| format!("{v:.1}")).collect::<Vec<_>>();
    for (row, timing) in configurations.iter().zip(timings.iter().step_by(paths.len())) {
        table.row([vec![timing.configuration.clone()], cells(row)].concat());
    }
    let mean = |of: &dyn Fn(&[f64]) -> f64| {
        configurations.iter().map(|row| of(row)).sum::<f64>() / configurations.len() as f64
    };
    let means: Vec<f64> = (0..paths.len()).map(|path| mean(&|row| row[path])).collect();
    table.row([vec!["mean of medians".to_owned()], cells(&means)].concat());
    let beside = |path: usize| {
        let ratios: Vec<f64> = configurations.iter().map(|row| row[path] / row[0]).collect();
        let (low, high) = range(&ratios).unwrap_or((f64::NAN, f64::NAN));
        format!("{:.3} ({low:.3}–{high:.3})", mean(&|row| row[path] / row[0]))
    };
    let ratios = (0..paths.len()).map(beside);
    table.row(std::iter::once(format!("beside {}", paths[0])).chain(ratios).collect());
    text += &table.render();
    text
}
