//! The arithmetic of stock MLX 0.32.2 on Metal, one op after the other, in scalar Rust: what exact mode has to equal.
//!
//! Written from the order of the stock kernels, not from ours: codes are taken from the oracle's matrix one by one.

use zmlx_kernels::{DType, QuantMode, Rope, RopeFrequencies, RopePairing};
use zmlx_oracle::quant::float::{e2m1_to_f32, e4m3_to_f32};

use crate::inputs::{Bank, round};

const LANES: usize = 32;

/// `simd_sum` of the simulator: lanes meet in pairs 16, 8, 4, 2, 1 apart. On a device both sides call the same instruction.
pub(crate) fn simd_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut apart = LANES / 2;
    while apart > 0 {
        for l in 0..apart {
            lanes[l] += lanes[l + apart];
        }
        apart /= 2;
    }
    lanes[0]
}

/// A row of `gather_qmv_fast` or `gather_qmv`, whichever serves the bank's shape, rounded to the type of x.
pub(crate) fn qmv(dtype: DType, bank: &Bank, x: &[f32], expert: usize, row: usize) -> f32 {
    let [_, n_out, n_in] = bank.sizes;
    let affine = bank.format.mode() == QuantMode::Affine;
    let bits = bank.format.bits();
    // Values in a pack of whole bytes or of one word.
    let pack = match (affine, bits) {
        (true, 3 | 5) => 8,
        (true, 6) => 4,
        _ => 32 / bits,
    };
    let fast_packs = if affine && bits == 2 { 1 } else { 2 };
    let fast = n_out.is_multiple_of(8) && n_in.is_multiple_of(pack * fast_packs * LANES);
    let per_lane = if fast { pack * fast_packs } else { pack };
    let mut lanes = [0.0f32; LANES];
    for block in (0..n_in).step_by(per_lane * LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            let first = block + l * per_lane;
            if first < n_in {
                let x = &x[first..first + per_lane];
                *lane += group_dot(dtype, bank, x, expert * n_out + row, first);
            }
        }
    }
    round(dtype, simd_sum(lanes))
}

/// One lane's step: `scale · accumulated + sum · bias`.
fn group_dot(dtype: DType, bank: &Bank, x: &[f32], row: usize, first: usize) -> f32 {
    let matrix = bank.matrix();
    let bits = bank.format.bits();
    let (scale, bias) = matrix.scale_bias(row, first);
    let code = |i: usize| matrix.code(row, first + i);
    let mut acc = 0.0f32;
    if bank.format.mode() != QuantMode::Affine {
        if bits == 8 {
            for (i, x) in x.iter().enumerate() {
                acc += x * e4m3_to_f32(code(i) as u8);
            }
        } else {
            for (i, x) in x.chunks_exact(4).enumerate() {
                let w = |j| e2m1_to_f32(code(4 * i + j) as u8);
                acc += x[0] * w(0) + x[1] * w(1) + x[2] * w(2) + x[3] * w(3);
            }
        }
        return scale * acc;
    }
    let chunk = match bits {
        3 | 5 => 8,
        8 => 1,
        _ => 4,
    };
    let mut sum = 0.0f32;
    for x in x.chunks_exact(chunk) {
        sum += x[1..].iter().fold(x[0], |sum, x| round(dtype, sum + x));
    }
    // Where a code lies in its unit of 8 or, for 4 bits, 16 bits: it is read that much too large.
    let unit = if bits == 4 { 16 } else { 8 };
    let up = |i: usize| (1u32 << (bits * i % unit)) as f32;
    match bits {
        2 | 4 => {
            for i in (0..x.len()).step_by(4) {
                let term = |j: usize| (x[i + j] / up(i + j)) * (code(i + j) as f32 * up(i + j));
                acc += term(0) + term(1) + term(2) + term(3);
            }
        }
        8 => {
            for (i, x) in x.iter().enumerate() {
                acc += x * code(i) as f32;
            }
        }
        _ => {
            for (i, x) in x.iter().enumerate() {
                let shift = bits * i % unit;
                let low_bits = bits.min(8 - shift);
                let scaled = x / up(i);
                acc += ((code(i) & ((1 << low_bits) - 1)) << shift) as f32 * scaled;
                if low_bits < bits {
                    acc += (code(i) >> low_bits) as f32 * (scaled * 256.0);
                }
            }
        }
    }
    scale * acc + sum * bias
}

