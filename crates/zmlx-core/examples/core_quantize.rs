//! Quantises a matrix in every format of MLX and prints how large it becomes and how far off it is.
//!
//! `cargo run --package zmlx-core --example core_quantize`

use zmlx_core::{HostWeight, QuantSpec, Result};

fn main() -> Result<()> {
    let (n_out, n_in) = (64, 256);
    let values: Vec<f32> = (0..n_out * n_in).map(|i| (i as f32 * 0.37).sin()).collect();
    for spec in QuantSpec::all() {
        let weight = HostWeight::quantize(spec, &values, [1, n_out, n_in])?;
        let back = weight.to_f32_vec();
        let squares: f32 = back.iter().zip(&values).map(|(got, want)| (got - want).powi(2)).sum();
        let rms = (squares / values.len() as f32).sqrt();
        println!("{spec:>20}: {:6} bytes, root mean square error {rms:.4}", weight.mat_bytes());
    }
    Ok(())
}
