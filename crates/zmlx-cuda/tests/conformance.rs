//! The conformance suite on the first GPU. Without one nothing is run, which the tests say; with `ZMLX_REQUIRE_CUDA=1` they
//! fail then.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use zmlx_conformance::{Grid, Instance, conformance};
use zmlx_core::{Error, QuantMode, WeightFormat};
use zmlx_cuda::CudaBackend;

conformance!(cuda, crate::instances);

/// From so many tokens on products run on tensor cores.
const SAME_PATH_BELOW: usize = 8;

/// The backend, or none on a machine without a GPU that it can use.
fn backend() -> Option<CudaBackend> {
    let is_required = std::env::var_os("ZMLX_REQUIRE_CUDA").is_some_and(|v| v == "1");
    match CudaBackend::new(0) {
        Ok(backend) => Some(backend),
        Err(Error::Unavailable { why, .. }) if !is_required => {
            eprintln!("not run: no GPU: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn instances() -> Vec<Instance<CudaBackend>> {
    let instance = |backend| Instance {
        name: "cuda".to_owned(),
        backend,
        grid: Grid::Full,
        same_path_below: SAME_PATH_BELOW,
        product_error: rounded_products,
        // Keys and values are f16, off by up to 2^-11 of themselves, 2.0e-4 in the root mean square. A value of 6 alone is off by
        // 2e-3, and scores of about 1 by as much as their keys.
        attention_error: 200.0,
        // Weights are rounded to f16 after they were divided by the largest so far, which differs: by up to 2^-11 of themselves, in both
        // results.
        chunk_error: 100.0,
        exponential_error: 1.0,
        // Angles are computed in f64.
        angle_error: 0.0,
    };
    backend().map(instance).into_iter().collect()
}

/// Activations are integers of 16 bits wherever codes are: each is off by up to 2^-16 of the largest of its 32, evenly
/// spread, so by 2^-16/√3 in the root mean square. Six times that, times the norms, is 111 times the bound of f32. On tensor
/// cores they and the weights are f16: each is off by up to 2^-11 of itself, by 2^-11/√6 in the root mean square. Three times both
/// together, times the norms, is 1,775 times the bound.
fn rounded_products(format: WeightFormat, n_tokens: usize) -> f64 {
    match format {
        WeightFormat::Quantized { spec, .. } if spec.mode() != QuantMode::Mxfp8 => {
            if n_tokens < SAME_PATH_BELOW { 112.0 } else { 1800.0 }
        }
        _ => 1.0,
    }
}
