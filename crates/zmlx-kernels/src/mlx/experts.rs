//! A bank of quantised experts as MLX arrays.

use mlx_rs::{Array, Dtype};

use super::runtime::fault;
use crate::check::ensure;
use crate::{QuantMode, QuantSpec, Result};

const WHAT: &str = "quantised experts";

/// `n_experts` quantised matrices `[n_out, n_in]` of one format, stacked: what `mx.gather_qmm(transpose=True)` takes.
/// One matrix alone is a bank of one expert.
///
/// | field | shape | type |
/// |---|---|---|
/// | weight | `[n_experts, n_out, n_in · bits / 32]` | u32 |
/// | scales | `[n_experts, n_out, n_in / group_size]` | f32, f16, bf16; u8 for the floating-point modes |
/// | biases | as scales; only affine has them | as scales |
#[derive(Clone, Debug)]
pub struct QuantizedExperts {
    weight: Array,
    scales: Array,
    biases: Option<Array>,
    spec: QuantSpec,
}

impl QuantizedExperts {
    /// The bank; a matrix of two dimensions becomes a bank of one expert. Arrays that are slices of larger ones, such as
    /// `gate_up[:, :n]`, are copied once, when the bank is first used: a kernel takes whole arrays, and MLX would copy a slice in
    /// every call.
    ///
    /// # Errors
    /// [`crate::Error::Precondition`] naming the field, what it needs and what it got, if the arrays do not fit each
    /// other or the format.
    pub fn new(weight: Array, scales: Array, biases: Option<Array>, spec: QuantSpec) -> Result<Self> {
        let whole = |a: Array| a.contiguous().map_err(fault(WHAT));
        Self::view(whole(weight)?, whole(scales)?, biases.map(whole).transpose()?, spec)
    }

    /// As [`Self::new`], of arrays that are whole, or whole rows of one matrix, and are not copied.
    pub(super) fn view(weight: Array, scales: Array, biases: Option<Array>, spec: QuantSpec) -> Result<Self> {
        let matrix = weight.ndim() == 2;
        let stacked = |a: &Array| {
            let shape = a.shape();
            if matrix && shape.len() == 2 { vec![1, shape[0], shape[1]] } else { shape.to_vec() }
        };
        let shape = stacked(&weight);
        ensure(
            shape.len() == 3,
            WHAT,
            "weight",
            "[n_experts, n_out, words] or [n_out, words]",
            weight.shape(),
        )?;
        ensure(shape.iter().all(|&n| n > 0), WHAT, "weight", "no empty dimension", &shape)?;
        ensure(weight.dtype() == Dtype::Uint32, WHAT, "weight", "u32", weight.dtype())?;
        let (bits, group_size) = (spec.bits(), spec.group_size());
        let row_bits = shape[2] as usize * 32;
        let n_in = row_bits / bits;
        ensure(
            row_bits.is_multiple_of(bits) && n_in.is_multiple_of(group_size),
            WHAT,
            "weight",
            format_args!("rows of whole groups of {group_size} weights of {bits} bits"),
            &shape,
        )?;
        let want = [shape[0], shape[1], (n_in / group_size) as i32];
        ensure(stacked(&scales) == want, WHAT, "scales", format_args!("{want:?}"), scales.shape())?;
        let float = matches!(scales.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
        match (spec.mode(), &biases) {
            (QuantMode::Affine, Some(biases)) => {
                ensure(float, WHAT, "scales", "f32, f16 or bf16", scales.dtype())?;
                ensure(stacked(biases) == want, WHAT, "biases", format_args!("{want:?}"), biases.shape())?;
                ensure(
                    biases.dtype() == scales.dtype(),
                    WHAT,
                    "biases",
                    format_args!("{:?}, as scales", scales.dtype()),
                    biases.dtype(),
                )?;
            }
            (QuantMode::Affine, None) => {
                ensure(false, WHAT, "biases", "biases beside affine scales", "none")?
            }
            (mode, Some(_)) => {
                ensure(false, WHAT, "biases", format_args!("none, as the mode is {}", mode.name()), "some")?;
            }
            (_, None) => ensure(scales.dtype() == Dtype::Uint8, WHAT, "scales", "u8", scales.dtype())?,
        }
        if !matrix {
            return Ok(Self { weight, scales, biases, spec });
        }
        let stack = |a: Array| a.reshape(&[&[1], a.shape()].concat()).map_err(fault(WHAT));
        Ok(Self {
            weight: stack(weight)?,
            scales: stack(scales)?,
            biases: biases.map(stack).transpose()?,
            spec,
        })
    }

    /// Packed weights.
    pub fn weight(&self) -> &Array {
        &self.weight
    }

    /// One scale per group.
    pub fn scales(&self) -> &Array {
        &self.scales
    }

    /// One bias per group, if the format has them.
    pub fn biases(&self) -> Option<&Array> {
        self.biases.as_ref()
    }

    /// The format.
    pub fn spec(&self) -> QuantSpec {
        self.spec
    }

    /// The number of experts.
    pub fn n_experts(&self) -> usize {
        self.weight.shape()[0] as usize
    }

    /// Rows of each expert: the width of its result.
    pub fn n_out(&self) -> usize {
        self.weight.shape()[1] as usize
    }

    /// Columns of each expert: the width of its input.
    pub fn n_in(&self) -> usize {
        self.weight.shape()[2] as usize * 32 / self.spec.bits()
    }
}
