//! The custom ops on candle's tensors, on the CPU.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::collections::HashMap;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Module, Shape, Tensor};
use zmlx_kernels::candle::{GatherQmmCombine, GatherQmmSwiglu, QuantizedBank, QuantizedMatmul};
use zmlx_kernels::{QuantMode, QuantSpec};
use zmlx_oracle::quant::{Format, Mode, StorageDtype};
use zmlx_oracle::testing::{random_in, random_quantized};

const CPU: Device = Device::Cpu;

/// Random quantised matrices as candle's tensors, with their values.
struct Weight {
    spec: QuantSpec,
    arrays: [Tensor; 2],
    biases: Option<Tensor>,
    values: Tensor,
}

impl Weight {
    fn new(spec: QuantSpec, sizes: [usize; 3], seed: u64) -> Self {
        let mode = match spec.mode() {
            QuantMode::Affine => Mode::Affine,
            QuantMode::Mxfp4 => Mode::Mxfp4,
            QuantMode::Mxfp8 => Mode::Mxfp8,
            QuantMode::Nvfp4 => Mode::Nvfp4,
        };
        let format = Format { mode, bits: spec.bits(), group_size: spec.group_size() };
        let random = random_quantized(format, StorageDtype::BF16, &sizes, seed);
        let [n_mats, n_out, n_in] = sizes;
        let tensor = |bytes: &[u8], dtype, last| {
            Tensor::from_raw_buffer(bytes, dtype, &[n_mats, n_out, last], &CPU).unwrap()
        };
        let scale_dtype = if spec.has_biases() { DType::BF16 } else { DType::U8 };
        let n_groups = n_in / spec.group_size();
        let arrays = [
            tensor(&random.weight, DType::U32, n_in * spec.bits() / 32),
            tensor(&random.scales, scale_dtype, n_groups),
        ];
        let biases = random.biases.as_ref().map(|b| tensor(b, scale_dtype, n_groups));
        let values = Tensor::from_vec(random.values_f64, &sizes, &CPU).unwrap();
        Self { spec, arrays, biases, values }
    }

    fn bank(&self) -> QuantizedBank {
        let [words, scales] = &self.arrays;
        QuantizedBank::from_tensors(words, scales, self.biases.as_ref(), self.spec).unwrap()
    }
}

