//! The experts of a mixture, in any of the layouts that files have.

mod blocks;

use bytes::Bytes;
use zmlx_kernels::{HostWeight, WeightBytes, WeightFormat};

use super::{TensorReader, WeightShape, placeholder};
use crate::WeightProblem;
use crate::architecture::{ExpertSplit, ExpertsSpec, Storage};

impl TensorReader<'_> {
    /// Gate, up and down of the experts that the spec describes.
    pub fn experts(&mut self, spec: &ExpertsSpec) -> [HostWeight; 3] {
        let n_problems = self.problems.len();
        let whole = match spec.split {
            ExpertSplit::None => return self.all_experts(spec),
            ExpertSplit::Width(part) => ExpertsSpec { inter: part.of, ..spec.clone() },
            ExpertSplit::Experts(part) => ExpertsSpec { n_experts: part.of, ..spec.clone() },
        };
        let mut is_down = [false, false, true].into_iter();
        self.all_experts(&whole).map(|bank| {
            let is_down = is_down.next().unwrap_or_default();
            self.part_of(&spec.path, (bank, n_problems), |bank| match spec.split {
                ExpertSplit::None => Ok(bank),
                ExpertSplit::Width(part) if is_down => bank.columns(part.range(spec.inter)),
                ExpertSplit::Width(part) => bank.rows(part.range(spec.inter)),
                ExpertSplit::Experts(part) => bank.mats(part.range(spec.n_experts)),
            })
        })
    }

    fn all_experts(&mut self, spec: &ExpertsSpec) -> [HostWeight; 3] {
        let [gate, up, down] = spec.projections();
        if self.has_blocks(spec) {
            return self.expert_blocks(spec);
        }
        if let Some(path) = spec.gate_up().into_iter().find(|path| self.contains_weight(path)) {
            let [gate, up] = self.gate_up(&path, spec);
            return [gate, up, self.projection(spec, down)];
        }
        [gate, up, down].map(|projection| self.projection(spec, projection))
    }

    /// The biases of gate, up and down of the experts that the spec describes, a vector for each expert.
    pub fn expert_biases(&mut self, spec: &ExpertsSpec) -> [HostWeight; 3] {
        let n_problems = self.problems.len();
        let whole = match spec.split {
            ExpertSplit::None => return self.all_expert_biases(spec),
            ExpertSplit::Width(part) => ExpertsSpec { inter: part.of, ..spec.clone() },
            ExpertSplit::Experts(part) => ExpertsSpec { n_experts: part.of, ..spec.clone() },
        };
        let mut is_down = [false, false, true].into_iter();
        self.all_expert_biases(&whole).map(|bank| {
            let is_down = is_down.next().unwrap_or_default();
            self.part_of(&spec.path, (bank, n_problems), |bank| match spec.split {
                ExpertSplit::Width(part) if !is_down => bank.columns(part.range(spec.inter)),
                ExpertSplit::Experts(part) => bank.mats(part.range(spec.n_experts)),
                _ => Ok(bank),
            })
        })
    }

    fn all_expert_biases(&mut self, spec: &ExpertsSpec) -> [HostWeight; 3] {
        if self.has_blocks(spec) {
            return self.block_biases(spec);
        }
        spec.projections().map(|(name, n_out, _)| {
            let [usual, others @ ..] = spec.biases(name);
            let path = others.into_iter().find(|path| self.contains(path)).unwrap_or(usual);
            self.vectors(&path, [spec.n_experts, n_out])
        })
    }

    /// `n` vectors of `len` floats each, stacked in one tensor.
    fn vectors(&mut self, name: &str, [n, len]: [usize; 2]) -> HostWeight {
        if let Some(seed) = self.checkpoint.synthetic {
            let values = self.checkpoint.random_vector(seed, name, n * len);
            let data: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
            return self.stacked_vectors(name, zmlx_kernels::DType::BF16, [n, len], data.into());
        }
        let Some(entry) = self.take(name) else { return placeholder() };
        if !self.has_shape(name, entry, &[n, len]) {
            return placeholder();
        }
        match entry.kernel_dtype().filter(|d| d.is_float()) {
            Some(dtype) => self.stacked_vectors(name, dtype, [n, len], entry.bytes.clone()),
            None => self.wrong_dtype(name, entry, "F32, F16 or BF16"),
        }
    }

    fn stacked_vectors(
        &mut self,
        name: &str,
        dtype: zmlx_kernels::DType,
        [n, len]: [usize; 2],
        data: Bytes,
    ) -> HostWeight {
        let bytes = WeightBytes { data, scales: Bytes::new(), biases: Bytes::new() };
        HostWeight::new(WeightFormat::Dense(dtype), [n, 1, len], bytes).unwrap_or_else(|e| {
            let want = format!("{n} vectors of {len}");
            self.problem(WeightProblem::Format { name: name.into(), got: e.to_string(), want })
        })
    }

    /// Weights of a row of the down projections that share a scale.
    pub(crate) fn group_size_of_experts(&self, spec: &ExpertsSpec) -> usize {
        let (name, _, n_in) = spec.projections()[2];
        let paths = spec.stacked(name).into_iter().chain(spec.one_by_one(0, name));
        let path = paths.into_iter().find(|path| self.contains_weight(path));
        self.group_size_at(&path.unwrap_or_else(|| self.stacked(spec, name)), n_in, Storage::Model)
    }

    /// Where a projection of all experts is stacked, or would be.
    fn stacked(&self, spec: &ExpertsSpec, name: &str) -> String {
        let [usual, others @ ..] = spec.stacked(name);
        others.into_iter().find(|path| self.contains_weight(path)).unwrap_or(usual)
    }

    fn projection(
        &mut self,
        spec: &ExpertsSpec,
        (name, n_out, n_in): (&'static str, usize, usize),
    ) -> HostWeight {
        let stacked = self.stacked(spec, name);
        let is_short = self.contains_weight(&spec.one_by_one(0, name)[1]);
        let one = |e: usize| {
            let [long, short] = spec.one_by_one(e, name);
            if is_short { short } else { long }
        };
        self.bank(&stacked, one, [spec.n_experts, n_out, n_in])
    }

    /// Gate and up from one stack, whose upper rows are gate's.
    fn gate_up(&mut self, path: &str, spec: &ExpertsSpec) -> [HostWeight; 2] {
        let n_problems = self.problems.len();
        let dims = [spec.n_experts, spec.inter.saturating_mul(2), spec.hidden];
        let both = self.weight(path, path, WeightShape::stack(dims));
        if self.problems.len() > n_problems {
            return [placeholder(), placeholder()];
        }
        let halves = [0..spec.inter, spec.inter..2 * spec.inter].map(|rows| both.rows(rows));
        halves.map(|half| {
            half.unwrap_or_else(|e| {
                let (got, want) = (e.to_string(), "gate and up, one above the other".to_owned());
                self.problem(WeightProblem::Format { name: path.into(), got, want })
            })
        })
    }
}
