//! The formats and sizes for which ops are run, by this suite and by `benches/ops.rs`.

use zmlx_core::{DType, QuantSpec, WeightFormat};

/// How many of the sizes a backend runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// All sizes.
    Full,
    /// A part of them that still has every format and every kind of size: for a second configuration of the same
    /// kernels.
    Thinned,
}

/// Rows of a weight: one below, at and above the numbers that kernels take at once (4 rows, tiles of 12), and two or
/// more tiles.
pub const N_OUT: [usize; 11] = [1, 2, 3, 4, 5, 11, 12, 13, 31, 48, 67];
/// Groups of a row: less than a chunk of any kernel, one chunk, and an odd number that leaves a remainder.
pub const N_GROUPS: [usize; 4] = [1, 2, 3, 5];
/// Widths of released models.
pub const REAL_WIDTHS: [usize; 3] = [768, 1536, 2048];
/// Widths of dense weights that are not a multiple of any vector.
pub const ODD_WIDTHS: [usize; 6] = [1, 7, 31, 33, 65, 257];
/// Tokens: every number of rows that a kernel takes at once, and from 8 on another path.
pub const N_TOKENS: [usize; 9] = [1, 2, 3, 4, 5, 7, 8, 9, 64];

/// Every dense format.
pub fn dense() -> [WeightFormat; 3] {
    [DType::F32, DType::F16, DType::BF16].map(WeightFormat::Dense)
}

/// Every quantised format with every type of scales.
pub fn quantised() -> Vec<WeightFormat> {
    let mut all = Vec::new();
    for spec in QuantSpec::all() {
        let scales: &[DType] =
            if spec.has_biases() { &[DType::F32, DType::F16, DType::BF16] } else { &[DType::U8] };
        all.extend(scales.iter().map(|&scale_dtype| WeightFormat::Quantized { spec, scale_dtype }));
    }
    all
}

/// Every format.
pub fn formats() -> Vec<WeightFormat> {
    quantised().into_iter().chain(dense()).collect()
}

/// Every format. The thinned grid has only one type of scales for each, in turn.
pub fn formats_of(grid: Grid) -> Vec<WeightFormat> {
    let all = formats();
    match grid {
        Grid::Full => all,
        Grid::Thinned => {
            let turn = |i: usize, f: &WeightFormat| match f {
                WeightFormat::Quantized { spec, .. } if spec.has_biases() => i % 3 == i / 3 % 3,
                _ => true,
            };
            all.into_iter().enumerate().filter(|(i, f)| turn(*i, f)).map(|(_, f)| f).collect()
        }
    }
}

/// The widths of a format must be multiples of this number.
pub fn group_size(format: WeightFormat) -> usize {
    match format {
        WeightFormat::Quantized { spec, .. } => spec.group_size(),
        WeightFormat::Dense(_) => 32,
    }
}

/// The name of a format for messages.
pub fn name(format: WeightFormat) -> String {
    match format {
        WeightFormat::Quantized { scale_dtype, .. } => format!("{format} with {scale_dtype:?} scales"),
        WeightFormat::Dense(_) => format!("{format}"),
    }
}

/// Numbers of tokens, chosen experts and experts in a bank.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// Number of tokens.
    pub n_tokens: usize,
    /// Number of experts of each token.
    pub top_k: usize,
    /// Number of experts in the bank.
    pub n_experts: usize,
    /// Number of rows of each expert's matrix.
    pub n_out: usize,
    /// Number of groups in a row.
    pub n_groups: usize,
}

/// One token; few and many tokens per expert (from 8 on another path); all experts, and few of many; row counts around
/// the limits of [`N_OUT`].
pub const EXPERTS: [Experts; 8] = [
    Experts { n_tokens: 1, top_k: 1, n_experts: 1, n_out: 1, n_groups: 1 },
    Experts { n_tokens: 1, top_k: 2, n_experts: 5, n_out: 13, n_groups: 3 },
    Experts { n_tokens: 1, top_k: 8, n_experts: 8, n_out: 4, n_groups: 2 },
    Experts { n_tokens: 2, top_k: 3, n_experts: 4, n_out: 5, n_groups: 1 },
    Experts { n_tokens: 5, top_k: 1, n_experts: 3, n_out: 3, n_groups: 5 },
    Experts { n_tokens: 9, top_k: 2, n_experts: 2, n_out: 12, n_groups: 2 },
    Experts { n_tokens: 17, top_k: 2, n_experts: 3, n_out: 31, n_groups: 1 },
    Experts { n_tokens: 33, top_k: 4, n_experts: 16, n_out: 11, n_groups: 3 },
];
