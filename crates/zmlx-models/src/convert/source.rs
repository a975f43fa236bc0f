//! The weights of a module, read from any layout of a file, with the names that MLX's files give them.

use zmlx_kernels::HostWeight;

use crate::architecture::{ExpertsSpec, Module, Storage};
use crate::{Checkpoint, Result, TensorReader};

/// A weight, and how it is written.
pub(super) struct Part {
    pub(super) name: PartName,
    pub(super) weight: HostWeight,
    /// The shape of its dense tensor.
    pub(super) shape: Vec<usize>,
    pub(super) storage: Storage,
}

/// A name in the text model.
pub(super) enum PartName {
    /// A path, to which `.weight`, `.scales` and `.biases` are added.
    Path(String),
    /// A tensor's whole name. It is never quantised.
    Tensor(String),
}

/// The weights of a module. The reader records what does not fit; a weight that it returns in that case must not be
/// used.
pub(super) fn parts(reader: &mut TensorReader<'_>, module: &Module) -> Vec<Part> {
    match module {
        Module::Matrix(spec) => {
            let weight = reader.matrix_of(spec);
            let of_file = reader
                .shape_of(&spec.path)
                .filter(|shape| shape.iter().product::<usize>() == spec.n_out * spec.n_in);
            // A file may give a matrix another dimension, of size 1.
            let shape = of_file.map_or_else(|| vec![spec.n_out, spec.n_in], <[usize]>::to_vec);
            vec![Part { name: PartName::Path(spec.path.clone()), weight, shape, storage: spec.storage }]
        }
        Module::Vector(spec) => {
            let weight = reader.vector_of(spec);
            let name = PartName::Tensor(spec.name.clone());
            vec![Part { name, weight, shape: vec![spec.len], storage: Storage::Dense }]
        }
        Module::Conv(spec) => {
            let weight = reader.stored_conv(spec);
            let name = PartName::Tensor(format!("{}.weight", spec.path));
            let shape = vec![spec.n_channels, spec.kernel, 1];
            vec![Part { name, weight, shape, storage: Storage::Dense }]
        }
        Module::Experts(spec) => {
            let paths = spec.projections().map(|(name, ..)| stack(reader, spec, name));
            let banks = reader.experts(spec);
            let mut parts: Vec<_> =
                paths.iter().zip(banks).map(|(path, weight)| bank(path.clone(), weight)).collect();
            if spec.is_biased {
                let biases = reader.expert_biases(spec);
                parts.extend(paths.iter().zip(biases).map(|(path, weight)| {
                    let shape = vec![weight.n_mats(), weight.n_in()];
                    let name = PartName::Tensor(format!("{path}.bias"));
                    Part { name, weight, shape, storage: Storage::Dense }
                }));
            }
            parts
        }
        Module::Heads(spec) => {
            let (embed_q, unembed_out) = reader.heads_of(spec);
            let path = |name: &str| format!("{}.{name}", spec.path);
            vec![bank(path("embed_q"), embed_q), bank(path("unembed_out"), unembed_out)]
        }
    }
}

fn bank(path: String, weight: HostWeight) -> Part {
    let shape = vec![weight.n_mats(), weight.n_out(), weight.n_in()];
    Part { name: PartName::Path(path), weight, shape, storage: Storage::Model }
}

/// The path where MLX's files stack a projection of all experts: this file's own path if it is a module's name, and the
/// usual path otherwise.
fn stack(reader: &TensorReader<'_>, spec: &ExpertsSpec, projection: &str) -> String {
    let places = spec.stacked(projection);
    let is_there = |path: &&String| reader.contains(&format!("{path}.weight"));
    places.iter().find(is_there).or(places.first()).cloned().unwrap_or_default()
}

/// Reads every module of a checkpoint once, in the order of its architecture.
///
/// # Errors
/// [`Error::Weights`](crate::Error::Weights) with every tensor that is missing, unexpected or does not fit.
pub(super) fn each(
    checkpoint: &Checkpoint,
    mut visit: impl FnMut(Module, Vec<Part>, bool) -> Result<()>,
) -> Result<()> {
    let mut reader = checkpoint.reader();
    for module in checkpoint.architecture().modules() {
        let parts = parts(&mut reader, &module);
        visit(module, parts, !reader.has_problems())?;
    }
    reader.ignore_what_may_be_left();
    reader.finish()
}

/// The weights of one module.
///
/// # Errors
/// As [`each`].
pub(super) fn one(checkpoint: &Checkpoint, module: &Module) -> Result<Vec<Part>> {
    let mut reader = checkpoint.reader();
    let parts = parts(&mut reader, module);
    reader.ignore_rest();
    reader.finish()?;
    Ok(parts)
}
