//! Compares two capsules: which facts differ, and whether the second is worse.

use std::collections::BTreeMap;

use serde_json::Value;

use super::facts::{dash, number};
use super::validate::{ValidateRecord, Verdict};
use super::{Capsule, Kind};
use crate::grid::Grid;
use crate::stats::{Interval, median, quotient_interval};
use crate::{Error, Result};

/// The facts that differ between two capsules, by field.
///
/// # Errors
/// If a number of a capsule is not finite.
pub fn facts(a: &Capsule, b: &Capsule) -> Result<Grid> {
    let mut grid = Grid::new(3, &["field", "A", "B"]);
    let flat = |capsule: &Capsule| -> Result<BTreeMap<String, String>> {
        let mut fields = BTreeMap::new();
        let mut value = serde_json::to_value(capsule)?;
        if let Some(object) = value.as_object_mut() {
            object.retain(|key, _| key != "bench" && key != "validate");
        }
        flatten("", &value, &mut fields);
        Ok(fields)
    };
    let (a, b) = (flat(a)?, flat(b)?);
    for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
        let cell = |fields: &BTreeMap<String, String>| fields.get(key).cloned().unwrap_or_else(dash);
        if cell(&a) != cell(&b) {
            grid.row(vec![key.clone(), cell(&a), cell(&b)]);
        }
    }
    Ok(grid)
}

/// Collects every value of a JSON tree by its path. A list of texts counts as one value.
fn flatten(path: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, fields);
            }
        }
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            fields.insert(path.to_owned(), texts.join(" "));
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                flatten(&format!("{path}[{i}]"), value, fields);
            }
        }
        Value::String(text) => drop(fields.insert(path.to_owned(), text.clone())),
        other => drop(fields.insert(path.to_owned(), other.to_string())),
    }
}

/// A test or check that is in both capsules.
#[derive(Clone, Debug)]
pub struct Pair {
    name: String,
    a: Measure,
    b: Measure,
}

/// The values that are compared.
#[derive(Clone, Debug, PartialEq)]
enum Measure {
    /// The time per token of each repetition, in seconds.
    Seconds(Vec<f64>),
    Verdict(Verdict),
}

/// The result for the second capsule of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Not worse.
    Fine,
    /// Slower than the threshold allows, but the spread of the repetitions leaves doubt.
    Unclear(String),
    /// Certainly worse.
    Worse(String),
}

impl Pair {
    /// Whether `b` is worse: a worse verdict, or a test that takes more than `threshold_percent` longer.
    ///
    /// The 95 % interval of the ratio decides. A test is worse if the whole interval is beyond the threshold, and
    /// unclear if only the estimate is. A test with one repetition has no interval, so its estimate decides. NaN counts
    /// as worse.
    pub fn judge(&self, threshold_percent: f64) -> Judgement {
        match (&self.a, &self.b) {
            (Measure::Seconds(a), Measure::Seconds(b)) => {
                let percent = |ratio: f64| 100.0 * (ratio - 1.0);
                let estimate = percent(median(b).unwrap_or(f64::NAN) / median(a).unwrap_or(f64::NAN));
                let Some(interval) = quotient_interval(a, b) else {
                    let is_fine = estimate <= threshold_percent; // not so if it is NaN
                    let what =
                        format!("{}: takes {estimate:.1} % longer (one repetition: no interval)", self.name);
                    return if is_fine { Judgement::Fine } else { Judgement::Worse(what) };
                };
                let [middle, low, high] = [interval.estimate, interval.low, interval.high].map(percent);
                let what = format!(
                    "{}: takes {middle:.1} % longer (95 % interval: {low:.1} to {high:.1} %)",
                    self.name
                );
                if middle <= threshold_percent {
                    Judgement::Fine
                } else if low <= threshold_percent {
                    Judgement::Unclear(what)
                } else {
                    Judgement::Worse(what)
                }
            }
            (Measure::Verdict(a), Measure::Verdict(b)) if b > a => {
                Judgement::Worse(format!("{}: {} → {}", self.name, a.name(), b.name()))
            }
            _ => Judgement::Fine,
        }
    }
}

