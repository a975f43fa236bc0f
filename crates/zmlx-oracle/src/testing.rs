//! Deterministic random inputs, and quantised weights as raw bytes, for conformance suites.

use crate::quant::{Format, Mode, QuantizedMatrix, Scales, StorageDtype, write_bits};

/// SplitMix64: a small random generator whose streams are the same on every machine.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator with this seed; equal seeds give equal streams.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// A number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number from a bell-shaped distribution with mean 0 and variance 1 (the sum of twelve uniform numbers), within
    /// ±6.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// `n` numbers from a bell-shaped distribution with standard deviation `std_dev`.
#[must_use]
pub fn random_f32(n: usize, std_dev: f64, seed: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed);
    (0..n).map(|_| (std_dev * rng.normal()) as f32).collect()
}

/// As [`random_f32`], with each number rounded to `dtype`: inputs that a 16-bit engine represents exactly.
#[must_use]
pub fn random_in(dtype: StorageDtype, n: usize, std_dev: f64, seed: u64) -> Vec<f32> {
    random_f32(n, std_dev, seed).into_iter().map(|x| dtype.round(x)).collect()
}

/// `n_tokens` rows of `top_k` different experts out of `n_experts`, in random order.
///
/// # Panics
/// If `top_k > n_experts`.
#[must_use]
pub fn random_experts(n_tokens: usize, top_k: usize, n_experts: usize, seed: u64) -> Vec<u32> {
    assert!(top_k <= n_experts, "top_k {top_k} of {n_experts} experts");
    let mut rng = SplitMix64::new(seed);
    let mut chosen = Vec::new();
    for _ in 0..n_tokens {
        let mut left: Vec<u32> = (0..n_experts as u32).collect();
        chosen.extend((0..top_k).map(|_| left.swap_remove(rng.below(left.len()))));
    }
    chosen
}

/// A random quantised weight: the bytes that a checkpoint would hold, and their values.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomQuantized {
    /// The format.
    pub format: Format,
    /// The dtype of affine scales and biases.
    pub scale_dtype: StorageDtype,
    /// The logical shape, `[out, in]` or `[n_experts, out, in]`.
    pub shape: Vec<usize>,
    /// Packed words, u32 little-endian, `[.., out, in·bits/32]`.
    pub weight: Vec<u8>,
    /// Scales `[.., out, in/group_size]`: `scale_dtype` little-endian for affine, else u8 codes.
    pub scales: Vec<u8>,
    /// The biases of the affine mode, in the form of the scales.
    pub biases: Option<Vec<u8>>,
    /// The dequantised values, row-major, product and sum rounded to `f32`.
    pub values: Vec<f32>,
    /// The same values without rounding.
    pub values_f64: Vec<f64>,
    /// The same weight, for this crate's own functions.
    pub matrix: QuantizedMatrix,
}

/// A weight of random codes in any format. Every code occurs (except NaN codes), scales and biases differ from group to
/// group, affine scales have both signs, and the values are about ±0.1, as in trained models.
///
/// # Panics
/// If the format is unknown, `shape` is empty, or its last dimension is not a multiple of the group.
#[must_use]
pub fn random_quantized(
    format: Format,
    scale_dtype: StorageDtype,
    shape: &[usize],
    seed: u64,
) -> RandomQuantized {
    let cols = *shape.last().expect("a shape with at least one dimension");
    let n: usize = shape.iter().product();
    assert!(cols.is_multiple_of(format.group_size), "{cols} columns in groups of {}", format.group_size);
    let mut rng = SplitMix64::new(seed);
    let mut packed = vec![0; n * format.bits / 8];
    for i in 0..n {
        let mut code = (rng.next_u64() >> 32) as u32 & ((1 << format.bits) - 1);
        if format.mode == Mode::Mxfp8 && code & 0x7f == 0x7f {
            code ^= 1; // 0x7f and 0xff are NaN.
        }
        write_bits(&mut packed, i * format.bits, format.bits, code);
    }
    let n_groups = n / format.group_size;
    let (scales, biases) = if format.mode == Mode::Affine {
        let (scales, biases) = (0..n_groups)
            .map(|_| affine_group(&mut rng, format.bits))
            .map(|(scale, bias)| (scale_dtype.round(scale), scale_dtype.round(bias)))
            .unzip();
        (Scales::Float(scales), Some(biases))
    } else {
        let codes = (0..n_groups).map(|_| match format.mode {
            Mode::Nvfp4 => 1 + rng.below(16) as u8, // 2^-9 to 2^-6·1, subnormal and normal
            Mode::Mxfp4 => 119 + rng.below(5) as u8, // 2^-8 to 2^-4
            _ => 112 + rng.below(5) as u8,          // 2^-15 to 2^-11
        });
        (Scales::Codes(codes.collect()), None)
    };
    let rows = n.checked_div(cols).unwrap_or(0);
    let matrix = QuantizedMatrix { format, rows, cols, packed, scales, biases };
    if let Err(error) = matrix.check() {
        panic!("{error}");
    }
    let to_bytes = |values: &Vec<f32>| values.iter().flat_map(|&x| scale_dtype.bytes(x)).collect::<Vec<_>>();
    RandomQuantized {
        format,
        scale_dtype,
        shape: shape.to_vec(),
        weight: matrix.packed.clone(),
        scales: match &matrix.scales {
            Scales::Float(values) => to_bytes(values),
            Scales::Codes(codes) => codes.clone(),
        },
        biases: matrix.biases.as_ref().map(to_bytes),
        values: matrix.dequantize(),
        values_f64: matrix.dequantize_f64(),
        matrix,
    }
}

/// A scale and a bias that spread the codes over about `-a..a` or, if the scale is negative, over `a..-a`.
fn affine_group(rng: &mut SplitMix64, bits: usize) -> (f32, f32) {
    let amplitude = 0.05 + 0.1 * rng.uniform();
    let sign = if rng.next_u64() & 1 == 0 { 1.0 } else { -1.0 };
    let scale = sign * 2.0 * amplitude / f64::from((1u32 << bits) - 1);
    (scale as f32, (-sign * amplitude * (0.9 + 0.2 * rng.uniform())) as f32)
}
