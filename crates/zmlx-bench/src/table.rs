//! The results of a bench as a Markdown table, as CSV, and as JSON.

use serde::Serialize;
use serde_json::{Value, json};
use zmlx_models::human_bytes;

use crate::Result;
use crate::capsule::bench::{Bandwidth, BenchTest};
use crate::capsule::facts::share_of_bandwidth;
use crate::measure::{Measured, Profile};
use crate::stats::{mean_sd, median, quantile};

/// The number of columns in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The columns that show how fast it is. They fit into 100 characters.
    Narrow,
    /// All columns.
    Wide,
}

/// The summary of a test's samples, which is a line of the table.
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
    avg_ts: Option<f64>,
    stddev_ts: Option<f64>,
    median_ts: Option<f64>,
    /// How many times as fast as the first path: the median over repetitions that ran next to each other.
    speedup: Option<f64>,
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

impl Measured {
    /// A table in Markdown. A summary comes before it, and the read bandwidth after it.
    pub fn markdown(&self, width: Width) -> String {
        let lines: Vec<Line<'_>> = self.record.tests.iter().map(|t| self.line(t)).collect();
        let mut text = match width {
            Width::Narrow => self.narrow(&lines),
            Width::Wide => wide(&lines),
        };
        if !self.profile.is_empty() {
            text += "\nOps timed one by one, which costs time of its own; sync is the time outside ops.\n\n";
            text += &profile_table(&self.profile);
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
        if let Some(peak) = self.record.peak_memory_bytes {
            text += &format!("; peak memory {}", human_bytes(peak));
        }
        text.push('\n');
        text
    }

    /// A line with the names of the columns, then one line for each test.
    ///
    /// # Errors
    /// If a name cannot be written as JSON.
    pub fn csv(&self) -> Result<String> {
        let mut text = String::new();
        for test in &self.record.tests {
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

    /// One object with every measurement.
    pub fn json(&self) -> Value {
        json!({
            "model": self.model,
            "weight_bytes": self.weight_bytes,
            "bandwidth_before": self.bandwidth[0],
            "bandwidth_after": self.bandwidth[1],
            "peak_memory_bytes": self.record.peak_memory_bytes,
            "tests": self.record.tests.iter().map(|t| self.object(t)).collect::<Vec<_>>(),
            "profile": self.profile,
        })
    }

    /// One object for each test, on a line of its own.
    pub fn json_lines(&self) -> String {
        self.record.tests.iter().map(|t| self.object(t).to_string() + "\n").collect()
    }

    fn object(&self, test: &BenchTest) -> Value {
        let mut value = json!(self.line(test));
        value["samples_s"] = json!(test.samples_s);
        value["token_latencies_s"] = json!(test.token_latencies_s);
        value["probes_bytes_per_second"] = json!(test.probes_bytes_per_second);
        value
    }

    fn line<'a>(&'a self, test: &'a BenchTest) -> Line<'a> {
        let speeds: Vec<f64> = test.samples_s.iter().map(|s| test.tokens_per_sample as f64 / s).collect();
        let ms = |seconds: Option<f64>| seconds.map(|s| s * 1e3);
        let first = self.record.tests.iter().find(|t| t.name == test.name).unwrap_or(test);
        let ratios: Vec<f64> = first.samples_s.iter().zip(&test.samples_s).map(|(f, t)| f / t).collect();
        let best_probe = self.record.bandwidth.as_ref().map(|b| b.bytes_per_second);
        let backend = self.backends.iter().find(|b| b.name == test.backend);
        Line {
            model: &self.model,
            size_bytes: self.weight_bytes,
            backend: &test.backend,
            threads: backend.map_or(0, |b| b.n_threads),
            fusion: &test.fusion,
            test: &test.name,
            n_prompt: test.n_prompt,
            n_gen: test.n_generate,
            n_depth: test.depth,
            n_batch: test.batch,
            avg_ts: mean_sd(&speeds).map(|(mean, _)| mean),
            stddev_ts: mean_sd(&speeds).map(|(_, sd)| sd),
            median_ts: median(&speeds),
            speedup: median(&ratios),
            ttft_ms: ms(median(&test.ttft_s)),
            p50_ms: ms(median(&test.token_latencies_s)),
            p95_ms: ms(quantile(&test.token_latencies_s, 0.95)),
            p99_ms: ms(quantile(&test.token_latencies_s, 0.99)),
            bytes_per_second: median(&speeds).and_then(|speed| Some(speed * test.bytes_per_token?)),
            share_of_bandwidth: share_of_bandwidth(test, best_probe),
            launches_per_token: test.launches_per_token,
            barriers_per_token: test.barriers_per_token,
            barrier_us_per_token: test.barrier_s_per_token.map(|s| s * 1e6),
        }
    }

    fn narrow(&self, lines: &[Line<'_>]) -> String {
        let backends: Vec<&str> = self.backends.iter().map(|b| b.description.as_str()).collect();
        let mut text =
            format!("{} ({}) on {}\n\n", self.model, human_bytes(self.weight_bytes), backends.join(" and "));
        let has_prompts = lines.iter().any(|l| l.ttft_ms.is_some());
        let mut rows = vec![vec!["test", "path", "tokens/s", "vs first"]];
        if self.backends.len() > 1 {
            rows[0].insert(1, "backend");
        }
        rows[0].extend(has_prompts.then_some("first token"));
        rows[0].extend(["per token", "of probe"]);
        let n_left = rows[0].len() - 4 - usize::from(has_prompts);
        let mut rows: Vec<Vec<String>> =
            rows.into_iter().map(|row| row.into_iter().map(str::to_owned).collect()).collect();
        for line in lines {
            let mut row = vec![line.test.to_owned()];
            row.extend((self.backends.len() > 1).then(|| line.backend.to_owned()));
            row.push(line.fusion.to_owned());
            row.push(format!("{} ± {}", cell(line.avg_ts, 1), cell(line.stddev_ts, 1)));
            row.push(line.speedup.map_or_else(String::new, |s| format!("{s:.3}×")));
            let ms = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{ms:.2} ms"));
            row.extend(has_prompts.then(|| ms(line.ttft_ms)));
            row.push(ms(line.p50_ms));
            row.push(percent(line.share_of_bandwidth));
            rows.push(row);
        }
        text += &markdown_table(&rows, n_left);
        text
    }
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(String::new, |v| format!("{v:.digits$}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |s| format!("{:.0} %", s * 100.0))
}

fn wide(lines: &[Line<'_>]) -> String {
    let header = [
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
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for line in lines {
        rows.push(vec![
            line.model.to_owned(),
            human_bytes(line.size_bytes),
            line.backend.to_owned(),
            line.threads.to_string(),
            line.fusion.to_owned(),
            line.test.to_owned(),
            format!("{} ± {}", cell(line.avg_ts, 2), cell(line.stddev_ts, 2)),
            cell(line.median_ts, 2),
            line.speedup.map_or_else(String::new, |s| format!("{s:.3}×")),
            cell(line.ttft_ms, 1),
            cell(line.p50_ms, 2),
            cell(line.p95_ms, 2),
            cell(line.p99_ms, 2),
            cell(line.bytes_per_second.map(|b| b / 1e9), 2),
            percent(line.share_of_bandwidth),
            cell(line.launches_per_token, 0),
            cell(line.barriers_per_token, 0),
            cell(line.barrier_us_per_token, 0),
        ]);
    }
    markdown_table(&rows, 6)
}

fn profile_table(profile: &[Profile]) -> String {
    let mut rows = vec![["fusion", "test", "phase", "µs/token", "share", "GB/s"].map(str::to_owned).to_vec()];
    for Profile { time, bytes_per_second } in profile {
        rows.push(vec![
            time.fusion.clone(),
            time.test.clone(),
            time.phase.clone(),
            format!("{:.1}", time.seconds_per_token * 1e6),
            format!("{:.1} %", time.share * 100.0),
            cell(bytes_per_second.map(|b| b / 1e9), 2),
        ]);
    }
    markdown_table(&rows, 3)
}

/// A table with padded columns. The first row is the header. Columns from `n_left` on are aligned to the right.
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
