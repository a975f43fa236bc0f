//! The second scale of nvfp4: one number for each matrix, in addition to the scales of its groups.

use zmlx_kernels::{QuantMode, QuantSpec};

use super::{Entry, TensorReader, WeightShape};
use crate::WeightProblem;

/// The number by which quantisers divide: the largest e2m1 value times the largest e4m3 value.
const LARGEST: f64 = 6.0 * 448.0;

/// Where the second scale of a weight is stored.
pub(super) enum GlobalScale<'a> {
    None,
    At(String, &'a Entry),
}

impl<'a> TensorReader<'a> {
    /// Takes the second scale of the weight at `path`, if the files contain one or the config says so; `None` if it is
    /// missing.
    pub(super) fn take_global_scale(&mut self, path: &str, module: &str) -> Option<GlobalScale<'a>> {
        let name = self.part(path, "global_scale");
        let config = self.checkpoint.quantization();
        let is_declared =
            |path: &str| config.has_global_scale(&self.full(path)) || config.has_global_scale(path);
        if !self.contains(&name) && !is_declared(path) && !is_declared(module) {
            return Some(GlobalScale::None);
        }
        let entry = self.take(&name)?;
        Some(GlobalScale::At(name, entry))
    }

    /// The factor of each matrix, or no factors without a second scale. `None` if the tensor does not match the weight.
    pub(super) fn factors(
        &mut self,
        scale: GlobalScale<'_>,
        spec: QuantSpec,
        shape: WeightShape,
    ) -> Option<Vec<f32>> {
        let GlobalScale::At(name, entry) = scale else { return Some(Vec::new()) };
        if spec.mode() != QuantMode::Nvfp4 {
            self.problem(WeightProblem::Extra { name });
            return None;
        }
        let n_mats = shape.n_mats.unwrap_or(1);
        let is_one = entry.shape.iter().all(|&d| d == 1) && n_mats == 1;
        if !is_one && !self.has_shape(&name, entry, &[n_mats]) {
            return None;
        }
        let Some(dtype) = entry.kernel_dtype().filter(|d| d.is_float()) else {
            self.wrong_dtype(&name, entry, "F32, F16 or BF16");
            return None;
        };
        let scales = dtype.to_f32_vec(&entry.bytes);
        Some(scales.into_iter().map(|s| (f64::from(s) / LARGEST) as f32).collect())
    }
}
