//! The first screen of a report: is it faster, by how much, and can the answer be trusted?

use std::fmt::Write;

use super::{Recorded, short};
use crate::capsule::bench::{BenchRecord, BenchTest};
use crate::capsule::validate::Verdict;
use crate::capsule::{Capsule, facts};
use crate::grid::escaped;
use crate::measure::relative_spread;
use crate::stats::{Interval, ratio_interval};

/// A larger spread of repetitions causes a warning.
const MAX_SPREAD: f64 = 0.05;
/// With more answers than this, all are shown small.
const MAX_LARGE: usize = 6;
/// Fewer repetitions than this give wide intervals.
const FEW: usize = 5;

/// Both parts as HTML.
pub(super) fn html(capsules: &[Recorded]) -> String {
    let answers = answers(capsules);
    let mut html = String::new();
    if !answers.is_empty() {
        // Many answers fit on the first screen only if they are small.
        let class = if answers.len() > MAX_LARGE { "answers small" } else { "answers" };
        let _ = writeln!(html, "<div class=\"{class}\">");
        answers.iter().for_each(|answer| html += &answer.html());
        html += "</div>\n";
    }
    let trust = trust(capsules);
    html += "<ul class=\"trust\">\n";
    for (is_good, text) in trust {
        let class = if is_good { "good" } else { "mind" };
        let _ = writeln!(html, "<li class=\"{class}\">{}</li>", escaped(&text));
    }
    html + "</ul>\n"
}

/// What the tests of one kind say about a path and its baseline on one machine.
struct Answer {
    machine: String,
    path: String,
    baseline: String,
    kind: &'static str,
    ratios: Vec<(f64, Option<Interval>)>,
    models: Vec<String>,
}

fn answers(capsules: &[Recorded]) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    for Recorded { capsule, .. } in capsules {
        let Some(bench) = &capsule.bench else { continue };
        for test in &bench.tests {
            let Some(base) = facts::baseline(bench, test) else { continue };
            let Some((ratio, _)) = facts::speed_up(bench, test) else { continue };
            let interval = facts::speed_ups(bench, test).and_then(|ratios| ratio_interval(&ratios));
            let kind = if test.n_generate > 0 { "decoding" } else { "reading prompts" };
            let machine = format!("{}, {}", capsule.machine.cpu, capsule.machine.level);
            let (path, baseline) = (name(capsule, bench, test), name(capsule, bench, base));
            let same =
                |a: &Answer| (&a.machine, &a.path, &a.baseline, a.kind) == (&machine, &path, &baseline, kind);
            let at = answers.iter().position(same).unwrap_or_else(|| {
                let (ratios, models) = (Vec::new(), Vec::new());
                answers.push(Answer { machine, path, baseline, kind, ratios, models });
                answers.len() - 1
            });
            answers[at].ratios.push((ratio, interval));
            let model = short(&capsule.model.name);
            if !answers[at].models.contains(&model) {
                answers[at].models.push(model);
            }
        }
    }
    answers
}

/// The name of a path, with its backend if there are several or if it is not zmlx's.
fn name(capsule: &Capsule, bench: &BenchRecord, test: &BenchTest) -> String {
    let is_alone = bench.tests.iter().all(|t| t.backend == test.backend);
    if is_alone || test.backend == capsule.backend.name {
        test.fusion.clone()
    } else {
        format!("{} {}", test.backend, test.fusion)
    }
}

impl Answer {
    /// How many tests are certainly faster, certainly slower, and neither.
    fn counts(&self) -> [usize; 3] {
        let count = |is: fn(&Interval) -> bool| {
            self.ratios.iter().filter(|(_, interval)| interval.as_ref().is_some_and(is)).count()
        };
        let (faster, slower) = (count(|i| i.low > 1.0), count(|i| i.high < 1.0));
        [faster, slower, self.ratios.len() - faster - slower]
    }

