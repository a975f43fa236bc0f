//! The layout of experts in the released gpt-oss: mxfp4 in blocks of 16 bytes, with alternating rows of gate and up.

use bytes::Bytes;
use zmlx_kernels::{DType, HostWeight, QuantMode, QuantSpec, WeightBytes, WeightFormat};

use super::super::{TensorReader, placeholder};
use crate::WeightProblem;
use crate::architecture::ExpertsSpec;

/// The number of weights of a block.
const BLOCK: usize = 32;

impl TensorReader<'_> {
    /// True if the files have this layout.
    pub(super) fn has_blocks(&self, spec: &ExpertsSpec) -> bool {
        self.contains(&format!("{}_blocks", gate_up(spec)))
    }

    /// Gate, up and down of all experts. Gate and up are copied, because the rows of each are not adjacent.
    pub(super) fn expert_blocks(&mut self, spec: &ExpertsSpec) -> [HostWeight; 3] {
        let [inter, hidden] = [spec.inter, spec.hidden];
        let both = self.blocks(&gate_up(spec), [spec.n_experts, inter.saturating_mul(2), hidden]);
        let gate_and_up = match both {
            Some([data, scales]) => [0, 1].map(|turn| {
                let half = |bytes: &Bytes| every_other(bytes, 2 * spec.n_experts * inter, turn);
                self.mxfp4(&gate_up(spec), [spec.n_experts, inter, hidden], [half(&data), half(&scales)])
            }),
            None => [placeholder(), placeholder()],
        };
        let dims = [spec.n_experts, hidden, inter];
        let down = match self.blocks(&down(spec), dims) {
            Some(parts) => self.mxfp4(&down(spec), dims, parts),
            None => placeholder(),
        };
        let [gate, up] = gate_and_up;
        [gate, up, down]
    }

    /// The biases of gate, up and down.
    pub(super) fn block_biases(&mut self, spec: &ExpertsSpec) -> [HostWeight; 3] {
        let (n, inter) = (spec.n_experts, spec.inter);
        let both = self.vectors(&format!("{}_bias", gate_up(spec)), [n, inter.saturating_mul(2)]);
        let down = self.vectors(&format!("{}_bias", down(spec)), [n, spec.hidden]);
        if self.has_problems() {
            return [placeholder(), placeholder(), down];
        }
        let all = both.to_f32_vec();
        let [gate, up] = [0, 1].map(|turn| {
            let values = all.iter().skip(turn).step_by(2);
            let data: Vec<u8> = values.flat_map(|v| v.to_le_bytes()).collect();
            self.stacked_vectors(&gate_up(spec), DType::F32, [n, inter], data.into())
        });
        [gate, up, down]
    }

    /// The words and scales of `path`: `[n, n_out, blocks, 16]` bytes and `[n, n_out, blocks]`.
    fn blocks(&mut self, path: &str, [n, n_out, n_in]: [usize; 3]) -> Option<[Bytes; 2]> {
        let names = ["blocks", "scales"].map(|part| format!("{path}_{part}"));
        let [data, scales] = [self.take(&names[0]), self.take(&names[1])];
        let (data, scales) = (data?, scales?);
        for (name, entry) in names.iter().zip([data, scales]) {
            if entry.kernel_dtype() != Some(DType::U8) {
                self.wrong_dtype(name, entry, "U8");
                return None;
            }
        }
        let n_blocks = n_in / BLOCK;
        let fits = self.has_shape(&names[0], data, &[n, n_out, n_blocks, BLOCK / 2])
            & self.has_shape(&names[1], scales, &[n, n_out, n_blocks]);
        fits.then(|| [data.bytes.clone(), scales.bytes.clone()])
    }

    fn mxfp4(&mut self, path: &str, dims: [usize; 3], [data, scales]: [Bytes; 2]) -> HostWeight {
        let weight = QuantSpec::new(QuantMode::Mxfp4, 4, BLOCK).and_then(|spec| {
            let format = WeightFormat::Quantized { spec, scale_dtype: DType::U8 };
            HostWeight::new(format, dims, WeightBytes { data, scales, biases: Bytes::new() })
        });
        weight.unwrap_or_else(|e| {
            let want = format!("mxfp4 {dims:?}");
            self.problem(WeightProblem::Format { name: path.into(), got: e.to_string(), want })
        })
    }
}

fn gate_up(spec: &ExpertsSpec) -> String {
    format!("{}.experts.gate_up_proj", spec.path)
}

fn down(spec: &ExpertsSpec) -> String {
    format!("{}.experts.down_proj", spec.path)
}

/// The even rows (`turn` 0) or the odd rows (`turn` 1) of `n_rows` rows.
fn every_other(bytes: &Bytes, n_rows: usize, turn: usize) -> Bytes {
    let row_bytes = (bytes.len() / n_rows.max(1)).max(1);
    bytes.chunks_exact(row_bytes).skip(turn).step_by(2).flatten().copied().collect()
}
