//! Activations, step by step as mlx-lm has them.

use std::f64::consts::FRAC_2_PI;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops};

use super::arrays::scalar;
use super::compiled::{self, Function};
use super::f;
use crate::mlx::Runtime;
use crate::{Activation, Result};

const OP: &str = "gated";

/// Gate and up of equal shapes, joined. As mlx-lm these are compiled functions (`mx.compile`), one launch each: every step
/// rounds to the activations' type there as here.
pub(super) fn gated(runtime: &Runtime, gate: &Array, up: &Array, activation: Activation) -> Result<Array> {
    if !runtime.compiles() {
        return steps(gate, up, activation).map_err(f(OP));
    }
    let body = move |args: &[Array]| Ok(vec![steps(&args[0], &args[1], activation)?]);
    let [y] = compiled::call(OP, Function::Gated(activation), [gate, up], body)?;
    Ok(y)
}

fn steps(gate: &Array, up: &Array, activation: Activation) -> std::result::Result<Array, Exception> {
    let number = |value: f32| scalar(value, gate.dtype()).map_err(|e| Exception::custom(e.to_string()));
    match activation {
        Activation::SwiGlu => gate.multiply(ops::sigmoid(gate)?)?.multiply(up),
        Activation::GeGlu => {
            let (half, one, cubic) = (number(0.5)?, number(1.0)?, number(0.044_715)?);
            let factor = number(FRAC_2_PI.sqrt() as f32)?;
            let cube = gate.multiply(gate)?.multiply(gate)?;
            let inner = gate.add(cube.multiply(&cubic)?)?.multiply(&factor)?;
            let gelu = if gate.dtype() == Dtype::Float32 {
                // `(1 + tanh x) / 2` is `sigmoid 2x`, which keeps the digits of what is small.
                gate.multiply(ops::sigmoid(&inner.add(&inner)?)?)?
            } else {
                let rise = ops::tanh(&inner)?.add(&one)?;
                gate.multiply(&half)?.multiply(rise)?
            };
            gelu.multiply(up)
        }
        Activation::ClampedSwiGlu { alpha, limit } => {
            let (alpha, one, most, least) = (number(alpha)?, number(1.0)?, number(limit)?, number(-limit)?);
            let gate = ops::minimum(gate, &most)?;
            let up = ops::maximum(&ops::minimum(up, &most)?, &least)?;
            let silu = gate.multiply(ops::sigmoid(&gate.multiply(&alpha)?)?)?;
            silu.multiply(up.add(&one)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MLX's CPU device compiles with g++ when such a function first runs, which is there where mlx-c was built.
    #[test]
    fn a_compiled_activation_has_the_bits_of_its_steps() {
        Runtime::start().unwrap();
        let values = |seed: usize| {
            (0..64).map(|i| ((i * 37 + seed * 11) % 41) as f32 * 0.25 - 5.0).collect::<Vec<_>>()
        };
        for dtype in [Dtype::Bfloat16, Dtype::Float32] {
            let array = |seed| Array::from_slice(&values(seed), &[2, 32]).as_dtype(dtype).unwrap();
            let (gate, up) = (array(1), array(2));
            for activation in
                [Activation::SwiGlu, Activation::GeGlu, Activation::ClampedSwiGlu { alpha: 1.5, limit: 3.0 }]
            {
                let want = steps(&gate, &up, activation).unwrap();
                let body = move |args: &[Array]| Ok(vec![steps(&args[0], &args[1], activation)?]);
                // The second call is the one that finds it compiled.
                for _ in 0..2 {
                    let [got] = compiled::call(OP, Function::Gated(activation), [&gate, &up], body).unwrap();
                    assert!(got.eq_exact(&want).unwrap(), "{activation:?} {dtype:?}");
                }
            }
        }
    }
}
