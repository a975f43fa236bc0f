//! The experts of a mixture, in any of the layouts that files have.

use zmlx_kernels::HostWeight;

use super::{TensorReader, WeightShape, placeholder};
use crate::WeightProblem;
use crate::architecture::ExpertsSpec;

impl TensorReader<'_> {
    /// Gate, up and down of all experts.
    pub fn experts(&mut self, spec: &ExpertsSpec) -> [HostWeight; 3] {
        let [gate, up, down] = spec.projections();
        if let Some(path) = spec.gate_up().into_iter().find(|path| self.contains_weight(path)) {
            let [gate, up] = self.gate_up(&path, spec);
            return [gate, up, self.projection(spec, down)];
        }
        [gate, up, down].map(|projection| self.projection(spec, projection))
    }

    fn projection(
        &mut self,
        spec: &ExpertsSpec,
        (name, n_out, n_in): (&'static str, usize, usize),
    ) -> HostWeight {
        let [usual, others @ ..] = spec.stacked(name);
        let stacked = others.into_iter().find(|path| self.contains_weight(path)).unwrap_or(usual);
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
