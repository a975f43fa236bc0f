//! Element types of weights and of the buffers that hold them.

use half::{bf16, f16};

/// An element type of a weight buffer. All buffers are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// Unsigned byte: e8m0 or e4m3 scales.
    U8,
    /// Unsigned 32-bit word: packed quantised weights.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }

    /// True for the types that weights and scales are stored in.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Reads the float at the start of `bytes`; exact for every type.
    ///
    /// # Panics
    /// If `bytes` is shorter than an element or the type is not a float: the callers check both.
    #[inline]
    pub fn read_f32(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::U8 | Self::U32 => unreachable!("not a float type: {self:?}"),
        }
    }

    /// Widens a whole buffer of floats; exact. Trailing bytes that do not fill an element are ignored.
    pub fn to_f32_vec(self, bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(self.size_bytes()).map(|b| self.read_f32(b)).collect()
    }

    /// Appends `value`, rounded to this type (nearest, ties to even), to `out`.
    pub(crate) fn push_f32(self, value: f32, out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend_from_slice(&value.to_le_bytes()),
            Self::F16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
            Self::BF16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
            Self::U8 | Self::U32 => unreachable!("not a float type: {self:?}"),
        }
    }
}