    fn html(&self) -> String {
        let [faster, slower, open] = self.counts();
        let (class, word) = match (faster, slower) {
            (f, 0) if f >= open => ("pass", "FASTER"),
            (0, s) if s >= open => ("fail", "SLOWER"),
            _ => ("explained", "NOT CLEAR"),
        };
        let low = self.ratios.iter().map(|(r, _)| *r).fold(f64::INFINITY, f64::min);
        let high = self.ratios.iter().map(|(r, _)| *r).fold(f64::NEG_INFINITY, f64::max);
        let number = match &self.ratios[..] {
            [(ratio, Some(i))] => {
                format!("{ratio:.2}× <small>({:.2}–{:.2})</small>", i.low, i.high)
            }
            [(ratio, None)] => format!("{ratio:.2}×"),
            _ => format!("{low:.2}–{high:.2}×"),
        };
        let n = self.ratios.len();
        let tests = if n == 1 { "1 test".to_owned() } else { format!("{n} tests") };
        let found: Vec<String> = [(faster, "faster"), (slower, "slower"), (open, "not clear")]
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
        let models = match &self.models[..] {
            [one] => one.clone(),
            several => format!("{} models", several.len()),
        };
        format!(
            "<div class=\"answer\"><span class=\"badge {class}\">{word}</span><b>{number}</b>\
             <p>{}: <strong>{}</strong> beside {}</p><p class=\"soft\">{tests}: {}; {}; {}</p></div>\n",
            self.kind,
            escaped(&self.path),
            escaped(&self.baseline),
            found.join(", "),
            escaped(&models),
            escaped(&self.machine)
        )
    }
}

/// Reasons to trust the results, and what to keep in mind. Each says whether it is good.
fn trust(capsules: &[Recorded]) -> Vec<(bool, String)> {
    let mut reasons = Vec::new();
    let all = || capsules.iter().map(|r| &r.capsule);
    let records: Vec<_> = all().filter_map(|c| c.validate.as_ref()).collect();
    if records.is_empty() {
        reasons
            .push((false, "No validation is among these capsules: tokens were not checked here.".to_owned()));
    } else {
        let n_checks: usize = records.iter().map(|r| r.checks.len() + r.logits.len()).sum();
        let n_failed = records.iter().filter(|r| r.verdict == Verdict::Fail).count();
        let verdict = match n_failed {
            0 => "none fails".to_owned(),
            n => format!("{n} FAIL"),
        };
        let validations = match records.len() {
            1 => "1 validation".to_owned(),
            n => format!("{n} validations"),
        };
        reasons.push((n_failed == 0, format!("Tokens: {validations} with {n_checks} checks, {verdict}.")));
    }
    let benches: Vec<_> = all().filter_map(|c| c.bench.as_ref()).collect();
    if benches.is_empty() {
        return reasons;
    }
    // An engine of another project has its own weights.
    let is_ours =
        |b: &BenchRecord| b.tests.iter().all(|t| ["cpu", "cuda", "mlx"].contains(&t.backend.as_str()));
    if benches.iter().all(|b| is_ours(b)) && benches.iter().any(|b| b.fusions.len() > 1) {
        let text = "Paths ran in turns on the same weights in one process, after a check that they give the same results.";
        reasons.push((true, text.to_owned()));
    }
    let fewest = benches.iter().map(|b| b.repetitions).min().unwrap_or(0);
    let repetitions = format!(
        "Repetitions: {fewest} or more of each test{}.",
        if fewest < FEW { ", which makes the intervals wide" } else { "" }
    );
    reasons.push((fewest >= FEW, repetitions));
    let tests = || benches.iter().flat_map(|b| &b.tests);
    let n_wide = tests().filter(|t| relative_spread(t).is_some_and(|s| s > MAX_SPREAD)).count();
    let n_tests = tests().count();
    let spread = format!(
        "Spread: {n_wide} of {n_tests} results vary by more than {:.0} % between repetitions.",
        MAX_SPREAD * 100.0
    );
    reasons.push((n_wide == 0, spread));
    let probes = || tests().flat_map(|t| &t.probes_bytes_per_second).map(|b| b / 1e9);
    let (low, high) = (probes().fold(f64::INFINITY, f64::min), probes().fold(0.0, f64::max));
    if low.is_finite() && high > 1.2 * low {
        let text = format!(
            "The machine's memory was read at {low:.0} to {high:.0} GB/s meanwhile: other work ran there."
        );
        reasons.push((false, text));
    }
    let count = |is: fn(&Capsule) -> bool| all().filter(|c| is(c)).count();
    for (n, what) in [
        (count(|c| c.zmlx.dirty), "made by sources with changes that no commit has"),
        (count(|c| c.zmlx.profile != "release"), "made by builds without full optimisation"),
    ] {
        if n > 0 {
            reasons.push((false, format!("{n} of {} capsules were {what}.", capsules.len())));
        }
    }
    reasons
}
