//! The contents of a capsule as tables.

use super::Capsule;
use super::bench::{BenchRecord, BenchTest};
use crate::grid::Grid;
use crate::stats::{mean_sd, median, quantile, range};
use zmlx_models::human_bytes;

/// What was run, when, and on which machine.
pub fn about(capsule: &Capsule) -> Grid {
    let mut grid = Grid::new(2, &["", ""]);
    let mut row = |what: &str, value: String| grid.row(vec![what.to_owned(), value]);
    let (zmlx, machine, model) = (&capsule.zmlx, &capsule.machine, &capsule.model);
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    row("date", capsule.date.clone());
    row("command", capsule.command.join(" "));
    row("zmlx", format!("{} ({}), {}, {}", zmlx.version, zmlx.short_commit(), zmlx.profile, zmlx.target));
    let flags = [zmlx.features.join(" "), zmlx.rustflags.clone()];
    row("build", format!("{}; features and flags: {}", zmlx.rustc, flags.join(" ").trim()));
    row("backend", capsule.backend.description.clone());
    let engines: Vec<_> = capsule.engines.iter().map(|(name, version)| format!("{name} {version}")).collect();
    if !engines.is_empty() {
        row("engines", engines.join(", "));
    }
    let cores = format!("{} cores ({} logical)", machine.physical_cores, machine.logical_cores);
    let clock = machine.cpu_mhz.map_or_else(String::new, |mhz| format!(", {mhz} MHz"));
    row("processor", format!("{}, {cores}, {}{clock}", machine.cpu, machine.level));
    if let Some(gpu) = &machine.gpu {
        row("graphics processor", gpu.clone());
    }
    row("memory", or_unknown(machine.memory_bytes.map(human_bytes)));
    row("system", format!("{} ({})", machine.os, machine.arch));
    let size = human_bytes(model.weight_bytes);
    row("model", format!("{} ({}, {} layers, {size})", model.name, model.model_type, model.n_layers));
    row("config hash", model.config_sha256.clone());
    match (&model.synthetic, &model.weights_sha256) {
        (Some(s), _) => row("weights", format!("random: {}, seed {}", s.spec, s.seed)),
        (None, hash) => row("weights hash", or_unknown(hash.clone())),
    }
    for (name, value) in &capsule.environment {
        row("environment", format!("{name}={value}"));
    }
    for p in &capsule.prompts {
        let hash = p.sha256.get(..12).unwrap_or(&p.sha256);
        row("prompt", format!("{}: {} tokens, {hash}…", p.name, p.n_tokens));
    }
    if let Some(bench) = &capsule.bench {
        let gbps = |b: &super::bench::Bandwidth| {
            format!("{:.1} GB/s by {} threads", b.bytes_per_second / 1e9, b.threads)
        };
        row("read bandwidth", bench.bandwidth.as_ref().map_or_else(|| "not measured".to_owned(), gbps));
        row("peak memory", or_unknown(bench.peak_memory_bytes.map(human_bytes)));
        row("repetitions", bench.repetitions.to_string());
    }
    grid
}

/// The backend of a test, with its details if the capsule has them.
pub fn backend(capsule: &Capsule, test: &BenchTest) -> String {
    let main = &capsule.backend;
    if test.backend == main.name { main.description.clone() } else { test.backend.clone() }
}

/// Every test of every path: speed, spread, bandwidth, latencies.
pub fn speed(bench: &BenchRecord) -> Grid {
    let header = [
        "test",
        "backend",
        "path",
        "median t/s",
        "mean ± sd",
        "vs first",
        "range",
        "GB/s",
        "of probe",
        "p50 ms",
        "p95",
        "p99",
        "launches",
    ];
    let mut grid = Grid::new(3, &header);
    for test in &bench.tests {
        let ms = |q| number(quantile(&test.token_latencies_s, q).map(|s| s * 1e3), 3);
        let rates: Vec<f64> = test.samples_s.iter().map(|s| test.tokens_per_sample as f64 / s).collect();
        let [ratio, spread] = speed_up_cells(bench, test);
        grid.row(vec![
            test.name.clone(),
            test.backend.clone(),
            test.fusion.clone(),
            number(median(&rates), 2),
            mean_sd(&rates).map_or_else(dash, |(mean, sd)| format!("{mean:.2} ± {sd:.2}")),
            ratio,
            spread,
            number(bytes_per_second(test).map(|b| b / 1e9), 2),
            bandwidth_share(bench, test).map_or_else(dash, |share| format!("{:.0} %", share * 100.0)),
            ms(0.5),
            ms(0.95),
            ms(0.99),
            number(test.launches_per_token, 0),
        ]);
    }
    grid
}

