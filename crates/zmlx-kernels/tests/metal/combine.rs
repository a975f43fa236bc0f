//! `gather_qmm_combine`.

use zmlx_kernels::metal::{self, CombineShape, KernelSpec, NotFused, Numerics};
use zmlx_kernels::{DType, QuantSpec};

use crate::inputs::{Bank, Buffer, activations, formats, four_bit, half_ulp, readings, round};
use crate::{sim, stock};

/// A call with its arrays.
pub(crate) struct Case {
    dtype: DType,
    shape: CombineShape,
    down: Bank,
    inputs: Vec<Buffer>,
}

impl Case {
    /// With routing weights of the type `weights`.
    pub(crate) fn new(dtype: DType, weights: DType, format: QuantSpec, shape: CombineShape) -> Self {
        let CombineShape { n_tokens, top_k, n_experts, n_out, n_in } = shape;
        let down = Bank::new(format, dtype, [n_experts, n_out, n_in], 1);
        let rhs: Vec<u32> = (0..n_tokens * top_k).map(|p| ((p * 5 + 1) % n_experts) as u32).collect();
        let mut inputs = vec![activations(dtype, &[n_tokens, top_k, n_in], 3)];
        inputs.extend(down.buffers());
        inputs.push(Buffer::of_u32(&rhs, &[n_tokens, top_k]));
        inputs.push(activations(weights, &[n_tokens, top_k], 4));
        Self { dtype, shape, down, inputs }
    }

    pub(crate) fn inputs(&self) -> Vec<&Buffer> {
        self.inputs.iter().collect()
    }

    /// For result `(token, n)`: the sum of stock MLX before its cast, bit for bit.
    pub(crate) fn stock_sum(&self, token: usize, n: usize) -> f32 {
        // bf16 times f32 is f32.
        let product_type = if self.inputs[5].dtype == DType::F32 { DType::F32 } else { self.dtype };
        let product = |(x, expert, weight): &(Vec<f32>, usize, f32)| {
            round(product_type, stock::qmv(self.dtype, &self.down, x, *expert, n) * weight)
        };
        let products: Vec<f32> = self.slots(token).iter().map(product).collect();
        stock::column_sum(product_type, &products)
    }

    /// For result `(token, n)`: the weighted sum in f64 and how far sums in f32 may be off, which is that of SwiGLU's products, summed
    /// over the slots.
    pub(crate) fn sum(&self, token: usize, n: usize) -> (f64, f64) {
        let chain = (self.shape.n_in / 32 + 64 + self.shape.top_k) as f64 * 2f64.powi(-24);
        let add = |(want, error): (f64, f64), (x, expert, weight): &(Vec<f32>, usize, f32)| {
            let (product, size) = self.down.product(x, *expert, n);
            (want + f64::from(*weight) * product, error + f64::from(*weight).abs() * chain * size)
        };
        self.slots(token).iter().fold((0.0, 0.0), add)
    }

    pub(crate) fn spec(&self, numerics: Numerics) -> Result<KernelSpec, NotFused> {
        metal::gather_qmm_combine(self.dtype, self.inputs[5].dtype, self.down.format, &self.shape, numerics)
    }

    /// For result `(token, n)`: the slots' activations, experts and routing weights.
    fn slots(&self, token: usize) -> Vec<(Vec<f32>, usize, f32)> {
        let CombineShape { top_k, n_in, .. } = self.shape;
        let (x, rhs, weights) = (self.inputs[0].floats(), self.inputs[4].words(), self.inputs[5].floats());
        let choice = |p: usize| (x[p * n_in..(p + 1) * n_in].to_vec(), rhs[p] as usize, weights[p]);
        (token * top_k..(token + 1) * top_k).map(choice).collect()
    }

    /// Against the weighted sum of products in f64.
    pub(crate) fn check_accurate(&self, got: &[f32]) {
        for token in 0..self.shape.n_tokens {
            for n in 0..self.shape.n_out {
                let (want, error) = self.sum(token, n);
                let allowed = 1.01 * half_ulp(self.dtype) * want.abs() + error + 1e-7;
                let got = f64::from(got[token * self.shape.n_out + n]);
                let close = (got - want).abs() <= allowed;
                assert!(close, "{}: {token}, {n}: {got} for {want} ± {allowed}", self.name());
            }
        }
    }

