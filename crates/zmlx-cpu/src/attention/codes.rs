//! Keys and values of 8 or 4 bits: codes. A multiplier for each group turns them into the integers that products read.
//!
//! A value of a row is about `code · multiplier · scale`. Each value has a code of 8 or 4 bits, each group a multiplier
//! of 16 bits, and the row one scale. `code · multiplier` is an integer of 15 bits, the same as in
//! [`cells`](super::cells). So expanding a block adds no rounding, and products see no difference. A row of n groups
//! takes `2·n + 4` bytes besides its codes.
//!
//! Codes are stored in the order of the cells that they become. A chunk is 16 cells, which are 32 integers. It takes 32
//! bytes with 8 bits, and 16 bytes with 4 bits: the lower halves of the bytes are the first 16 integers, and the upper
//! halves are the others.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::cells::{GROUP, LARGEST, PAD, WIDE};
use zmlx_core::check::ensure;
use zmlx_core::{KvFormat, Result};

/// Integers of a chunk.
const CHUNK: usize = 2 * WIDE;

/// The order in which the integers of some positions are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As keys: the columns are positions.
    Keys,
    /// As values: the columns are the elements of a row.
    Values,
}

/// How values become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coding {
    bits: usize,
    /// Values in a group: a multiple of [`PAD`].
    group_size: usize,
}

impl Coding {
    /// # Errors
    /// If the group size is not supported.
    pub(super) fn of(format: KvFormat) -> Result<Option<Self>> {
        let (bits, group_size) = match format {
            KvFormat::Native => return Ok(None),
            KvFormat::Int8 { group_size } => (8, group_size),
            KvFormat::Int4 { group_size } => (4, group_size),
        };
        ensure([32, 64, 128].contains(&group_size), "cache", "group_size", "32, 64 or 128", group_size)?;
        Ok(Some(Self { bits, group_size }))
    }

    /// Number of groups in a padded row.
    pub(super) fn n_groups(self, stride: usize) -> usize {
        stride.div_ceil(self.group_size)
    }

    /// Number of bytes that `n_codes` codes take.
    #[inline(always)]
    pub(super) fn n_bytes(self, n_codes: usize) -> usize {
        n_codes * self.bits / 8
    }

    fn largest_code(self) -> f32 {
        if self.bits == 8 { 127.0 } else { 7.0 }
    }

    /// The largest multiplier. Its product with the largest code still fits into an integer.
    pub(super) fn largest_multiplier(self) -> u16 {
        LARGEST.cast_unsigned() / self.largest_code() as u16
    }

    /// Writes the row as codes, padded with zeros, with the multipliers of its groups, and returns their scale. The
    /// scale is not finite if one of the values is not.
    pub(super) fn round(self, row: &[f32], codes: &mut [i16], multipliers: &mut [u16]) -> f32 {
        codes.fill(0);
        multipliers.fill(1);
        let largest = |values: &[f32]| values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let is_finite = row.iter().fold(0f32, |zero, v| zero + v * 0.0) == 0.0;
        if !is_finite {
            return f32::NAN;
        }
        let (most, code) = (f32::from(self.largest_multiplier()), self.largest_code());
        let scale = largest(row) / (most * code);
        if !scale.is_normal() {
            // All values are zero, or so small that a group's share is not a finite number.
            return 0.0;
        }
        for ((row, codes), multiplier) in
            row.chunks(self.group_size).zip(codes.chunks_mut(self.group_size)).zip(multipliers)
        {
            let whole = (largest(row) / (scale * code)).ceil().clamp(1.0, most);
            *multiplier = whole as u16;
            let inverse = 1.0 / (scale * whole);
            for i in 0..row.len() {
                codes[i] = (row[i] * inverse).round_ties_even().clamp(-code, code) as i16;
            }
        }
        scale
    }

