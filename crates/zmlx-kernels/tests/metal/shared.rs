//! `gather_qmm_swiglu_shared` and `gather_qmm_combine_shared`.

use zmlx_kernels::metal::{self, CombineShape, KernelSpec, NotFused, Numerics, SwigluShape};
use zmlx_kernels::{DType, QuantSpec};

use crate::inputs::{Bank, Buffer, activations, formats, four_bit, half_ulp, readings, round};
use crate::{combine, sim, stock, swiglu};

/// Sizes of both ops.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n_tokens: usize,
    top_k: usize,
    n_out: usize,
    n_in: usize,
}

/// A call of the first op: the chosen experts', and the shared one's as a bank of one expert.
struct GateUp {
    dtype: DType,
    format: QuantSpec,
    shape: SwigluShape,
    chosen: swiglu::Case,
    shared: swiglu::Case,
}

impl GateUp {
    fn new(dtype: DType, format: QuantSpec, sizes: Sizes) -> Self {
        let Sizes { n_tokens, top_k, n_out, n_in } = sizes;
        let shape = |n_pairs, n_experts| SwigluShape {
            n_pairs,
            x_batch: n_tokens,
            n_rows: 1,
            n_experts,
            n_out,
            n_in,
            sorted: false,
        };
        let (shape, of_shared) = (shape(n_tokens * top_k, 3), shape(n_tokens, 1));
        let chosen = swiglu::Case::new(dtype, format, shape);
        let shared = swiglu::Case::with_seed(dtype, format, of_shared, 11);
        Self { dtype, format, shape, chosen, shared }
    }

    fn inputs(&self) -> Vec<Buffer> {
        let (chosen, shared) = (self.chosen.inputs(), self.shared.inputs());
        let x = Buffer { shape: vec![self.shape.x_batch, self.shape.n_in], ..chosen[0].clone() };
        let rest = chosen[1..7].iter().chain(&shared[1..7]).chain(&chosen[7..]).map(|b| (*b).clone());
        std::iter::once(x).chain(rest).collect()
    }

    fn spec(&self, numerics: Numerics) -> Result<KernelSpec, NotFused> {
        metal::gather_qmm_swiglu_shared(self.dtype, self.format, &self.shape, numerics)
    }

    fn check(&self, numerics: Numerics) {
        let inputs = self.inputs();
        let spec = self.spec(numerics).unwrap_or_else(|e| panic!("{} {:?}: {e}", self.format, self.shape));
        let got = sim::run(&spec, &inputs.iter().collect::<Vec<_>>());
        for (case, got) in [&self.chosen, &self.shared].into_iter().zip(got) {
            match numerics {
                Numerics::Accurate => case.check_accurate(&got.floats()),
                Numerics::Exact => case.check_exact(&got.floats()),
            }
        }
    }
}

/// A call of the second op.
struct Down {
    dtype: DType,
    weights: DType,
    format: QuantSpec,
    shape: CombineShape,
    chosen: combine::Case,
    shared: Bank,
    shared_x: Buffer,
}

impl Down {
    fn new([dtype, weights]: [DType; 2], format: QuantSpec, sizes: Sizes) -> Self {
        let Sizes { n_tokens, top_k, n_out, n_in } = sizes;
        let shape = CombineShape { n_tokens, top_k, n_experts: 5, n_out, n_in };
        Self {
            dtype,
            weights,
            format,
            shape,
            chosen: combine::Case::new(dtype, weights, format, shape),
            shared: Bank::new(format, dtype, [1, n_out, n_in], 11),
            shared_x: activations(dtype, &[n_tokens, n_in], 12),
        }
    }

    fn inputs(&self) -> Vec<Buffer> {
        let chosen: Vec<Buffer> = self.chosen.inputs().into_iter().cloned().collect();
        let [x, w, s, b, rhs, weights] = chosen.try_into().unwrap();
        let [shared_w, shared_s, shared_b] = self.shared.buffers();
        vec![x, self.shared_x.clone(), w, s, b, shared_w, shared_s, shared_b, rhs, weights]
    }

    fn spec(&self, numerics: Numerics) -> Result<KernelSpec, NotFused> {
        metal::gather_qmm_combine_shared(self.dtype, self.weights, self.format, &self.shape, numerics)
    }

    fn check(&self, numerics: Numerics) {
        let name = format!("{} {:?}·{:?} {:?}", self.format, self.dtype, self.weights, self.shape);
        let inputs = self.inputs();
        let spec = self.spec(numerics).unwrap_or_else(|e| panic!("{name}: {e}"));
        let got = sim::run(&spec, &inputs.iter().collect::<Vec<_>>())[0].floats();
        let (CombineShape { n_out, n_in, .. }, x) = (self.shape, self.shared_x.floats());
        for (i, got) in got.into_iter().enumerate() {
            let (token, n) = (i / n_out, i % n_out);
            let x = &x[token * n_in..(token + 1) * n_in];
            match numerics {
                // The bound of the chosen experts' sum, and that of one more product.
                Numerics::Accurate => {
                    let (sum, error) = self.chosen.sum(token, n);
                    let (product, size) = self.shared.product(x, 0, n);
                    let (want, chain) = (sum + product, (n_in / 32 + 64) as f64 * 2f64.powi(-24));
                    let allowed = 1.01 * half_ulp(self.dtype) * want.abs() + error + chain * size + 1e-7;
                    let close = (f64::from(got) - want).abs() <= allowed;
                    assert!(close, "{name}: {token}, {n}: {got} for {want} ± {allowed}");
                }
                // Sum and product are rounded, then their sum is.
                Numerics::Exact => {
                    let sum = round(self.dtype, self.chosen.stock_sum(token, n));
                    let want = round(self.dtype, sum + stock::qmv(self.dtype, &self.shared, x, 0, n));
                    assert!(got.to_bits() == want.to_bits(), "{name}: {token}, {n}: {got} for {want}");
                }
            }
        }
    }
}

