//! From a checkpoint's tensors to a backend's weights.

use zmlx_kernels::{Backend, HostWeight};
use zmlx_moe::Mlp;

use crate::{Checkpoint, Result, TensorReader};

/// Called after each layer with the number of layers loaded and of all.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// A reader that uploads what it reads.
pub(crate) struct Loader<'a, B> {
    pub(crate) backend: &'a B,
    pub(crate) reader: TensorReader<'a>,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(backend: &'a B, checkpoint: &'a Checkpoint) -> Self {
        Self { backend, reader: checkpoint.reader() }
    }

    pub(crate) fn upload(&self, weight: HostWeight) -> Result<B::Weight> {
        Ok(self.backend.upload(weight)?)
    }

    /// The rows of all `parts` as one weight. Placeholders of weights that could not be read need not fit together.
    pub(crate) fn concat(&self, parts: &[&B::Weight]) -> Result<B::Weight> {
        if self.reader.has_problems() {
            return Ok(parts[0].clone());
        }
        Ok(self.backend.concat_rows(parts)?)
    }

    pub(crate) fn matrix(&mut self, path: &str, n_out: usize, n_in: usize) -> Result<B::Weight> {
        let weight = self.reader.matrix(path, n_out, n_in);
        self.upload(weight)
    }

    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<B::Weight> {
        let weight = self.reader.vector(name, len);
        self.upload(weight)
    }

    /// Gate, up and down projections below `path`.
    pub(crate) fn mlp(&mut self, path: &str, inter: usize, hidden: usize) -> Result<Mlp<B::Weight>> {
        Ok(Mlp {
            gate: self.matrix(&format!("{path}.gate_proj"), inter, hidden)?,
            up: self.matrix(&format!("{path}.up_proj"), inter, hidden)?,
            down: self.matrix(&format!("{path}.down_proj"), hidden, inter)?,
        })
    }

    /// The three projections of all experts below `path` (the layer's `mlp`), stacked or one by one.
    pub(crate) fn experts(
        &mut self,
        path: &str,
        [n_experts, inter, hidden]: [usize; 3],
    ) -> Result<zmlx_moe::ExpertBank<B::Weight>> {
        let mut bank = |projection: &str, n_out: usize, n_in: usize| {
            let stacked = format!("{path}.switch_mlp.{projection}");
            let per_expert = |e: usize| format!("{path}.experts.{e}.{projection}");
            let weight = self.reader.bank(&stacked, per_expert, [n_experts, n_out, n_in]);
            self.upload(weight)
        };
        let gate = bank("gate_proj", inter, hidden)?;
        let up = bank("up_proj", inter, hidden)?;
        Ok(zmlx_moe::ExpertBank::new(gate, up, bank("down_proj", hidden, inter)?))
    }
}
