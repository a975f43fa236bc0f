//! The tiny model of a family on a backend, beside what the recorded engine gave for it in `f32`.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::path::Path;

use zmlx_kernels::{Backend, Fusion, Logits};
use zmlx_models::{CachePool, Checkpoint, Input, Model, PoolOptions, Slot};
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::TensorFile;

pub(crate) struct Family<B: Backend> {
    name: String,
    pub(crate) taps: TensorFile,
    pub(crate) model: Model<B>,
    /// The largest relative RMS that passes.
    bound: f64,
}

impl<B: Backend> Family<B> {
    /// The model whose `config.json` that is.
    pub(crate) fn open(config: &Path, backend: B, bound: f64) -> Self {
        let dir = config.parent().unwrap();
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let taps = TensorFile::open(dir.join("taps.safetensors")).unwrap();
        let model = Model::load(backend, &Checkpoint::open(dir).unwrap(), &mut |_, _| ()).unwrap();
        Self { name, taps, model, bound }
    }

    pub(crate) fn ints(&self, name: &str) -> Vec<u32> {
        self.taps.ints(name).unwrap().data
    }

    /// Holds values to the recorded ones of that name.
    pub(crate) fn close(&self, tap: &str, got: &[f32]) {
        self.close_within(self.bound, tap, got);
    }

    fn close_within(&self, bound: f64, tap: &str, got: &[f32]) {
        let want = self.taps.floats(&format!("f32.{tap}")).unwrap();
        let sorted = |values: &[f32]| {
            let mut values = values.to_vec();
            // In the engine's order of experts.
            values.chunks_exact_mut(want.shape[1]).for_each(|row| row.sort_by(f32::total_cmp));
            values
        };
        let error = if tap.ends_with("expert_weights") {
            rel_rms(&sorted(got), &sorted(&want.data))
        } else {
            rel_rms(got, &want.data)
        };
        assert!(error <= bound, "{} {tap}: relative RMS {error:e}", self.name);
    }

    /// An empty sequence.
    pub(crate) fn sequence(&self, fusion: Fusion) -> Sequence<'_, B> {
        let mut pool = self.model.pool(PoolOptions::default()).unwrap();
        let slot = pool.allocate().unwrap();
        Sequence { model: &self.model, pool, slot, fusion }
    }

    /// Holds forced decode steps, which continue a sequence, to the recorded ones.
    pub(crate) fn close_decoded(&self, sequence: &mut Sequence<'_, B>) {
        let tokens = self.ints("decode_tokens");
        let decoded: Vec<f32> =
            tokens.iter().flat_map(|token| sequence.logits(&[*token], Logits::Last)).collect();
        self.close("decode_logits", &decoded);
    }

    /// Holds the recorded rows of a long pass to the recorded ones.
    pub(crate) fn close_long(&self, fusion: Fusion) {
        let logits = self.sequence(fusion).logits(&self.ints("long_tokens"), Logits::All);
        let vocab = self.model.architecture().vocab_size;
        let rows = self.ints("long_rows");
        let rows: Vec<f32> =
            rows.iter().flat_map(|&r| logits[r as usize * vocab..][..vocab].to_vec()).collect();
        // One of so many tokens may have two experts that are almost equal. If it takes the other one, which is right, too, all
        // rows behind it change: by up to 5.5e-4 in `minimax` on a Zen 4. A part that is left out changes more than 2e-2.
        self.close_within(5.0 * self.bound, "long_logits", &rows);
    }

    /// A prompt, forced decode steps and a long pass.
    pub(crate) fn close_all_logits(&self, fusion: Fusion) {
        let mut sequence = self.sequence(fusion);
        self.close("logits", &sequence.logits(&self.ints("tokens"), Logits::All));
        self.close_decoded(&mut sequence);
        self.close_long(fusion);
    }
}

pub(crate) struct Sequence<'m, B: Backend> {
    model: &'m Model<B>,
    pub(crate) pool: CachePool<B>,
    pub(crate) slot: Slot,
    fusion: Fusion,
}

impl<B: Backend> Sequence<'_, B> {
    pub(crate) fn logits(&mut self, tokens: &[u32], logits: Logits) -> Vec<f32> {
        let input = Input { slot: self.slot, tokens, logits };
        let y = self.model.forward(&mut self.pool, &[input], &self.fusion).unwrap();
        let mut values = Vec::new();
        self.model.backend().read(&y, &mut values).unwrap();
        values
    }
}
