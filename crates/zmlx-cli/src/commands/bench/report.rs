//! The table of measurements.

use serde_json::{Value, json};
use zmlx_kernels::Fusion;

use super::measure::Samples;
use crate::table::{Table, human_bytes};

/// What was measured and on what.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) model: &'a str,
    pub(super) backend: &'a str,
    pub(super) n_threads: usize,
    pub(super) n_prompt: usize,
    pub(super) n_generate: usize,
    pub(super) repetitions: usize,
    /// Weights and caches that decoding one token reads, at the mean length.
    pub(super) bytes_per_token: f64,
    pub(super) read_bytes_per_second: Option<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
}

/// The measurements of one fusion.
#[derive(Debug)]
pub(super) struct Row<'a> {
    fusion: &'a Fusion,
    samples: &'a Samples,
    prefill: Spread,
    decode: Spread,
    /// Relative root mean square of the logits' difference to the first fusion's.
    difference: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one value.
    fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let n = sorted.len();
        let median = (at(n.saturating_sub(1) / 2) + at(n / 2)) / 2.0;
        Self { median, min: at(0), max: at(n.saturating_sub(1)) }
    }

    fn text(self) -> String {
        format!("{:.1} ({:.1}–{:.1})", self.median, self.min, self.max)
    }

    fn json(self, samples: &[f64]) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max, "samples": samples })
    }
}

impl Report<'_> {
    pub(super) fn rows<'a>(
        &self,
        fusions: &'a [Fusion],
        samples: &'a [Samples],
        differences: &[f64],
    ) -> Vec<Row<'a>> {
        let rows = fusions.iter().zip(samples).zip(differences).map(|((fusion, samples), &difference)| Row {
            fusion,
            samples,
            prefill: Spread::of(&samples.prefill),
            decode: Spread::of(&samples.decode),
            difference,
        });
        rows.collect()
    }

    /// Of the row's median decode speed: bytes per second.
    fn throughput(&self, row: &Row<'_>) -> f64 {
        row.decode.median * self.bytes_per_token
    }

    pub(super) fn text(&self, rows: &[Row<'_>]) -> String {
        let Self { model, backend, n_prompt, n_generate, repetitions, .. } = self;
        let mut text = format!("{model} on {backend}\n");
        text += &format!(
            "{n_prompt} prompt tokens, {n_generate} decoded tokens, {repetitions} repetitions in turns: tokens per \
             second as median (min–max)\n"
        );
        let per_token = human_bytes(self.bytes_per_token as u64);
        text += &match self.read_bytes_per_second {
            Some(b) => format!("{per_token} read per decoded token; memory reads at {:.1} GB/s\n\n", b / 1e9),
            None => format!("{per_token} read per decoded token; not enough memory to measure bandwidth\n\n"),
        };
        let mut table =
            Table::new(&["fusion", "prefill", "decode", "vs first", "GB/s", "of bandwidth", "difference"]);
        let first = rows.first().map_or(f64::NAN, |r| r.decode.median);
        for row in rows {
            let share = self.read_bytes_per_second.map(|b| self.throughput(row) / b);
            table.row(vec![
                row.fusion.to_string(),
                row.prefill.text(),
                row.decode.text(),
                format!("{:.2}×", row.decode.median / first),
                format!("{:.2}", self.throughput(row) / 1e9),
                share.map_or_else(|| "?".into(), |s| format!("{:.0} %", s * 100.0)),
                format!("{:.0e}", row.difference),
            ]);
        }
        text + &table.render()
    }

    pub(super) fn json(&self, rows: &[Row<'_>]) -> Value {
        let results = rows.iter().map(|row| {
            json!({
                "fusion": row.fusion.to_string(),
                "prefill_tps": row.prefill.json(&row.samples.prefill),
                "decode_tps": row.decode.json(&row.samples.decode),
                "decode_bytes_per_second": self.throughput(row),
                "share_of_read_bandwidth": self.read_bytes_per_second.map(|b| self.throughput(row) / b),
                "logits_rel_rms_to_first": row.difference,
            })
        });
        json!({
            "model": self.model,
            "backend": self.backend,
            "threads": self.n_threads,
            "arch": std::env::consts::ARCH,
            "os": std::env::consts::OS,
            "version": env!("CARGO_PKG_VERSION"),
            "prompt_tokens": self.n_prompt,
            "generate_tokens": self.n_generate,
            "repetitions": self.repetitions,
            "bytes_per_token": self.bytes_per_token,
            "read_bytes_per_second": self.read_bytes_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
            "results": results.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn medians() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
    }
}
