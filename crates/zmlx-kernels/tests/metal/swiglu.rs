//! `gather_qmm_swiglu` and `qmm_swiglu`.

use zmlx_kernels::metal::{self, KernelSpec, NotFused, Numerics, SwigluShape};
use zmlx_kernels::{DType, QuantSpec};

use crate::inputs::{Bank, Buffer, activations, formats, four_bit, half_ulp, readings};
use crate::{sim, stock};

/// A call with its arrays.
pub(crate) struct Case {
    dtype: DType,
    shape: SwigluShape,
    gate: Bank,
    up: Bank,
    inputs: Vec<Buffer>,
}

impl Case {
    pub(crate) fn new(dtype: DType, format: QuantSpec, shape: SwigluShape) -> Self {
        Self::with_seed(dtype, format, shape, 1)
    }

    /// The same activations for every seed, with weights of this one.
    pub(crate) fn with_seed(dtype: DType, format: QuantSpec, shape: SwigluShape, seed: u64) -> Self {
        let SwigluShape { n_pairs, x_batch, n_rows, n_experts, n_out, n_in, .. } = shape;
        let bank = |seed| Bank::new(format, dtype, [n_experts, n_out, n_in], seed);
        let (gate, up) = (bank(seed), bank(seed + 1));
        let rhs: Vec<u32> = (0..n_pairs).map(|p| ((p * 5 + 1) % n_experts) as u32).collect();
        let mut inputs = vec![activations(dtype, &[x_batch, n_rows, n_in], 3)];
        inputs.extend(gate.buffers());
        inputs.extend(up.buffers());
        inputs.push(Buffer::of_u32(&rhs, &[n_pairs]));
        Self { dtype, shape, gate, up, inputs }
    }

    pub(crate) fn inputs(&self) -> Vec<&Buffer> {
        self.inputs.iter().collect()
    }

    pub(crate) fn spec(&self, numerics: Numerics) -> Result<KernelSpec, NotFused> {
        metal::gather_qmm_swiglu(self.dtype, self.gate.format, &self.shape, numerics)
    }

    /// Pair, row of x as values, expert and row of the matrices, for every result in order.
    fn results(&self) -> impl Iterator<Item = (Vec<f32>, usize, usize)> {
        let SwigluShape { n_pairs, x_batch, n_rows, n_out, n_in, .. } = self.shape;
        let x = self.inputs[0].floats();
        let rhs = self.inputs[7].words();
        (0..n_pairs * n_rows).flat_map(move |i| {
            let (pair, row) = (i / n_rows, i % n_rows);
            let at = (pair / (n_pairs / x_batch) * n_rows + row) * n_in;
            let x = x[at..at + n_in].to_vec();
            let expert = rhs[pair] as usize;
            (0..n_out).map(move |n| (x.clone(), expert, n))
        })
    }

    fn name(&self) -> String {
        format!("{} {:?} {:?}", self.gate.format, self.dtype, self.shape)
    }

    /// Against products and SwiGLU in f64. The sums are off by at most a part of the sizes of their summands: f32's
    /// half ulp for each step of the longest chain of additions (a lane's steps, its values, the lanes). SiLU's slope is at
    /// most 1.1, exp and the divisions add a few ulps of f32, and the result is rounded once.
    pub(crate) fn check_accurate(&self, got: &[f32]) {
        let chain = (self.shape.n_in / 32 + 64) as f64 * 2f64.powi(-24);
        for (i, (x, expert, n)) in self.results().enumerate() {
            let (gate, gate_size) = self.gate.product(&x, expert, n);
            let (up, up_size) = self.up.product(&x, expert, n);
            let silu = gate / (1.0 + (-gate).exp());
            let want = silu * up;
            let error = 1.1 * chain * gate_size * (up.abs() + chain * up_size) + silu.abs() * chain * up_size;
            let allowed = (1.01 * half_ulp(self.dtype) + 2f64.powi(-20)) * want.abs() + error + 1e-7;
            let difference = (f64::from(got[i]) - want).abs();
            assert!(difference <= allowed, "{}: result {i}: {} for {want} ± {allowed}", self.name(), got[i]);
        }
    }