/// `mx.sigmoid`.
pub(crate) fn sigmoid(dtype: DType, x: f32) -> f32 {
    let exp = round(dtype, x.abs().exp());
    let y = round(dtype, 1.0 / round(dtype, 1.0 + exp));
    if x < 0.0 { y } else { round(dtype, 1.0 - y) }
}

/// `silu(gate) * up`, op by op.
pub(crate) fn swiglu(dtype: DType, gate: f32, up: f32) -> f32 {
    round(dtype, round(dtype, gate * sigmoid(dtype, gate)) * up)
}

/// `mx.sum` over fewer than 32 slots, not the last axis: eight threads of every eighth slot, then those in order.
pub(crate) fn column_sum(dtype: DType, values: &[f32]) -> f32 {
    let mut threads = vec![0.0f32; values.len().min(8)];
    for (i, &v) in values.iter().enumerate() {
        let t = i % 8;
        threads[t] = round(dtype, v + threads[t]);
    }
    threads[1..].iter().fold(threads[0], |total, &v| round(dtype, v + total))
}

/// `mx.sum` over a last axis of at most 64.
pub(crate) fn row_sum(dtype: DType, values: &[f32]) -> f32 {
    values.iter().fold(0.0, |total, &v| round(dtype, v + total))
}

/// `mx.softmax(precise=True)` of a row of at most 4096: a thread per four values.
pub(crate) fn softmax(dtype: DType, row: &[f32]) -> Vec<f32> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = row.iter().map(|v| (v - most).exp()).collect();
    let threads: Vec<f32> = exps.chunks(4).map(|c| c.iter().fold(0.0, |sum, v| sum + v)).collect();
    let lanes = |values: &[f32]| std::array::from_fn(|l| values.get(l).copied().unwrap_or(0.0));
    let groups: Vec<f32> = threads.chunks(LANES).map(|t| simd_sum(lanes(t))).collect();
    let scale = 1.0 / simd_sum(lanes(&groups));
    exps.iter().map(|v| round(dtype, v * scale)).collect()
}

/// `mx.argpartition` on Metal: a stable ascending sort.
pub(crate) fn argsort(values: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| values[a as usize].partial_cmp(&values[b as usize]).unwrap());
    order
}

/// `mx.fast.rms_norm` of a row of at most 4096: a thread per four values.
pub(crate) fn rms_norm(dtype: DType, row: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let threads: Vec<f32> = row.chunks(4).map(|c| c.iter().fold(0.0, |sum, v| sum + v * v)).collect();
    let lanes = |values: &[f32]| std::array::from_fn(|l| values.get(l).copied().unwrap_or(0.0));
    let groups: Vec<f32> = threads.chunks(LANES).map(|t| simd_sum(lanes(t))).collect();
    let mean = simd_sum(lanes(&groups)) / row.len() as f32;
    // The simulator's root is that of f64, rounded once.
    let scale = (1.0 / f64::from(mean + eps).sqrt()) as f32;
    row.iter().zip(w).map(|(v, w)| round(dtype, w * round(dtype, v * scale))).collect()
}

/// Angles that pairs turn by in `mx.fast.rope` at a position.
pub(crate) fn angles(rope: &Rope, position: u32) -> Vec<f32> {
    let half = rope.dims / 2;
    let of = |i: usize| match &rope.frequencies {
        RopeFrequencies::Powers { theta, position_scale } => {
            let exponent = -(i as f32 / half as f32) * theta.log2();
            (position_scale * position as f32) * f64::from(exponent).exp2() as f32
        }
        RopeFrequencies::Given(given) => position as f32 * (1.0 / (given[i].recip() as f32)),
    };
    (0..half).map(of).collect()
}

/// `mx.fast.rope` of one head, whose values are numbers of the type.
pub(crate) fn rope(dtype: DType, head: &[f32], rope: &Rope, position: u32) -> Vec<f32> {
    let mut turned = head.to_vec();
    for (i, theta) in angles(rope, position).into_iter().enumerate() {
        let [first, second] = match rope.pairing {
            RopePairing::Interleaved => [2 * i, 2 * i + 1],
            RopePairing::HalfSplit => [i, i + rope.dims / 2],
        };
        // The simulator's functions are those of f64, rounded once.
        let (c, s) = (f64::from(theta).cos() as f32, f64::from(theta).sin() as f32);
        turned[first] = round(dtype, head[first] * c - head[second] * s);
        turned[second] = round(dtype, head[first] * s + head[second] * c);
    }
    turned
}