/// The pairs as a table.
pub fn table(pairs: &[Pair]) -> Grid {
    let mut grid = Grid::new(1, &["test", "A", "B", "B ÷ A", "95 % interval"]);
    for pair in pairs {
        let cells = match (&pair.a, &pair.b) {
            (Measure::Seconds(a), Measure::Seconds(b)) => {
                let speed = |seconds: &[f64]| median(seconds).map(|s| 1.0 / s);
                let ratio = speed(b).zip(speed(a)).map(|(b, a)| b / a);
                // The range of speeds, so its ratio is the inverse of that of the seconds.
                let range = quotient_interval(b, a)
                    .map_or_else(dash, |Interval { low, high, .. }| format!("{low:.3}–{high:.3}"));
                [number(speed(a), 2), number(speed(b), 2), number(ratio, 3), range]
            }
            (a, b) => [verdict_cell(a), verdict_cell(b), dash(), dash()],
        };
        grid.row([vec![pair.name.clone()], cells.to_vec()].concat());
    }
    grid
}

fn verdict_cell(measure: &Measure) -> String {
    if let Measure::Verdict(v) = measure { v.name().to_owned() } else { dash() }
}

/// The tests and checks that are in both capsules.
pub fn pairs(a: &Capsule, b: &Capsule) -> Vec<Pair> {
    let b = measures(b);
    let both = measures(a).into_iter().filter_map(|(name, a)| {
        let (_, b) = b.iter().find(|(other, _)| *other == name)?;
        Some(Pair { name, a, b: b.clone() })
    });
    both.collect()
}

/// The names of tests and checks that are in only one of the capsules: those of `a`, then those of `b`.
pub fn only_in_one(a: &Capsule, b: &Capsule) -> [Vec<String>; 2] {
    let names = |c: &Capsule| measures(c).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let (a, b) = (names(a), names(b));
    let lacking = |from: &[String], other: &[String]| {
        from.iter().filter(|n| !other.contains(n)).cloned().collect::<Vec<_>>()
    };
    [lacking(&a, &b), lacking(&b, &a)]
}

fn measures(capsule: &Capsule) -> Vec<(String, Measure)> {
    let mut found = Vec::new();
    for t in capsule.bench.iter().flat_map(|bench| &bench.tests) {
        let seconds = t.samples_s.iter().map(|s| s / t.tokens_per_sample as f64).collect();
        found.push((format!("{} {} {}", t.name, t.backend, t.fusion), Measure::Seconds(seconds)));
    }
    if let Some(record) = &capsule.validate {
        found.extend(verdicts(record));
    }
    found
}

fn verdicts(record: &ValidateRecord) -> Vec<(String, Measure)> {
    let tokens = record.checks.iter().map(|c| (format!("{}: {}", c.prompt, c.comparison), c.verdict));
    let logits = record.logits.iter().map(|l| (format!("{}: logits of {}", l.prompt, l.path), l.verdict));
    let whole = [("whole".to_owned(), record.verdict)];
    whole.into_iter().chain(tokens).chain(logits).map(|(name, v)| (name, Measure::Verdict(v))).collect()
}

/// Checks that the two can be compared.
///
/// # Errors
/// If their kinds, models or machines differ, or if they have no test in common.
pub fn must_be_comparable(a: &Capsule, b: &Capsule, any_machine: bool) -> Result<()> {
    let must_equal = |what: &str, a: &str, b: &str| {
        if a != b {
            return Err(Error::Incomparable { field: what.to_owned(), a: a.to_owned(), b: b.to_owned() });
        }
        Ok(())
    };
    let kind = |c: &Capsule| if c.kind == Kind::Bench { "bench" } else { "validate" };
    must_equal("kind", kind(a), kind(b))?;
    must_equal("model.config_sha256", &a.model.config_sha256, &b.model.config_sha256)?;
    let weights = |c: &Capsule| match (&c.model.synthetic, &c.model.weights_sha256) {
        (Some(s), _) => format!("random weights of {}, seed {}", s.spec, s.seed),
        (None, hash) => hash.clone().unwrap_or_else(|| "no hash".to_owned()),
    };
    must_equal("model.weights_sha256", &weights(a), &weights(b))?;
    // Verdicts are valid on any machine, but speeds only on the same one.
    if a.kind == Kind::Bench && !any_machine {
        for ((field, a), (_, b)) in a.machine.identity().into_iter().zip(b.machine.identity()) {
            must_equal(&format!("machine.{field} (--any-machine compares them anyway)"), &a, &b)?;
        }
        must_equal(
            "backend.threads (--any-machine compares them anyway)",
            &a.backend.threads.to_string(),
            &b.backend.threads.to_string(),
        )?;
    }
    if pairs(a, b).is_empty() {
        return Err(Error::NothingInCommon);
    }
    Ok(())
}