    /// Against the ops of stock MLX, bit for bit.
    pub(crate) fn check_exact(&self, got: &[f32]) {
        for (i, (x, expert, n)) in self.results().enumerate() {
            let gate = stock::qmv(self.dtype, &self.gate, &x, expert, n);
            let up = stock::qmv(self.dtype, &self.up, &x, expert, n);
            let want = stock::swiglu(self.dtype, gate, up);
            assert!(got[i].to_bits() == want.to_bits(), "{}: result {i}: {} for {want}", self.name(), got[i]);
        }
    }

    fn check(&self, numerics: Numerics) {
        let spec = self.spec(numerics).unwrap_or_else(|e| panic!("{}: {e}", self.name()));
        let got = sim::run(&spec, &self.inputs())[0].floats();
        match numerics {
            Numerics::Accurate => self.check_accurate(&got),
            Numerics::Exact => self.check_exact(&got),
        }
    }
}

/// One row for each of `n_pairs` experts.
fn decode(n_pairs: usize, n_out: usize, n_in: usize) -> SwigluShape {
    SwigluShape { n_pairs, x_batch: 1, n_rows: 1, n_experts: 3, n_out, n_in, sorted: false }
}

/// Odd heights (a rest of a block of eight, less than four) and widths (one group, a rest of a step). Each width is a kernel to
/// compile.
fn odd_shapes(format: QuantSpec) -> [SwigluShape; 4] {
    [decode(1, 13, 1152), decode(3, 3, format.group_size()), decode(8, 8, 1152), decode(2, 17, 1152)]
}

#[test]
fn accurate_mode_is_near_the_oracle_in_every_format() {
    if !msl_sim::available() {
        return;
    }
    for format in formats() {
        for shape in odd_shapes(format) {
            Case::new(DType::BF16, format, shape).check(Numerics::Accurate);
        }
    }
}

#[test]
fn accurate_mode_is_near_the_oracle_in_every_type() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::F32, DType::F16] {
        for format in [four_bit(), readings()[5], formats()[20]] {
            for shape in odd_shapes(format) {
                Case::new(dtype, format, shape).check(Numerics::Accurate);
            }
        }
    }
}

#[test]
fn exact_mode_equals_the_stock_ops_in_every_way_of_reading_codes() {
    if !msl_sim::available() {
        return;
    }
    for format in readings() {
        // The order for any shape, then the wide one.
        for shape in odd_shapes(format).into_iter().chain([decode(2, 8, 1024), decode(8, 16, 1024)]) {
            Case::new(DType::BF16, format, shape).check(Numerics::Exact);
        }
    }
}

#[test]
fn exact_mode_equals_the_stock_ops_in_every_type() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::F32, DType::F16] {
        for format in [four_bit(), readings()[5], formats()[20]] {
            for shape in [decode(2, 13, 384), decode(3, 8, 512), decode(1, 8, 768)] {
                Case::new(dtype, format, shape).check(Numerics::Exact);
            }
        }
    }
}

#[test]
fn both_modes_take_up_to_sixteen_rows_per_pair() {
    if !msl_sim::available() {
        return;
    }
    for n_rows in [2, 5, 16] {
        let shape = SwigluShape { n_rows, ..decode(3, 13, 384) };
        let wide = SwigluShape { n_rows, x_batch: 2, n_pairs: 4, ..decode(4, 8, 512) };
        for shape in [shape, wide] {
            let case = Case::new(DType::BF16, four_bit(), shape);
            case.check(Numerics::Accurate);
            if n_rows < 13 {
                case.check(Numerics::Exact);
            } else {
                assert!(case.spec(Numerics::Exact).is_err(), "stock MLX may use tiles");
            }
        }
    }
}