/// The ratio to the baseline and its range, as cells.
pub fn speed_up_cells(bench: &BenchRecord, test: &BenchTest) -> [String; 2] {
    match speed_up(bench, test) {
        Some((ratio, (low, high))) => [format!("{ratio:.3}×"), format!("{low:.3}–{high:.3}")],
        None => [dash(), dash()],
    }
}

/// How many times as fast as the baseline: the median over repetitions, with the smallest and the largest. `None` for
/// the baseline itself.
pub fn speed_up(bench: &BenchRecord, test: &BenchTest) -> Option<(f64, (f64, f64))> {
    let ratios = speed_ups(bench, test)?;
    Some((median(&ratios)?, range(&ratios)?))
}

/// How many times as fast as the baseline each repetition was. Repetitions that ran next to each other are compared.
/// `None` for the baseline itself.
pub fn speed_ups(bench: &BenchRecord, test: &BenchTest) -> Option<Vec<f64>> {
    let base = baseline(bench, test)?;
    let seconds =
        |t: &BenchTest| -> Vec<f64> { t.samples_s.iter().map(|s| s / t.tokens_per_sample as f64).collect() };
    Some(seconds(base).iter().zip(seconds(test)).map(|(b, t)| b / t).collect())
}

/// The test with which a test is compared: the same test on the first path or, if there is only one path, on the first
/// backend. `None` for the baseline itself.
pub fn baseline<'a>(bench: &'a BenchRecord, test: &BenchTest) -> Option<&'a BenchTest> {
    let is_base = |t: &&BenchTest| {
        t.name == test.name
            && match &bench.fusions[..] {
                [first, _, ..] => t.fusion == *first && t.backend == test.backend,
                _ => true,
            }
    };
    bench.tests.iter().find(is_base).filter(|base| *base != test)
}

/// Bytes of weights and caches that were read per second, at the median.
fn bytes_per_second(test: &BenchTest) -> Option<f64> {
    let seconds = median(&test.samples_s)? / test.tokens_per_sample as f64;
    test.bytes_per_token.map(|bytes| bytes / seconds)
}

/// The median of the probes that belong to a test, or the best of the bench's probes if there are none. `None` if they read other
/// memory than the test.
pub fn probe(bench: &BenchRecord, test: &BenchTest) -> Option<f64> {
    if !test.reads_probed_memory() {
        return None;
    }
    median(&test.probes_bytes_per_second).or_else(|| bench.bandwidth.as_ref().map(|b| b.bytes_per_second))
}

/// The fraction of the bandwidth that the probes reached.
pub fn bandwidth_share(bench: &BenchRecord, test: &BenchTest) -> Option<f64> {
    share_of_bandwidth(test, bench.bandwidth.as_ref().map(|b| b.bytes_per_second))
}

/// The fraction of the read bandwidth: the median over repetitions. Each is compared with the probe before it or,
/// without probes, with `bytes_per_second`. (A machine's bandwidth may double from one minute to the next.) `None` if the probes read
/// other memory than the test.
pub fn share_of_bandwidth(test: &BenchTest, bytes_per_second: Option<f64>) -> Option<f64> {
    if !test.reads_probed_memory() {
        return None;
    }
    let bytes = test.bytes_per_token? * test.tokens_per_sample as f64;
    let probes =
        test.probes_bytes_per_second.iter().copied().map(Some).chain(std::iter::repeat(bytes_per_second));
    let shares: Vec<f64> = test
        .samples_s
        .iter()
        .zip(probes)
        .filter_map(|(seconds, probe)| Some(bytes / seconds / probe?))
        .collect();
    median(&shares).filter(|share| share.is_finite())
}

