//! Conversion of a folder in Hugging Face's layout, or in MLX's, to a folder in MLX's layout, with the same formats or
//! others.
//!
//! Names, formats and bytes of the tensors are those of `mlx_lm.convert` (mlx-lm 0.32.2 on MLX 0.32.2, on a CPU). The
//! [`Architecture`](crate::Architecture) determines which tensors a model has, and in which layouts a file may hold
//! them. So every family that can be loaded can be converted.
//!
//! **Memory** Sources are mapped. A weight is read, converted and written in blocks of 2^20 values, one block per
//! thread, which takes 16 MB for each thread. In addition there is the plan, which holds names and sizes. For models
//! with the older layout of latent attention, there is also the split of one layer's `kv_b_proj` in f32, which takes 12
//! bytes for each of its values. No weight is ever held in memory as a whole.
//!
//! **Interruptions** The folder gets a note that describes the conversion. A shard is written under a name that ends in
//! `.part`, synchronised, hashed and renamed, and then added to the note. A second run with the same source, folder and
//! settings continues after the shards whose hashes are still right. `config.json` is written last, so before that the
//! folder holds no model.

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

/// What [`convert`] does with the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keeps them in their formats.
    Keep,
    /// Quantises those that are not quantised.
    Quantize(Quantize),
    /// Turns all of them into floats.
    Dequantize,
}

/// How weights are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantize {
    /// The mode.
    pub mode: QuantMode,
    /// Bits per weight. `None` means 8 for mxfp8 and 4 otherwise.
    pub bits: Option<usize>,
    /// Weights per scale. `None` means 64 for affine, 32 for mxfp4 and mxfp8, and 16 for nvfp4.
    pub group_size: Option<usize>,
    /// Gives some weights more bits than others. Then `bits` is not used.
    pub recipe: Option<Recipe>,
}

/// What [`convert`] does.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// What is done with the weights.
    pub action: Action,
    /// The type of all floats except routers' correction biases, before anything is quantised. `None` means the type
    /// that `torch_dtype` in `config.json` (or `dtype` in its `text_config`) says, or else the types in the files.
    pub dtype: Option<DType>,
    /// The largest number of bytes of tensors in a shard. A larger tensor gets a shard of its own.
    pub max_shard_bytes: u64,
    /// The number of threads. `None` means as many as the machine has.
    pub n_threads: Option<usize>,
}

impl ConvertOptions {
    /// The size of shards that mlx-lm writes: 5 GiB.
    pub const SHARD_BYTES: u64 = 5 << 30;

    /// This action with shards of the usual size, all threads, and the files' own types.
    pub fn new(action: Action) -> Self {
        Self { action, dtype: None, max_shard_bytes: Self::SHARD_BYTES, n_threads: None }
    }
}

/// The result of a conversion.
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

/// Called with the work that is done and the total work, in a unit of its own. [`ControlFlow::Break`] stops the
/// conversion, which can be resumed.
pub type ConvertProgress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Converts a checkpoint into the folder `dir`. The folder is created, is empty, or holds what an earlier call with the
/// same settings left.
///
/// # Errors
/// [`Error::Weights`] with every tensor that is missing, unexpected or does not fit; [`Error::Parameter`] for settings
/// that exclude each other; [`Error::Unconvertible`] for a weight that the settings do not fit; [`Error::OutputFolder`]
/// for a folder that holds something else; [`Error::DiskSpace`]; [`Error::Stopped`] if `progress` stops it;
/// [`Error::Io`]. Settings, sizes and space are checked before anything is written.
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
