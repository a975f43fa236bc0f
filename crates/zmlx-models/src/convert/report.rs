//! The difference between quantised weights and their originals.

use serde::Serialize;
use zmlx_kernels::{HostWeight, WeightFormat};

use super::source::{self, PartName};
use crate::{Checkpoint, Error, Result};

/// The error of one weight. A stack of experts counts as one weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatrixError {
    /// Its path in the files, without `.weight`.
    pub path: String,
    /// Its format in the converted checkpoint.
    pub format: String,
    /// Matrices, rows and columns.
    pub shape: [usize; 3],
    /// The L2 norm of the difference divided by that of the original; 0 if both are 0.
    pub relative_error: f64,
    /// The largest difference of two values.
    pub largest_difference: f64,
}

/// Compares, value by value in f32, every weight of `converted` whose quantised format differs from that in `original`.
/// `progress` is called with the number of weights compared so far and their total number.
///
/// # Errors
/// [`Error::Weights`] if a checkpoint is incomplete; [`Error::Unconvertible`] if they are not the same model.
pub fn compare(
    original: &Checkpoint,
    converted: &Checkpoint,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<MatrixError>> {
    let modules = converted.architecture().modules();
    if original.architecture().modules().len() != modules.len() {
        let (want, got) = (original.name().to_owned(), format!("{} modules", modules.len()));
        return Err(Error::Unconvertible { name: converted.name().to_owned(), want, got });
    }
    let mut errors = Vec::new();
    for (i, module) in modules.iter().enumerate() {
        let (before, after) = (source::one(original, module)?, source::one(converted, module)?);
        for (before, after) in before.iter().zip(&after) {
            let PartName::Path(path) = &after.name else { continue };
            let is_quantized = matches!(after.weight.format(), WeightFormat::Quantized { .. });
            if is_quantized && before.weight.format() != after.weight.format() {
                errors.push(error_of(converted.written(path), &before.weight, &after.weight)?);
            }
        }
        progress(i + 1, modules.len());
    }
    Ok(errors)
}

/// Sums over a block.
#[derive(Clone, Copy, Default)]
struct Sums {
    squares: f64,
    errors: f64,
    largest: f64,
}

fn error_of(path: String, before: &HostWeight, after: &HostWeight) -> Result<MatrixError> {
    let dims = |w: &HostWeight| [w.n_mats(), w.n_out(), w.n_in()];
    let shape = dims(after);
    if dims(before) != shape {
        let (want, got) = (format!("{:?}", dims(before)), format!("{shape:?}"));
        return Err(Error::Unconvertible { name: path, want, got });
    }
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows_at_once = |w: &HostWeight| (super::encode::BLOCK / w.n_in().max(1)).clamp(1, w.n_out());
    let (n_rows, step) = (after.n_out(), rows_at_once(after));
    let mut rows = (0..shape[0]).flat_map(|mat| (0..n_rows).step_by(step).map(move |at| (mat, at)));
    let mut all = Sums::default();
    loop {
        let wave: Vec<_> = rows.by_ref().take(n_threads).collect();
        if wave.is_empty() {
            break;
        }
        let sums_of = |(mat, at): (usize, usize)| {
            let range = at..(at + step).min(n_rows);
            Ok::<_, Error>(sums(&values(before, mat, range.clone())?, &values(after, mat, range)?))
        };
        let sums: Vec<Result<Sums>> = std::thread::scope(|scope| {
            let threads: Vec<_> = wave.iter().map(|&block| scope.spawn(move || sums_of(block))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for sums in sums {
            let sums = sums?;
            all.squares += sums.squares;
            all.errors += sums.errors;
            all.largest = all.largest.max(sums.largest);
        }
    }
    let relative_error = if all.errors == 0.0 { 0.0 } else { (all.errors / all.squares).sqrt() };
    Ok(MatrixError {
        path,
        format: after.format().to_string(),
        shape,
        relative_error,
        largest_difference: all.largest,
    })
}

/// Some rows of one matrix, as floats.
fn values(weight: &HostWeight, mat: usize, rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
    let one = HostWeight::new(weight.format(), [1, weight.n_out(), weight.n_in()], weight.mat(mat).clone())?;
    Ok(one.rows(rows)?.to_f32_vec())
}

fn sums(before: &[f32], after: &[f32]) -> Sums {
    let mut sums = Sums::default();
    for (&before, &after) in before.iter().zip(after) {
        let (before, difference) = (f64::from(before), f64::from(after) - f64::from(before));
        sums.squares += before * before;
        sums.errors += difference * difference;
        sums.largest = sums.largest.max(difference.abs());
    }
    sums
}
