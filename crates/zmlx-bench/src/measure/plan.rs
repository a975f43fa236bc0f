//! The tests that follow from the lists of sizes.

use zmlx_kernels::Fusion;
use zmlx_models::Cost;

use crate::capsule::bench::BenchTest;

/// A test: a prompt, or decoding at a depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    /// 0 if decoding is measured.
    pub(crate) n_prompt: usize,
    /// Number per sequence; 0 if a prompt is measured.
    pub(crate) n_generate: usize,
    pub(crate) depth: usize,
    pub(crate) batch: usize,
}

/// One test per prompt, then one per depth, batch and number of tokens. Tests that share caches follow each other.
pub(crate) fn tests(
    n_prompt: &[usize],
    n_generate: &[usize],
    depths: &[usize],
    batches: &[usize],
) -> Vec<Test> {
    let prompts = n_prompt.iter().map(|&n| Test { n_prompt: n, n_generate: 0, depth: 0, batch: 1 });
    let mut tests: Vec<Test> = prompts.filter(|t| t.n_prompt > 0).collect();
    for &depth in depths {
        for &batch in batches {
            let decoding = n_generate.iter().filter(|n| **n > 0);
            tests.extend(decoding.map(|&n| Test { n_prompt: 0, n_generate: n, depth, batch }));
        }
    }
    tests
}

impl Test {
    pub(crate) fn is_decoding(&self) -> bool {
        self.n_generate > 0
    }

    /// The largest length of a sequence in the test.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_prompt.max(self.depth.saturating_add(self.n_generate))
    }

    /// llama-bench's name.
    pub(crate) fn name(&self) -> String {
        let mut name = if self.is_decoding() {
            format!("tg{}", self.n_generate)
        } else {
            format!("pp{}", self.n_prompt)
        };
        if self.batch > 1 {
            name += &format!(" b{}", self.batch);
        }
        if self.depth > 0 {
            name += &format!(" @ d{}", self.depth);
        }
        name
    }

    /// A record without samples.
    pub(crate) fn record(&self, fusion: &Fusion, backend: &str, cost: &Cost) -> BenchTest {
        // The caches grow by one token per step. The sequences of a batch share experts, and it is not known how many.
        let n_cached = self.depth as f64 + (self.n_generate as f64 - 1.0) / 2.0;
        BenchTest {
            name: self.name(),
            fusion: fusion.to_string(),
            backend: backend.to_owned(),
            n_prompt: self.n_prompt,
            n_generate: self.n_generate,
            depth: self.depth,
            batch: self.batch,
            tokens_per_sample: self.n_prompt + self.n_generate * self.batch,
            samples_s: Vec::new(),
            token_latencies_s: Vec::new(),
            probes_bytes_per_second: Vec::new(),
            ttft_s: Vec::new(),
            bytes_per_token: (self.is_decoding() && self.batch == 1).then(|| cost.bytes_per_token(n_cached)),
            launches_per_token: None,
            barriers_per_token: None,
            barrier_s_per_token: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tests;

    #[test]
    fn names() {
        let names: Vec<_> =
            tests(&[512, 0], &[128, 0], &[0, 4096], &[1, 4]).iter().map(super::Test::name).collect();
        assert_eq!(names, ["pp512", "tg128", "tg128 b4", "tg128 @ d4096", "tg128 b4 @ d4096"]);
        assert_eq!(tests(&[0], &[0], &[0], &[1]), []);
    }
}