    /// Against gather, multiply, sum and cast of stock MLX, bit for bit.
    fn check_exact(&self, got: &[f32]) {
        for token in 0..self.shape.n_tokens {
            for n in 0..self.shape.n_out {
                let want = round(self.dtype, self.stock_sum(token, n));
                let got = got[token * self.shape.n_out + n];
                assert!(got.to_bits() == want.to_bits(), "{}: {token}, {n}: {got} for {want}", self.name());
            }
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

    fn name(&self) -> String {
        format!("{} {:?}·{:?} {:?}", self.down.format, self.dtype, self.inputs[5].dtype, self.shape)
    }
}

fn shape(n_tokens: usize, top_k: usize, n_out: usize, n_in: usize) -> CombineShape {
    CombineShape { n_tokens, top_k, n_experts: 5, n_out, n_in }
}

/// Qwen's routing weights have the activations' type, GLM's are f32.
const WEIGHTS: [DType; 2] = [DType::BF16, DType::F32];

#[test]
fn accurate_mode_is_near_the_oracle_in_every_format() {
    if !msl_sim::available() {
        return;
    }
    for format in formats() {
        for shape in [shape(2, 3, 13, 1152), shape(1, 8, 8, 1152), shape(1, 2, 3, format.group_size())] {
            Case::new(DType::BF16, DType::F32, format, shape).check(Numerics::Accurate);
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
        for shape in [shape(2, 4, 13, 384), shape(1, 8, 8, 1024), shape(1, 2, 8, 1024)] {
            Case::new(DType::BF16, DType::BF16, format, shape).check(Numerics::Exact);
        }
    }
}

#[test]
fn exact_mode_adds_the_slots_in_the_order_of_the_stock_sum() {
    if !msl_sim::available() {
        return;
    }
    for weights in WEIGHTS {
        for top_k in 1..=16 {
            Case::new(DType::BF16, weights, four_bit(), shape(2, top_k, 6, 128)).check(Numerics::Exact);
        }
    }
}

#[test]
fn both_modes_in_every_type() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::F32, DType::F16] {
        for weights in [dtype, DType::F32] {
            let case = Case::new(dtype, weights, four_bit(), shape(2, 4, 13, 384));
            case.check(Numerics::Accurate);
            case.check(Numerics::Exact);
        }
    }
}

#[test]
fn both_modes_at_the_widths_of_real_models() {
    if !msl_sim::available() {
        return;
    }
    // GLM-4.7-Flash: 1536 to 2048, top 4, f32; Qwen3-30B-A3B: 768 to 2048, top 8, bf16.
    for (n_in, top_k, weights) in [(1536, 4, DType::F32), (768, 8, DType::BF16)] {
        let case = Case::new(DType::BF16, weights, four_bit(), shape(1, top_k, 2048, n_in));
        case.check(Numerics::Accurate);
        case.check(Numerics::Exact);
    }
}

#[test]
fn an_expert_that_does_not_exist_gives_no_number() {
    if !msl_sim::available() {
        return;
    }
    let mut case = Case::new(DType::BF16, DType::F32, four_bit(), shape(2, 2, 5, 128));
    case.inputs[4] = Buffer::of_u32(&[1, 2, 3, 5], &[2, 2]);
    for numerics in [Numerics::Accurate, Numerics::Exact] {
        let got = sim::run(&case.spec(numerics).unwrap(), &case.inputs())[0].floats();
        assert!(got[..5].iter().all(|v| v.is_finite()) && got[5..].iter().all(|v| v.is_nan()), "{got:?}");
    }
}

#[test]
fn rows_of_a_simdgroup_do_not_change_a_bit() {
    if !msl_sim::available() {
        return;
    }
    // A simdgroup for each slot.
    let case = Case::new(DType::BF16, DType::F32, four_bit(), shape(2, 8, 29, 768));
    let spec = case.spec(Numerics::Exact).unwrap();
    let mut eight = sim::with_block(&spec, 29, [8, 1]);
    eight.grid[1] *= 8;
    eight.threadgroup[1] = 8;
    let got = sim::run_all_ways(&eight, &case.inputs());
    assert!(got[0].bytes == sim::run(&spec, &case.inputs())[0].bytes);
}