    /// Writes the padded row of position `at`.
    pub(super) fn set(self, order: Order, at: usize, codes: &[i16], out: &mut [u8]) {
        for (j, code) in codes.iter().enumerate() {
            // The chunk, and the place in it.
            let (chunk, i) = match order {
                Order::Keys => {
                    let (block, lane) = (j / PAD, j % PAD);
                    (
                        at / WIDE * (codes.len() / 2) + block * WIDE + lane % WIDE,
                        2 * (at % WIDE) + lane / WIDE,
                    )
                }
                Order::Values => {
                    let (tile, position) = (at / (2 * GROUP), at % (2 * GROUP));
                    let unit = tile * (codes.len() / WIDE) + j / WIDE;
                    (unit * GROUP + position / 2, 2 * (j % WIDE) + position % 2)
                }
            };
            if self.bits == 8 {
                out[chunk * CHUNK + i] = code.cast_unsigned() as u8;
            } else {
                let (byte, shift) = (&mut out[chunk * WIDE + i % WIDE], i / WIDE * 4);
                *byte = *byte & !(0xf << shift) | (code.cast_unsigned() as u8 & 0xf) << shift;
            }
        }
    }

    /// The index of the multiplier of a group of position `at`, among rows of that stride. Multipliers are stored tile
    /// by tile, then group by group.
    pub(super) fn multiplier_at(self, at: usize, group: usize, stride: usize) -> usize {
        (at / WIDE * self.n_groups(stride) + group) * WIDE + at % WIDE
    }

    /// Writes the integers of whole tiles.
    #[inline(always)]
    pub(super) fn expand(
        self,
        order: Order,
        stride: usize,
        codes: &[u8],
        multipliers: &[u16],
        out: &mut [i16],
    ) {
        if self.bits == 8 {
            self.expand_as::<8>(order, stride, codes, multipliers, out);
        } else {
            self.expand_as::<4>(order, stride, codes, multipliers, out);
        }
    }