fn activations(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let values = random_in(StorageDtype::F32, shape.elem_count(), 1.0, seed);
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

/// Checks the relative root mean square of the difference. On the CPU activations are rounded to 16 bits, which moves a product
/// by about 2⁻¹⁵ of its size.
fn assert_near(got: &Tensor, want: &Tensor, bound: f64) {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (got.to_dtype(DType::F64).unwrap(), want.to_dtype(DType::F64).unwrap());
    let size = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    let difference = size(&(got - &want).unwrap()) / size(&want);
    assert!(difference <= bound, "{difference} > {bound}");
}

/// `x[p] · values[experts[p]]ᵀ` for each row of x.
fn products(x: &Tensor, weight: &Weight, experts: &[u32]) -> Tensor {
    let rows = experts.iter().enumerate().map(|(p, &e)| {
        let row = x.get(p).unwrap().to_dtype(DType::F64).unwrap().unsqueeze(0).unwrap();
        row.matmul(&weight.values.get(e as usize).unwrap().t().unwrap()).unwrap()
    });
    Tensor::cat(&rows.collect::<Vec<_>>(), 0).unwrap()
}

const BOUND: f64 = 2e-4;

#[test]
fn a_matmul_in_every_format_is_that_of_the_values() {
    for spec in QuantSpec::all() {
        let weight = Weight::new(spec, [1, 24, 256], 1);
        let op = QuantizedMatmul::new(weight.bank()).unwrap();
        let x = activations((2, 3, 256), 2);
        let want = products(&x.flatten_to(1).unwrap(), &weight, &[0; 6]).reshape((2, 3, 24)).unwrap();
        assert_near(&op.forward(&x).unwrap(), &want, BOUND);
    }
}

fn spec() -> QuantSpec {
    QuantSpec::new(QuantMode::Affine, 4, 64).unwrap()
}

/// Two tokens with three of five experts each.
const EXPERTS: [u32; 6] = [0, 2, 3, 1, 3, 4];

fn experts() -> Tensor {
    Tensor::from_slice(&EXPERTS, (2, 3), &CPU).unwrap()
}

#[test]
fn swiglu_and_combine_are_those_of_the_values() {
    // The result is rounded to its type: by half an ulp at most.
    let types = [(DType::F32, 0.0), (DType::F16, 2f64.powi(-11)), (DType::BF16, 2f64.powi(-8))];
    for (dtype, half_ulp) in types {
        // SwiGLU joins two products.
        let bound = 2.0 * BOUND + half_ulp;
        let [gate, up] = [1, 2].map(|seed| Weight::new(spec(), [5, 24, 256], seed));
        let op = GatherQmmSwiglu::new(gate.bank(), up.bank()).unwrap();
        let x = activations((2, 256), 3).to_dtype(dtype).unwrap();
        let got = op.forward(&x, &experts()).unwrap();
        assert_eq!(got.dtype(), dtype);
        let rows = x.index_select(&Tensor::new(&[0_u32, 0, 0, 1, 1, 1], &CPU).unwrap(), 0).unwrap();
        let (g, u) = (products(&rows, &gate, &EXPERTS), products(&rows, &up, &EXPERTS));
        let want = (g.silu().unwrap() * u).unwrap().reshape((2, 3, 24)).unwrap();
        assert_near(&got, &want, bound);

        let down = Weight::new(spec(), [5, 40, 64], 4);
        let op = GatherQmmCombine::new(down.bank());
        let h = activations((2, 3, 64), 5).to_dtype(dtype).unwrap();
        let weights = activations((2, 3), 6);
        let got = op.forward(&h, &experts(), &weights).unwrap();
        assert_eq!(got.dtype(), dtype);
        let want = products(&h.flatten_to(1).unwrap(), &down, &EXPERTS).reshape((2, 3, 40)).unwrap();
        let weights = weights.to_dtype(DType::F64).unwrap().unsqueeze(2).unwrap();
        assert_near(&got, &want.broadcast_mul(&weights).unwrap().sum(1).unwrap(), bound);
    }
}

#[test]
fn arguments_may_be_parts_of_larger_tensors() {
    let weight = Weight::new(spec(), [1, 24, 256], 1);
    let op = QuantizedMatmul::new(weight.bank()).unwrap();
    let wide = activations((4, 300), 2);
    let part = wide.narrow(1, 7, 256).unwrap().narrow(0, 1, 2).unwrap();
    let want = op.forward(&part.force_contiguous().unwrap()).unwrap();
    let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(bits(&op.forward(&part).unwrap()), bits(&want));
    let refused = part.apply_op1_no_bwd(&op).unwrap_err().to_string();
    assert!(refused.contains("x: expected a contiguous tensor"), "{refused}");
    // Contiguous, but not from the first element on.
    let rows = wide.narrow(1, 0, 256).unwrap().contiguous().unwrap().narrow(0, 2, 2).unwrap();
    let alone = op.forward(&rows.force_contiguous().unwrap()).unwrap();
    assert_eq!(bits(&rows.apply_op1_no_bwd(&op).unwrap()), bits(&alone));
}

#[test]
fn a_bank_from_a_file_is_the_bank_of_its_tensors() {
    for spec in [spec(), QuantSpec::new(QuantMode::Mxfp4, 4, 32).unwrap()] {
        let weight = Weight::new(spec, [3, 8, 128], 1);
        let [words, scales] = weight.arrays.clone();
        let mut tensors = HashMap::from([("mlp.up.weight", words), ("mlp.up.scales", scales)]);
        tensors.extend(weight.biases.clone().map(|b| ("mlp.up.biases", b)));
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("bank-{}.safetensors", spec.mode().name()));
        candle_core::safetensors::save(&tensors, &file).unwrap();
        // SAFETY: nothing else writes to the file.
        let files = unsafe { MmapedSafetensors::new(&file) }.unwrap();
        let bank = QuantizedBank::load(&files, "mlp.up", spec, &CPU).unwrap();
        assert_eq!((bank.n_mats(), bank.n_out(), bank.n_in(), bank.spec()), (3, 8, 128, spec));
        let op = |bank: QuantizedBank| {
            let x = activations((1, 128), 2);
            let experts = Tensor::new(&[[0_u32, 2]], &CPU).unwrap();
            let y = GatherQmmSwiglu::new(bank.clone(), bank).unwrap().forward(&x, &experts).unwrap();
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(op(bank), op(weight.bank()));
        let missing = QuantizedBank::load(&files, "mlp.down", spec, &CPU).unwrap_err().to_string();
        assert!(missing.contains("mlp.down.weight"), "{missing}");
        if spec.has_biases() {
            let other = QuantSpec::new(QuantMode::Affine, 4, 32).unwrap();
            let refused = QuantizedBank::load(&files, "mlp.up", other, &CPU).unwrap_err().to_string();
            assert!(refused.contains("mlp.up") && refused.contains("weight"), "{refused}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let weight = Weight::new(spec(), [5, 24, 256], 1);
    let ([words, scales], biases) = (&weight.arrays, weight.biases.as_ref());
    let bank = |words: &Tensor, scales: &Tensor, biases: Option<&Tensor>, spec| {
        QuantizedBank::from_tensors(words, scales, biases, spec).map(drop)
    };
    let mxfp4 = QuantSpec::new(QuantMode::Mxfp4, 4, 32).unwrap();
    let eight = QuantSpec::new(QuantMode::Affine, 8, 64).unwrap();
    let f32s = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
    let one = Weight::new(spec(), [1, 24, 256], 1);
    let matmul = QuantizedMatmul::new(one.bank()).unwrap();
    let swiglu = GatherQmmSwiglu::new(weight.bank(), weight.bank()).unwrap();
    let combine = GatherQmmCombine::new(weight.bank());
    let x = activations((2, 256), 3);
    let h = activations((2, 3, 256), 3);
    let run = |x: &Tensor, experts: &Tensor| swiglu.forward(x, experts).map(drop);
    let sum = |x: &Tensor, experts: &Tensor, w: &Tensor| combine.forward(x, experts, w).map(drop);
    let weights = activations((2, 3), 4);
    let fourth = Tensor::from_slice(&[0_u32, 2, 3, 1, 3, 5], (2, 3), &CPU).unwrap();
    for (result, want) in [
        (bank(scales, scales, biases, spec()), "weight: expected u32, got BF16"),
        (
            bank(words, scales, None, spec()),
            "biases: expected biases, as the format is affine 4-bit g64, got",
        ),
        (bank(words, scales, biases, mxfp4), "weight: expected [5, 24, 16], got [5, 24, 32]"),
        (bank(words, scales, biases, eight), "weight: expected [5, 24, 64], got [5, 24, 32]"),
        (bank(words, scales, Some(&f32s(scales)), spec()), "biases: expected [5, 24, 4] of BF16, as scales"),
        (
            bank(words, &scales.flatten_all().unwrap(), biases, spec()),
            "scales: expected [n_mats, n_out, groups]",
        ),
        (
            QuantizedMatmul::new(weight.bank()).map(drop),
            "quantized_matmul: weight: expected one matrix, got 5",
        ),
        (
            matmul.forward(&activations((2, 128), 1)).map(drop),
            "quantized_matmul: x: expected [.., 256], got [2, 128]",
        ),
        (matmul.forward(&activations((), 1)).map(drop), "quantized_matmul: x: expected [.., 256], got []"),
        (matmul.forward(&x.to_dtype(DType::F64).unwrap()).map(drop), "x: expected f32, f16 or bf16, got F64"),
        (
            GatherQmmSwiglu::new(weight.bank(), one.bank()).map(drop),
            "up: expected [5, 24, 256], as gate, got [1, 24, 256]",
        ),
        (run(&x, &f32s(&experts())), "experts: expected u32, got F32"),
        (run(&h, &experts()), "x: expected 2 dimensions, got [2, 3, 256]"),
        (run(&x, &experts().t().unwrap()), "experts: expected [2, top_k], got [3, 2]"),
        (run(&x, &fourth), "expert 5 is out of range: there are 5"),
        (sum(&x, &experts(), &weights), "gather_qmm_combine: x: expected 3 dimensions, got [2, 256]"),
        (sum(&h, &experts(), &activations((2, 2), 1)), "weights: expected [2, 3], got [2, 2]"),
        (sum(&h, &experts(), &experts()), "weights: expected f32, f16 or bf16, got U32"),
        (sum(&h, &fourth, &weights), "expert 5 is out of range: there are 5"),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
}

/// candle is built without CUDA here, so its storage is an empty type that can be made.
#[test]
fn cuda_is_refused_with_what_to_do() {
    let cuda = candle_core::CudaStorage;
    let layout = Layout::contiguous((1, 256));
    let bank = Weight::new(spec(), [1, 24, 256], 1).bank();
    let matmul = QuantizedMatmul::new(bank.clone()).unwrap();
    let swiglu = GatherQmmSwiglu::new(bank.clone(), bank.clone()).unwrap();
    let combine = GatherQmmCombine::new(bank);
    let (s, l) = (&cuda, &layout);
    for (name, result) in [
        ("quantized_matmul", matmul.cuda_fwd(s, l).map(drop)),
        ("gather_qmm_swiglu", swiglu.cuda_fwd(s, l, s, l).map(drop)),
        ("gather_qmm_combine", combine.cuda_fwd(s, l, s, l, s, l).map(drop)),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("move them to the CPU"), "{message}");
    }
}
