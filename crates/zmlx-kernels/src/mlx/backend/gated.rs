//! Activations, step by step as mlx-lm has them.

use std::f64::consts::FRAC_2_PI;

use mlx_rs::{Array, Dtype, ops};

use super::{f, scalar};
use crate::{Activation, Result};

const OP: &str = "gated";

/// Gate and up of equal shapes, joined. mlx-lm compiles these functions (`mx.compile`): every step rounds to the activations'
/// type there as here.
pub(super) fn gated(gate: &Array, up: &Array, activation: Activation) -> Result<Array> {
    let number = |value: f32| scalar(value, gate.dtype());
    match activation {
        Activation::SwiGlu => {
            let silu = ops::sigmoid(gate).and_then(|s| gate.multiply(s));
            silu.and_then(|s| s.multiply(up)).map_err(f(OP))
        }
        Activation::GeGlu => {
            let (half, one, cubic) = (number(0.5)?, number(1.0)?, number(0.044_715)?);
            let factor = number(FRAC_2_PI.sqrt() as f32)?;
            let cube = gate.multiply(gate).and_then(|square| square.multiply(gate));
            let inner = cube.and_then(|cube| gate.add(cube.multiply(&cubic)?)?.multiply(&factor));
            let gelu = if gate.dtype() == Dtype::Float32 {
                // `(1 + tanh x) / 2` is `sigmoid 2x`, which keeps the digits of what is small.
                inner.and_then(|x| gate.multiply(ops::sigmoid(&x.add(&x)?)?))
            } else {
                let rise = inner.and_then(|x| ops::tanh(&x)?.add(&one));
                rise.and_then(|rise| gate.multiply(&half)?.multiply(rise))
            };
            gelu.and_then(|gelu| gelu.multiply(up)).map_err(f(OP))
        }
        Activation::ClampedSwiGlu { alpha, limit } => {
            let (alpha, one, most, least) = (number(alpha)?, number(1.0)?, number(limit)?, number(-limit)?);
            let gate = ops::minimum(gate, &most).map_err(f(OP))?;
            let up = ops::minimum(up, &most).and_then(|up| ops::maximum(&up, &least)).map_err(f(OP))?;
            let silu = gate.multiply(&alpha).and_then(|x| gate.multiply(ops::sigmoid(&x)?));
            silu.and_then(|silu| silu.multiply(up.add(&one)?)).map_err(f(OP))
        }
    }
}