/// Where the time of a token goes.
pub fn profile(bench: &BenchRecord) -> Grid {
    let mut grid = Grid::new(3, &["test", "path", "phase", "µs/token", "share"]);
    for p in &bench.profile {
        let (time, share) =
            (format!("{:.1}", p.seconds_per_token * 1e6), format!("{:.1} %", p.share * 100.0));
        grid.row(vec![p.test.clone(), p.fusion.clone(), p.phase.clone(), time, share]);
    }
    grid.without_repetition()
}

/// The tables of a validation with their titles. Empty tables are left out.
pub fn validation(record: &super::validate::ValidateRecord) -> Vec<(&'static str, Grid)> {
    let scientific = |value: Option<f64>| value.map_or_else(dash, |v| format!("{v:.1e}"));
    let mut tokens =
        Grid::new(2, &["prompt", "comparison", "tokens", "differs at", "margin", "bound", "verdict"]);
    for c in &record.checks {
        tokens.row(vec![
            c.prompt.clone(),
            c.comparison.clone(),
            c.n_tokens.to_string(),
            c.first_divergence.map_or_else(dash, |at| at.to_string()),
            scientific(c.margin),
            scientific(c.bound),
            c.verdict.name().to_owned(),
        ]);
    }
    let header =
        ["prompt", "comparison", "positions", "max abs", "mean abs", "rel rms", "KL", "bound", "verdict"];
    let mut logits = Grid::new(2, &header);
    for l in &record.logits {
        logits.row(vec![
            l.prompt.clone(),
            format!("{} vs {}", l.path, l.reference),
            l.n_positions.to_string(),
            scientific(l.max_abs),
            scientific(l.mean_abs),
            scientific(l.rel_rms),
            scientific(l.kl),
            scientific(l.bound),
            l.verdict.name().to_owned(),
        ]);
    }
    let mut engagement = Grid::new(2, &["path", "op", "calls", "kernels", "verdict"]);
    for e in &record.engagement {
        let (calls, runs) = (e.calls.to_string(), e.runs.to_string());
        engagement.row(vec![e.fusion.clone(), e.op.clone(), calls, runs, e.verdict.name().to_owned()]);
    }
    let mut timings = Grid::new(2, &["configuration", "path", "runs", "tokens", "median ms", "range ms"]);
    for t in &record.timings {
        let ms = |s: f64| format!("{:.1}", s * 1e3);
        timings.row(vec![
            t.configuration.clone(),
            t.fusion.clone(),
            t.samples_s.len().to_string(),
            t.n_tokens.to_string(),
            median(&t.samples_s).map_or_else(dash, ms),
            range(&t.samples_s).map_or_else(dash, |(low, high)| format!("{}–{}", ms(low), ms(high))),
        ]);
    }
    let mut tables = vec![
        ("Greedy tokens", tokens),
        ("Logits at the same tokens", logits),
        ("Fused ops", engagement),
        ("Times of the runs", timings),
    ];
    tables.retain(|(_, grid)| !grid.is_empty());
    tables
}

pub(crate) fn dash() -> String {
    "–".to_owned()
}

/// A number with this many decimals.
pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(dash, |v| format!("{v:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_of_the_host_say_nothing_about_a_gpu() {
        let test = |backend: &str| -> BenchTest {
            let json = serde_json::json!({
                "name": "tg4", "fusion": "fused", "backend": backend, "n_prompt": 0, "n_generate": 4, "depth": 0,
                "batch": 1, "tokens_per_sample": 4, "samples_s": [2.0], "token_latencies_s": [], "ttft_s": [],
                "probes_bytes_per_second": [10.0], "bytes_per_token": 4.0, "launches_per_token": null,
                "barriers_per_token": null, "barrier_s_per_token": null,
            });
            serde_json::from_value(json).unwrap()
        };
        assert_eq!(share_of_bandwidth(&test("cpu"), None), Some(0.8));
        assert_eq!(share_of_bandwidth(&test("mlx"), Some(1.0)), Some(0.8));
        assert_eq!(share_of_bandwidth(&test("cuda"), Some(1.0)), None);
    }
}
