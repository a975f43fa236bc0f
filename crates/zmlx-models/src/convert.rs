//! Conversion: from a folder of Hugging Face's layout, or of MLX's, to one of MLX's, perhaps in other formats.
//!
//! Names, formats and bytes of the tensors are those of `mlx_lm.convert` (mlx-lm 0.32.2 on MLX 0.32.2, on a CPU). Which
//! tensors a model has, and in which layouts a file may hold them, follows from its [`Architecture`](crate::Architecture):
//! a family that can be loaded can be converted.
//!
//! **Memory** Sources are mapped. A weight is read, converted and written in blocks of 2^20 values, one per thread: 16 MB for
//! each thread. Beside them there are the plan, which holds names and sizes, and for models with the older layout of latent
//! attention the split of one layer's `kv_b_proj` in f32: 12 bytes for each of its values. No weight is ever whole in memory.
//!
//! **Interruptions** The folder gets a note of what was begun. A shard is written under a name that ends in `.part`,
//! synchronised, hashed and renamed, and then noted. Who converts the same source into the same folder in the same way again
//! goes on behind the shards whose hashes are still right. `config.json` comes last: before it there is no model.

mod config;
mod encode;
mod files;
mod plan;
mod recipe;
mod report;
mod source;
mod state;
mod write;

use std::ops::ControlFlow;
use std::path::Path;

use zmlx_kernels::{DType, QuantMode};

use crate::{Checkpoint, Error, Result};
use plan::Plan;
pub use recipe::Recipe;
pub use report::{MatrixError, compare};

/// What [`convert`] makes of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave them in their formats.
    Keep,
    /// Quantise what is not quantised.
    Quantize(Quantize),
    /// Make all of them floats.
    Dequantize,
}

/// How weights are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantize {
    /// The mode.
    pub mode: QuantMode,
    /// Bits per weight; `None`: 4, of mxfp8 8.
    pub bits: Option<usize>,
    /// Weights per scale; `None`: 64 in affine mode, 32 of mxfp4 and mxfp8, 16 of nvfp4.
    pub group_size: Option<usize>,
    /// More bits for some weights than for others. Then `bits` is not used.
    pub recipe: Option<Recipe>,
}

/// What [`convert`] does.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// What becomes of the weights.
    pub action: Action,
    /// The type of all floats but correction biases of routers, before anything is quantised. `None`: what `torch_dtype` in
    /// `config.json` (or `dtype` in its `text_config`) says, else what the files have.
    pub dtype: Option<DType>,
    /// A shard has at most so many bytes of tensors, or one tensor.
    pub max_shard_bytes: u64,
    /// Threads that convert; `None`: as many as the machine has.
    pub n_threads: Option<usize>,
}

impl ConvertOptions {
    /// The size of shards that mlx-lm writes: 5 GiB.
    pub const SHARD_BYTES: u64 = 5 << 30;

    /// That action with shards of the usual size, all threads, and the files' own types.
    pub fn new(action: Action) -> Self {
        Self { action, dtype: None, max_shard_bytes: Self::SHARD_BYTES, n_threads: None }
    }
}

/// What a conversion wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The weight files, in order.
    pub shards: Vec<String>,
    /// How many of them an earlier run had finished.
    pub n_kept_shards: usize,
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// Number of weights, counted before they were quantised.
    pub n_parameters: u64,
    /// Other files that were copied.
    pub copied: Vec<String>,
}

/// Called with what is done and what there is to do, in units of its own. [`ControlFlow::Break`] ends the conversion, which
/// can be resumed.
pub type ConvertProgress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Converts a checkpoint into the folder `dir`, which is made, is empty, or holds what an earlier call of the same kind left.
///
/// # Errors
/// [`Error::Weights`] with every tensor that is missing, left over or does not fit; [`Error::Parameter`] for settings that
/// exclude each other; [`Error::Unconvertible`] for a weight that the settings do not fit; [`Error::OutputFolder`] for a folder
/// that holds something else; [`Error::DiskSpace`]; [`Error::Stopped`] if `progress` says so; [`Error::Io`]. Settings, sizes
/// and space are checked before anything is written.
pub fn convert(
    source: &Checkpoint,
    dir: &Path,
    options: &ConvertOptions,
    progress: ConvertProgress<'_>,
) -> Result<Converted> {
    let plan = Plan::new(source, options)?;
    let job = write::Job { source, plan: &plan, dir, options };
    let n_kept_shards = job.run(progress)?;
    Ok(Converted {
        shards: plan.shards.iter().map(|s| s.name.clone()).collect(),
        n_kept_shards,
        total_bytes: plan.total_bytes,
        n_parameters: plan.n_parameters,
        copied: files::names(source.dir())?,
    })
}

fn wrong_parameter(field: &'static str, want: &'static str, got: impl ToString) -> Error {
    Error::Parameter { field, want, got: got.to_string() }
}