#[test]
fn every_top_k_reads_the_row_of_its_token() {
    if !msl_sim::available() {
        return;
    }
    for top_k in 1..=8 {
        let shape = SwigluShape { x_batch: 2, ..decode(2 * top_k, 5, 128) };
        let case = Case::new(DType::BF16, four_bit(), shape);
        case.check(Numerics::Accurate);
        case.check(Numerics::Exact);
    }
}

#[test]
fn both_modes_at_the_widths_of_real_models() {
    if !msl_sim::available() {
        return;
    }
    // GLM-4.7-Flash, Qwen3-30B-A3B: gate and up.
    for [n_in, n_out] in [[2048, 1536], [2048, 768]] {
        let case = Case::new(DType::BF16, four_bit(), decode(2, n_out, n_in));
        case.check(Numerics::Accurate);
        case.check(Numerics::Exact);
    }
}

#[test]
fn one_matrix_is_a_bank_of_one_expert() {
    if !msl_sim::available() {
        return;
    }
    for n_rows in [1, 3] {
        let shape = SwigluShape { n_experts: 1, n_rows, ..decode(1, 21, 384) };
        let case = Case::new(DType::BF16, four_bit(), shape);
        let sizes = [n_rows, 21, 384];
        let spec = metal::qmm_swiglu(DType::BF16, four_bit(), sizes, Numerics::Accurate).unwrap();
        case.check_accurate(&sim::run(&spec, &case.inputs())[0].floats());
        match metal::qmm_swiglu(DType::BF16, four_bit(), sizes, Numerics::Exact) {
            Ok(spec) => case.check_exact(&sim::run(&spec, &case.inputs())[0].floats()),
            Err(_) => assert!(n_rows > 1, "one row has the order of qmv"),
        }
    }
    let quad = metal::qmm_swiglu(DType::BF16, four_bit(), [1, 16, 128], Numerics::Exact);
    assert!(quad.is_err(), "stock MLX runs qmv_quad");
}

#[test]
fn an_expert_that_does_not_exist_gives_no_number_and_reads_nothing() {
    if !msl_sim::available() {
        return;
    }
    let mut case = Case::new(DType::BF16, four_bit(), decode(3, 5, 128));
    case.inputs[7] = Buffer::of_u32(&[1, 3, u32::MAX], &[3]);
    let spec = case.spec(Numerics::Accurate).unwrap();
    let got = sim::run(&spec, &case.inputs())[0].floats();
    assert!(got[..5].iter().all(|v| v.is_finite()) && got[5..].iter().all(|v| v.is_nan()), "{got:?}");
}

#[test]
fn large_gates_saturate_as_the_ops_do() {
    if !msl_sim::available() {
        return;
    }
    // Activations of ±2^13: gates beyond where exp overflows or underflows.
    for numerics in [Numerics::Accurate, Numerics::Exact] {
        let mut case = Case::new(DType::BF16, four_bit(), decode(3, 9, 128));
        let large: Vec<f32> = case.inputs[0].floats().iter().map(|v| v * 8192.0).collect();
        case.inputs[0] = Buffer::of_floats(DType::BF16, &large, &[1, 1, 128]);
        case.check(numerics);
    }
}

#[test]
fn rows_of_a_simdgroup_and_simdgroups_of_a_threadgroup_do_not_change_a_bit() {
    if !msl_sim::available() {
        return;
    }
    for n_rows in [1, 5] {
        let case = Case::new(DType::BF16, four_bit(), SwigluShape { n_rows, ..decode(3, 29, 768) });
        let spec = case.spec(Numerics::Exact).unwrap();
        let want = sim::run(&spec, &case.inputs());
        for block in [[4, 1], [8, 1], [8, 2]] {
            let got = sim::run_all_ways(&sim::with_block(&spec, 29, block), &case.inputs());
            assert!(got[0].bytes == want[0].bytes, "{n_rows} rows, {block:?}");
        }
    }
}