/// Both ops' launches, with rests in every dimension.
pub(crate) fn launches(numerics: Numerics) -> Vec<(KernelSpec, Vec<Buffer>)> {
    let n_tokens = if numerics == Numerics::Exact { 1 } else { 2 };
    let sizes = Sizes { n_tokens, top_k: 3, n_out: 11, n_in: 640 };
    let (gate_up, down) = (
        GateUp::new(DType::F16, four_bit(), sizes),
        Down::new([DType::BF16, DType::F32], formats()[20], sizes),
    );
    vec![(gate_up.spec(numerics).unwrap(), gate_up.inputs()), (down.spec(numerics).unwrap(), down.inputs())]
}

fn check(dtype: DType, weights: DType, format: QuantSpec, sizes: Sizes, numerics: Numerics) {
    GateUp::new(dtype, format, sizes).check(numerics);
    Down::new([dtype, weights], format, sizes).check(numerics);
}

#[test]
fn accurate_mode_is_near_the_oracle_in_every_format() {
    if !msl_sim::available() {
        return;
    }
    for format in formats() {
        let sizes = Sizes { n_tokens: 3, top_k: 2, n_out: 13, n_in: 1152 };
        check(DType::BF16, DType::F32, format, sizes, Numerics::Accurate);
    }
}

#[test]
fn exact_mode_equals_the_stock_ops_in_every_way_of_reading_codes() {
    if !msl_sim::available() {
        return;
    }
    for format in readings() {
        // The order for any shape, then the wide one.
        for (n_out, n_in) in [(13, 384), (8, 1024)] {
            let sizes = Sizes { n_tokens: 1, top_k: 4, n_out, n_in };
            check(DType::BF16, DType::F32, format, sizes, Numerics::Exact);
        }
    }
}

#[test]
fn both_modes_in_every_type_and_number_of_slots() {
    if !msl_sim::available() {
        return;
    }
    for (dtype, weights, top_k) in [
        (DType::F32, DType::F32, 1),
        (DType::F16, DType::F16, 9),
        (DType::BF16, DType::BF16, 16),
        (DType::F16, DType::F32, 8),
    ] {
        let sizes = Sizes { n_tokens: 1, top_k, n_out: 13, n_in: 384 };
        for numerics in [Numerics::Accurate, Numerics::Exact] {
            check(dtype, weights, four_bit(), sizes, numerics);
        }
    }
}

/// GLM-4.7-Flash: 2048 to 1536 and back, top 4, routing weights in f32.
#[test]
fn both_modes_at_the_widths_of_the_real_model() {
    if !msl_sim::available() {
        return;
    }
    for numerics in [Numerics::Accurate, Numerics::Exact] {
        let sizes = |n_out, n_in| Sizes { n_tokens: 1, top_k: 4, n_out, n_in };
        GateUp::new(DType::BF16, four_bit(), sizes(1536, 2048)).check(numerics);
        Down::new([DType::BF16, DType::F32], four_bit(), sizes(2048, 1536)).check(numerics);
    }
}

#[test]
fn an_expert_that_does_not_exist_gives_no_number_and_leaves_the_shared_one_alone() {
    if !msl_sim::available() {
        return;
    }
    let sizes = Sizes { n_tokens: 2, top_k: 2, n_out: 5, n_in: 128 };
    let gate_up = GateUp::new(DType::BF16, four_bit(), sizes);
    let mut inputs = gate_up.inputs();
    inputs[13] = Buffer::of_u32(&[1, 2, 0, 3], &[4]);
    let got = sim::run(&gate_up.spec(Numerics::Accurate).unwrap(), &inputs.iter().collect::<Vec<_>>());
    let (chosen, shared) = (got[0].floats(), got[1].floats());
    assert!(chosen[..15].iter().chain(&shared).all(|v| v.is_finite()), "{chosen:?} {shared:?}");
    assert!(chosen[15..].iter().all(|v| v.is_nan()), "{chosen:?}");
    let down = Down::new([DType::BF16, DType::F32], four_bit(), sizes);
    let mut inputs = down.inputs();
    inputs[8] = Buffer::of_u32(&[1, 2, 3, 5], &[2, 2]);
    let got = sim::run(&down.spec(Numerics::Accurate).unwrap(), &inputs.iter().collect::<Vec<_>>());
    let got = got[0].floats();
    assert!(got[..5].iter().all(|v| v.is_finite()) && got[5..].iter().all(|v| v.is_nan()), "{got:?}");
}

#[test]
fn several_tokens_have_no_exact_kernel() {
    let sizes = |n_tokens, n_in| Sizes { n_tokens, top_k: 2, n_out: 16, n_in };
    for (sizes, is_exact) in [(sizes(1, 512), true), (sizes(2, 512), false), (sizes(1, 128), false)] {
        let gate_up = GateUp::new(DType::BF16, four_bit(), sizes);
        let down = Down::new([DType::BF16, DType::F32], four_bit(), sizes);
        for (numerics, want) in [(Numerics::Exact, is_exact), (Numerics::Accurate, true)] {
            assert_eq!(gate_up.spec(numerics).is_ok(), want, "{sizes:?}");
            assert_eq!(down.spec(numerics).is_ok(), want, "{sizes:?}");
        }
    }
}
