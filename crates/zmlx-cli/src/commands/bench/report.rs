//! The measurements as a table, as CSV and as JSON.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::stats::Stats;
use crate::capsule::bench::{Bandwidth, BenchTest, PhaseTime};
use crate::capsule::facts::share_of_bandwidth;
use crate::table::{HEADER, human_bytes, is_coloured, painted};

/// A spread above this asks for a quieter machine.
pub(super) const MAX_SPREAD: f64 = 0.05;

/// What `-o` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// A table in Markdown, as llama-bench prints.
    Md,
    /// One line per test.
    Csv,
    /// One object with every single measurement.
    Json,
    /// One object per test and line.
    Jsonl,
}

/// What was measured and on what.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) model: &'a str,
    pub(super) weight_bytes: u64,
    /// Threads of each backend, by its name.
    pub(super) threads: Vec<(&'a str, usize)>,
    /// Before and after the tests.
    pub(super) bandwidth: [Option<Bandwidth>; 2],
    pub(super) peak_memory_bytes: Option<u64>,
    pub(super) tests: &'a [BenchTest],
    pub(super) profile: &'a [Profile],
}

/// A phase with its bytes per second, where it is known what it reads.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Profile {
    #[serde(flatten)]
    pub(super) time: PhaseTime,
    pub(super) bytes_per_second: Option<f64>,
}

/// A test's samples in a few numbers: a line of the table.
#[derive(Debug, Serialize)]
struct Line<'a> {
    model: &'a str,
    size_bytes: u64,
    backend: &'a str,
    threads: usize,
    fusion: &'a str,
    test: &'a str,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_batch: usize,
    avg_ts: f64,
    stddev_ts: f64,
    median_ts: f64,
    /// Tokens per second beside those of the first path; 1 is equal.
    speedup: f64,
    ttft_ms: Option<f64>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    bytes_per_second: Option<f64>,
    share_of_bandwidth: Option<f64>,
    launches_per_token: Option<f64>,
    barriers_per_token: Option<f64>,
    barrier_us_per_token: Option<f64>,
}

/// Tokens per second of each sample.
pub(super) fn speeds(test: &BenchTest) -> Stats {
    Stats::of(test.samples_s.iter().map(|s| test.tokens_per_sample as f64 / s.max(f64::MIN_POSITIVE)))
}