    #[inline(always)]
    fn expand_as<const BITS: usize>(
        self,
        order: Order,
        stride: usize,
        codes: &[u8],
        multipliers: &[u16],
        out: &mut [i16],
    ) {
        let (n_groups, code_bytes) = (self.n_groups(stride), CHUNK * BITS / 8);
        let tiles = codes.chunks_exact(WIDE * stride * BITS / 8).zip(out.chunks_exact_mut(WIDE * stride));
        for ((codes, out), multipliers) in tiles.zip(multipliers.chunks_exact(WIDE * n_groups)) {
            match order {
                Order::Keys => {
                    // The chunks of a group follow each other.
                    let n = self.group_size / 2;
                    let groups = codes.chunks(n * code_bytes).zip(out.chunks_mut(n * CHUNK));
                    for ((codes, out), of) in groups.zip(multipliers.chunks_exact(WIDE)) {
                        let mut factors = [0; CHUNK];
                        for i in 0..CHUNK {
                            factors[i] = of[i / 2].cast_signed();
                        }
                        expand_chunks::<BITS>(codes, &factors, out);
                    }
                }
                Order::Values => {
                    let halves = codes.chunks_exact(codes.len() / 2).zip(out.chunks_exact_mut(out.len() / 2));
                    for (half, (codes, out)) in halves.enumerate() {
                        let units =
                            codes.chunks_exact(GROUP * code_bytes).zip(out.chunks_exact_mut(GROUP * CHUNK));
                        for (unit, (codes, out)) in units.enumerate() {
                            let of = &multipliers[unit * WIDE / self.group_size * WIDE + half * 2 * GROUP..];
                            let cells = codes.chunks_exact(code_bytes).zip(out.chunks_exact_mut(CHUNK));
                            for (cell, (codes, out)) in cells.enumerate() {
                                let pair = [of[2 * cell].cast_signed(), of[2 * cell + 1].cast_signed()];
                                let mut factors = [0; CHUNK];
                                for i in 0..CHUNK {
                                    factors[i] = pair[i % 2];
                                }
                                expand_chunks::<BITS>(codes, &factors, out);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Writes the integers of some chunks whose codes have these multipliers.
#[inline(always)]
fn expand_chunks<const BITS: usize>(codes: &[u8], factors: &[i16; CHUNK], out: &mut [i16]) {
    let (out, _) = out.as_chunks_mut::<CHUNK>();
    if BITS == 8 {
        let (codes, _) = codes.as_chunks::<CHUNK>();
        for c in 0..codes.len().min(out.len()) {
            for i in 0..CHUNK {
                out[c][i] = i16::from(codes[c][i].cast_signed()).wrapping_mul(factors[i]);
            }
        }
    } else {
        let (codes, _) = codes.as_chunks::<WIDE>();
        for c in 0..codes.len().min(out.len()) {
            for i in 0..WIDE {
                let code = codes[c][i];
                out[c][i] = i16::from((code << 4).cast_signed() >> 4).wrapping_mul(factors[i]);
                out[c][WIDE + i] = i16::from(code.cast_signed() >> 4).wrapping_mul(factors[WIDE + i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::cells::{set_key, set_value};

    /// Codes that are written and then expanded give the same cells as the integers themselves.
    #[test]
    fn expanded_codes_are_cells() {
        for (bits, group_size, stride) in [(8, 64, 128), (8, 128, 128), (4, 32, 96), (4, 64, 32), (4, 64, 96)]
        {
            let coding = Coding { bits, group_size };
            for order in [Order::Keys, Order::Values] {
                let n = 2 * WIDE;
                let mut bytes = vec![0; coding.n_bytes(n * stride)];
                let mut multipliers = vec![0; n * coding.n_groups(stride)];
                let mut want = vec![0u32; n * stride / 2];
                for at in 0..n {
                    let row: Vec<f32> =
                        (0..stride).map(|j| ((j * 37 + at * 101) % 255) as f32 - 127.0 + at as f32).collect();
                    let (mut codes, mut of) = (vec![0; stride], vec![0; coding.n_groups(stride)]);
                    let scale = coding.round(&row, &mut codes, &mut of);
                    let integers: Vec<i16> =
                        (0..stride).map(|j| codes[j] * of[j / group_size].cast_signed()).collect();
                    for (value, integer) in row.iter().zip(&integers) {
                        let off = (value - f32::from(*integer) * scale).abs();
                        assert!(off <= 160.0 / (2.0 * coding.largest_code()) + 1e-3, "{value}: off by {off}");
                        assert!(integer.abs() <= LARGEST);
                    }
                    coding.set(order, at, &codes, &mut bytes);
                    for (group, m) in of.iter().enumerate() {
                        multipliers[coding.multiplier_at(at, group, stride)] = *m;
                    }
                    match order {
                        Order::Keys => set_key(&mut want, at, &integers),
                        Order::Values => set_value(&mut want, at, &integers),
                    }
                }
                let mut got = vec![0; n * stride];
                coding.expand(order, stride, &bytes, &multipliers, &mut got);
                let want: Vec<i16> =
                    want.iter().flat_map(|w| [*w as u16, (w >> 16) as u16]).map(u16::cast_signed).collect();
                assert_eq!(got, want, "{coding:?}, {order:?}, {stride}");
            }
        }
    }

    #[test]
    fn rows_that_are_no_numbers() {
        let coding = Coding { bits: 8, group_size: 32 };
        let round = |row: &[f32]| {
            let (mut codes, mut multipliers) = (vec![7; 32], vec![7; 1]);
            (coding.round(row, &mut codes, &mut multipliers), codes)
        };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (scale, codes) = round(&[1.0, bad]);
            assert!(scale.is_nan() && codes == [0; 32]);
        }
        for small in [0.0, f32::MIN_POSITIVE] {
            let (scale, codes) = round(&[small; 3]);
            assert!(scale == 0.0 && codes == [0; 32]);
        }
    }
}