impl Report<'_> {
    pub(super) fn text(&self, format: Format) -> Result<String> {
        Ok(match format {
            Format::Md => self.markdown(),
            Format::Csv => self.csv()?,
            Format::Json => format!("{}\n", self.json()),
            Format::Jsonl => {
                let objects = self.tests.iter().map(|t| self.object(t).to_string() + "\n");
                objects.collect()
            }
        })
    }

    /// The better of the two probes.
    fn read_bytes_per_second(&self) -> Option<f64> {
        self.bandwidth.iter().flatten().map(|b| b.bytes_per_second).reduce(f64::max)
    }

    fn line<'a>(&'a self, test: &'a BenchTest) -> Line<'a> {
        let speeds = speeds(test);
        let latencies = Stats::of(test.token_latencies_s.iter().map(|s| s * 1e3));
        let is_decoding = !test.token_latencies_s.is_empty();
        let ms = |percent: f64| is_decoding.then(|| latencies.percentile(percent));
        let bytes_per_second = test.bytes_per_token.map(|b| b * speeds.median());
        let first = self.tests.iter().find(|t| t.name == test.name).unwrap_or(test);
        Line {
            model: self.model,
            size_bytes: self.weight_bytes,
            backend: &test.backend,
            threads: self.threads.iter().find(|(name, _)| *name == test.backend).map_or(0, |(_, n)| *n),
            fusion: &test.fusion,
            test: &test.name,
            n_prompt: test.n_prompt,
            n_gen: test.n_generate,
            n_depth: test.depth,
            n_batch: test.batch,
            avg_ts: speeds.mean(),
            stddev_ts: speeds.std_dev(),
            median_ts: speeds.median(),
            speedup: speeds.median() / self::speeds(first).median(),
            ttft_ms: (!test.ttft_s.is_empty())
                .then(|| Stats::of(test.ttft_s.iter().map(|s| s * 1e3)).median()),
            p50_ms: ms(50.0),
            p95_ms: ms(95.0),
            p99_ms: ms(99.0),
            bytes_per_second,
            share_of_bandwidth: share_of_bandwidth(test, self.read_bytes_per_second()),
            launches_per_token: test.launches_per_token,
            barriers_per_token: test.barriers_per_token,
            barrier_us_per_token: test.barrier_s_per_token.map(|s| s * 1e6),
        }
    }

    fn markdown(&self) -> String {
        let mut rows = vec![
            [
                "model",
                "size",
                "backend",
                "threads",
                "fusion",
                "test",
                "t/s",
                "median",
                "vs first",
                "TTFT ms",
                "p50 ms",
                "p95 ms",
                "p99 ms",
                "GB/s",
                "of probe",
                "launches",
                "barriers",
                "waited µs",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        let cell =
            |value: Option<f64>, digits: usize| value.map_or_else(String::new, |v| format!("{v:.digits$}"));
        for line in self.tests.iter().map(|t| self.line(t)) {
            rows.push(vec![
                line.model.to_owned(),
                human_bytes(line.size_bytes),
                line.backend.to_owned(),
                line.threads.to_string(),
                line.fusion.to_owned(),
                line.test.to_owned(),
                format!("{:.2} ± {:.2}", line.avg_ts, line.stddev_ts),
                format!("{:.2}", line.median_ts),
                format!("{:.3}×", line.speedup),
                cell(line.ttft_ms, 1),
                cell(line.p50_ms, 2),
                cell(line.p95_ms, 2),
                cell(line.p99_ms, 2),
                cell(line.bytes_per_second.map(|b| b / 1e9), 2),
                line.share_of_bandwidth.map_or_else(String::new, |s| format!("{:.0} %", s * 100.0)),
                cell(line.launches_per_token, 0),
                cell(line.barriers_per_token, 0),
                cell(line.barrier_us_per_token, 0),
            ]);
        }
        let mut text = markdown_table(&rows, 6);
        if !self.profile.is_empty() {
            let mut rows =
                vec![["fusion", "test", "phase", "µs/token", "share", "GB/s"].map(str::to_owned).to_vec()];
            for Profile { time, bytes_per_second } in self.profile {
                rows.push(vec![
                    time.fusion.clone(),
                    time.test.clone(),
                    time.phase.clone(),
                    format!("{:.1}", time.seconds_per_token * 1e6),
                    format!("{:.1} %", time.share * 100.0),
                    cell(bytes_per_second.map(|b| b / 1e9), 2),
                ]);
            }
            text += "\nOps timed one by one, which costs time of its own; sync is time outside ops.\n\n";
            text += &markdown_table(&rows, 3);
        }
        let [before, after] = &self.bandwidth;
        let gb = |b: &Option<Bandwidth>| {
            b.as_ref().map_or_else(|| "?".to_owned(), |b| format!("{:.1}", b.bytes_per_second / 1e9))
        };
        let n_threads = before.as_ref().or(after.as_ref()).map_or(0, |b| b.threads);
        text += &format!(
            "\nmemory reads at {} GB/s before and {} GB/s after ({n_threads} threads)",
            gb(before),
            gb(after)
        );
        if let Some(peak) = self.peak_memory_bytes {
            text += &format!("; peak memory {}", human_bytes(peak));
        }
        text.push('\n');
        text
    }

    fn csv(&self) -> Result<String> {
        let mut text = String::new();
        for test in self.tests {
            let Value::Object(line) = serde_json::to_value(self.line(test))? else { continue };
            if text.is_empty() {
                text = line.keys().map(String::as_str).collect::<Vec<_>>().join(",") + "\n";
            }
            let cell = |value: &Value| match value {
                Value::Null => String::new(),
                Value::String(s) => format!("\"{}\"", s.replace('"', "\"\"")),
                other => other.to_string(),
            };
            text += &(line.values().map(cell).collect::<Vec<_>>().join(",") + "\n");
        }
        Ok(text)
    }

    fn object(&self, test: &BenchTest) -> Value {
        let mut value = json!(self.line(test));
        value["samples_s"] = json!(test.samples_s);
        value["token_latencies_s"] = json!(test.token_latencies_s);
        value["probes_bytes_per_second"] = json!(test.probes_bytes_per_second);
        value
    }

    fn json(&self) -> Value {
        json!({
            "model": self.model,
            "weight_bytes": self.weight_bytes,
            "bandwidth_before": self.bandwidth[0],
            "bandwidth_after": self.bandwidth[1],
            "peak_memory_bytes": self.peak_memory_bytes,
            "tests": self.tests.iter().map(|t| self.object(t)).collect::<Vec<_>>(),
            "profile": self.profile,
        })
    }
}

/// Padded columns, the first row as the header; from column `n_left` on they are aligned to the right.
fn markdown_table(rows: &[Vec<String>], n_left: usize) -> String {
    let n_columns = rows.first().map_or(0, Vec::len);
    let width =
        |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        text.push('|');
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let cell = if i == 0 && is_coloured() { painted(cell, HEADER) } else { cell.clone() };
            text += &if c < n_left { format!(" {cell}{pad} |") } else { format!(" {pad}{cell} |") };
        }
        text.push('\n');
        if i == 0 {
            text.push('|');
            for (c, &width) in widths.iter().enumerate() {
                let line = "-".repeat(width);
                text += &if c < n_left { format!(" {line} |") } else { format!(" {line}:|") };
            }
            text.push('\n');
        }
    }
    text
}
