//! The primitives on mlx-rs arrays: where they are composed, bit for bit what an mlx-rs program writes with MLX's own ops;
//! every refused argument is an error that names it.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use rstest::rstest;
use zmlx_kernels::mlx::mlx_rs::{Dtype, ops, random};
use zmlx_kernels::mlx::self_check::{self, Outcome};
use zmlx_kernels::mlx::{
    Array, GatherOptions, Gpu, MlxBackend, MlxIndices, MlxWeight, Numerics, QuantizedExperts, Runtime,
    gather_qmm_combine, gather_qmm_swiglu, qmm_swiglu, route_noaux_tc, route_softmax_top_k,
};
use zmlx_kernels::{Error, GateUp, NoauxTc, QuantMode, QuantSpec, Renormalize, Result, SoftmaxTopK, stock};

const E: i32 = 5;
const N: i32 = 24;
const K: i32 = 128;

/// The same numbers in every run.
fn normal(shape: &[i32], seed: u64, dtype: Dtype) -> Array {
    Runtime::start().unwrap();
    let key = random::key(seed).unwrap();
    random::normal::<f32>(shape, None, 0.5, Some(&key)).unwrap().as_dtype(dtype).unwrap()
}

fn bank(shape: &[i32], seed: u64, dtype: Dtype, [bits, group]: [i32; 2]) -> QuantizedExperts {
    let (w, scales, biases) = ops::quantize(normal(shape, seed, dtype), group, bits).unwrap();
    let spec = QuantSpec::new(QuantMode::Affine, bits as usize, group as usize).unwrap();
    QuantizedExperts::new(w, scales, Some(biases), spec).unwrap()
}

fn pair(dtype: Dtype, format: [i32; 2]) -> [QuantizedExperts; 2] {
    [1, 2].map(|seed| bank(&[E, N, K], seed, dtype, format))
}

fn silu_mul(gate: Array, up: Array) -> Array {
    gate.multiply(ops::sigmoid(&gate).unwrap()).unwrap().multiply(up).unwrap()
}

fn gather(x: &Array, w: &QuantizedExperts, lhs: Option<&Array>, rhs: &Array, sorted: bool) -> Array {
    let (group, bits) = (w.spec().group_size() as i32, w.spec().bits() as i32);
    ops::gather_qmm(x, w.weight(), w.scales(), w.biases(), lhs, rhs, true, group, bits, sorted).unwrap()
}

fn assert_same(got: &Array, want: &Array, what: &str) {
    assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{what}");
    let bits = |a: &Array| {
        let a = a.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap();
        a.try_as_slice::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert!(bits(got) == bits(want), "{what}: other bits");
}

fn indices(values: &[u32], shape: &[i32]) -> Array {
    Array::from_slice(values, shape)
}

#[test]
fn slices_of_a_larger_bank_are_copied_once() {
    let (gate_up, x) =
        (bank(&[E, 2 * N, K], 4, Dtype::Bfloat16, [4, 64]), normal(&[1, K], 5, Dtype::Bfloat16));
    let rows = |a: &Array, from: i32| {
        let rows = Array::from_slice(&(from..from + N).collect::<Vec<_>>(), &[N]);
        // A view of every second row would be one, too; these are rows behind each other, with a gap between matrices.
        (a.take_axis(&rows, 1).unwrap(), a.split_at_indices(&[N], 1).unwrap().remove(usize::from(from > 0)))
    };
    let half = |from: i32, slice: bool| {
        let part = |a: &Array| {
            let (copied, sliced) = rows(a, from);
            if slice { sliced } else { copied }
        };
        let biases = gate_up.biases().map(part);
        QuantizedExperts::new(part(gate_up.weight()), part(gate_up.scales()), biases, gate_up.spec()).unwrap()
    };
    let rhs = indices(&[4, 0, 3], &[3]);
    let options = GatherOptions::default();
    let run = |slice: bool| {
        let (gate, up) = (half(0, slice), half(N, slice));
        let y = gather_qmm_swiglu(&x, &gate, &up, &rhs, &options).unwrap();
        y.eval().unwrap();
        for array in [gate.weight(), gate.scales(), up.biases().unwrap()] {
            let [n, rows, width] = array.shape() else { panic!("a bank has three dimensions") };
            assert_eq!(
                (*n, array.strides()),
                (E, &[(rows * width) as usize, *width as usize, 1][..]),
                "a whole array"
            );
        }
        y
    };
    assert_same(&run(true), &run(false), "slices");
}

#[rstest]
fn gathers_have_the_bits_of_two_of_mlx(
    #[values(Dtype::Float32, Dtype::Float16, Dtype::Bfloat16)] dtype: Dtype,
    #[values([2, 32], [3, 64], [4, 64], [5, 128], [6, 32], [8, 64])] format: [i32; 2],
    #[values(1, 3, 16, 33)] m: i32,
) {
    let [gate, up] = pair(dtype, format);
    // Shape of the batch of x, left indices, right indices.
    let cases = [
        (vec![], None, indices(&[4], &[1])),
        (vec![2, 1], None, indices(&[4, 0, 3, 3, 1, 2], &[2, 3])),
        (vec![3], None, indices(&[4, 0, 3, 3, 1, 2], &[2, 3])),
        (vec![2, 3], None, indices(&[4, 1], &[2, 1])),
        (vec![4], Some(indices(&[3, 0, 0], &[3, 1])), indices(&[2, 4], &[2])),
        (vec![2, 2], Some(indices(&[3], &[])), indices(&[2, 4], &[2])),
    ];
    for (batch, lhs, rhs) in cases {
        let x = normal(&[&batch[..], &[m, K]].concat(), 3, dtype);
        let options = GatherOptions { lhs_indices: lhs.as_ref(), ..Default::default() };
        let got = gather_qmm_swiglu(&x, &gate, &up, &rhs, &options).unwrap();
        let [g, u] = [&gate, &up].map(|w| gather(&x, w, lhs.as_ref(), &rhs, false));
        assert_same(&got, &silu_mul(g, u), &format!("{batch:?} {lhs:?} {rhs:?}"));
        assert_eq!(got.shape()[got.ndim() - 2..], [m, N]);
    }
}

/// mlx-rs knows affine weights alone; the backend's gathers have the recorded bits of these modes.
#[rstest]
#[case(QuantMode::Mxfp4, 4, 32)]
#[case(QuantMode::Mxfp8, 8, 32)]
#[case(QuantMode::Nvfp4, 4, 16)]
fn floating_point_modes_have_the_bits_of_the_backend(
    #[case] mode: QuantMode,
    #[case] bits: usize,
    #[case] group: usize,
    #[values(Dtype::Float32, Dtype::Float16, Dtype::Bfloat16)] dtype: Dtype,
) {
    let b = MlxBackend::new(Numerics::Exact).unwrap();
    let spec = QuantSpec::new(mode, bits, group).unwrap();
    let [gate, up] = [7_u32, 11].map(|seed| {
        let n_words = (E * N * K) as usize * bits / 32;
        // Without the bits of the mxfp8 code that is NaN: the lowest of each byte is 0.
        let words: Vec<u32> =
            (0..n_words as u32).map(|i| (i + seed).wrapping_mul(2_654_435_761) & 0xfefe_fefe).collect();
        let n_groups = (E * N * K) as usize / group;
        // Near 1 in either type of scale: 2^(e-127), or e4m3.
        let first = if mode == QuantMode::Nvfp4 { 0x30 } else { 120 };
        let scales: Vec<u8> = (0..n_groups).map(|i| first + (i % 8) as u8).collect();
        let words = Array::from_slice(&words, &[E, N, K * bits as i32 / 32]);
        let scales = Array::from_slice(&scales, &[E, N, K / group as i32]);
        QuantizedExperts::new(words, scales, None, spec).unwrap()
    });
    let weights = [&gate, &up].map(|w| MlxWeight::from_experts(w.clone()).unwrap());
    let rhs = indices(&[4, 0, 3, 3, 1, 2], &[2, 3]);
    let x = normal(&[2, K], 3, dtype);
    let experts = MlxIndices::from_array(rhs.clone(), E as usize).unwrap();
    let want = stock::gather_qmm_swiglu(&b, &x, GateUp::swiglu(&weights[0], &weights[1]), &experts).unwrap();
    let x = x.reshape(&[2, 1, 1, K]).unwrap();
    let got = gather_qmm_swiglu(&x, &gate, &up, &rhs, &GatherOptions::default()).unwrap();
    assert_same(&got, &want.expand_dims(2).unwrap(), "a row per pair");
    let three = ops::concatenate(&[&x, &x, &x], -2).unwrap();
    let got = gather_qmm_swiglu(&three, &gate, &up, &rhs, &GatherOptions::default()).unwrap();
    let want = want.expand_dims(2).unwrap();
    assert_same(&got, &ops::concatenate(&[&want, &want, &want], -2).unwrap(), "three rows per pair");
}

#[test]
fn sorted_and_signed_indices_mean_the_same() {
    let [gate, up] = pair(Dtype::Bfloat16, [4, 64]);
    let x = normal(&[40, 1, K], 3, Dtype::Bfloat16);
    let experts: Vec<u32> = (0..40).map(|i| i / 8).collect();
    let rhs = indices(&experts, &[40]);
    let [g, u] = [&gate, &up].map(|w| gather(&x, w, None, &rhs, true));
    let want = silu_mul(g, u);
    let options = GatherOptions { sorted_indices: true, ..Default::default() };
    assert_same(&gather_qmm_swiglu(&x, &gate, &up, &rhs, &options).unwrap(), &want, "sorted");
    for dtype in [Dtype::Uint8, Dtype::Int16, Dtype::Int32, Dtype::Int64] {
        let rhs = rhs.as_dtype(dtype).unwrap();
        let got = gather_qmm_swiglu(&x, &gate, &up, &rhs, &options).unwrap();
        assert_same(&got, &want, &format!("{dtype:?}"));
    }
}

#[test]
fn combine_has_the_bits_of_mlx_lm() {
    for (weights_dtype, tokens) in [(Dtype::Bfloat16, 2), (Dtype::Float32, 2), (Dtype::Bfloat16, 20)] {
        let down = bank(&[E, N, K], 1, Dtype::Bfloat16, [4, 64]);
        let x = normal(&[tokens, 4, K], 3, Dtype::Bfloat16);
        let weights = normal(&[tokens, 4], 4, weights_dtype);
        let rhs = indices(&(0..tokens as u32 * 4).map(|i| i * 7 % 5).collect::<Vec<_>>(), &[tokens, 4]);
        let y = gather(&x.expand_dims(2).unwrap(), &down, None, &rhs, false).squeeze_axes(&[-2]).unwrap();
        let y = y.multiply(weights.expand_dims(-1).unwrap()).unwrap().sum_axis(-2, false).unwrap();
        let want = y.as_dtype(Dtype::Bfloat16).unwrap();
        let got = gather_qmm_combine(&x, &down, &rhs, &weights, Numerics::Exact).unwrap();
        assert_same(&got, &want, &format!("weights of {weights_dtype:?}, {tokens} tokens"));
        // More leading dimensions.
        let more = |a: &Array| a.reshape(&[&[2, tokens / 2], &a.shape()[1..]].concat()).unwrap();
        let got =
            gather_qmm_combine(&more(&x), &down, &more(&rhs), &more(&weights), Numerics::Exact).unwrap();
        assert_same(&got, &more(&want), "a batch of sequences");
    }
}

#[test]
fn dense_swiglu_has_the_bits_of_two_products() {
    let [gate, up] = [1, 2].map(|seed| bank(&[N, K], seed, Dtype::Float16, [8, 32]));
    for shape in [vec![K], vec![3, K], vec![2, 3, K]] {
        let x = normal(&shape, 3, Dtype::Float16);
        let [g, u] = [&gate, &up].map(|w| {
            let first = |a: &Array| a.squeeze_axes(&[0]).unwrap();
            let (scales, biases) = (first(w.scales()), first(w.biases().unwrap()));
            ops::quantized_matmul(&x, first(w.weight()), &scales, Some(&biases), true, 32, 8).unwrap()
        });
        let got = qmm_swiglu(&x, &gate, &up, Numerics::Exact).unwrap();
        assert_same(&got, &silu_mul(g, u), &format!("{shape:?}"));
    }
}

/// What is f32 throughout differs from its operands taken as f32 by nothing but the last rounding, so by no bit.
#[test]
fn accurate_is_f32_and_one_rounding() {
    let to_f32 = |a: &Array| a.as_dtype(Dtype::Float32).unwrap();
    let wide = |w: &QuantizedExperts| {
        let biases = w.biases().map(to_f32);
        QuantizedExperts::new(w.weight().clone(), to_f32(w.scales()), biases, w.spec()).unwrap()
    };
    let [gate, up] = pair(Dtype::Bfloat16, [4, 64]);
    let x = normal(&[2, 1, 3, K], 3, Dtype::Bfloat16);
    let rhs = indices(&[4, 0, 3, 3], &[2, 2]);
    let options = GatherOptions { numerics: Numerics::Accurate, ..Default::default() };
    let got = gather_qmm_swiglu(&x, &gate, &up, &rhs, &options).unwrap();
    let [g, u] = [&gate, &up].map(|w| gather(&to_f32(&x), &wide(w), None, &rhs, false));
    assert_same(&got, &silu_mul(g, u).as_dtype(Dtype::Bfloat16).unwrap(), "gather");
    let exact = gather_qmm_swiglu(&x, &gate, &up, &rhs, &GatherOptions::default()).unwrap();
    assert!(!got.eq_exact(&exact).unwrap(), "the modes round differently");

    let logits = normal(&[2, 3, 16], 5, Dtype::Bfloat16);
    let settings = SoftmaxTopK { top_k: 4, renormalize: Renormalize::Yes };
    let (experts, weights) = route_softmax_top_k(&logits, &settings, Numerics::Accurate).unwrap();
    let (e, w) = route_softmax_top_k(&to_f32(&logits), &settings, Numerics::Accurate).unwrap();
    assert_same(&experts, &e, "experts");
    assert_same(&weights, &w, "weights");
}

#[test]
fn routers_have_the_bits_of_mlx_lm() {
    let logits = normal(&[2, 3, 16], 5, Dtype::Bfloat16);
    let settings = SoftmaxTopK { top_k: 4, renormalize: Renormalize::Yes };
    let (experts, weights) = route_softmax_top_k(&logits, &settings, Numerics::Exact).unwrap();
    let p = ops::softmax_axis(&logits, -1, true).unwrap();
    let order = ops::argpartition_axis(&p, -4, -1).unwrap();
    let last: Vec<Array> = ops::split_equal(&order, 4, -1).unwrap();
    assert_same(&experts, &last[3], "experts");
    let w = p.take_along_axis(&last[3], -1).unwrap();
    assert_same(&weights, &w.divide(w.sum_axis(-1, true).unwrap()).unwrap(), "weights");

    let bias = normal(&[16], 6, Dtype::Float32);
    let settings = NoauxTc {
        top_k: 4,
        n_group: 1,
        topk_group: 1,
        renormalize: Renormalize::No,
        eps: 1e-20,
        routed_scaling_factor: 2.5,
    };
    let (experts, weights) = route_noaux_tc(&logits, &bias, &settings, Numerics::Exact).unwrap();
    let scores = ops::sigmoid(logits.as_dtype(Dtype::Float32).unwrap()).unwrap();
    let order = scores.add(&bias).unwrap().negative().unwrap();
    let first = ops::split_equal(ops::argpartition_axis(order, 3, -1).unwrap(), 4, -1).unwrap();
    assert_same(&experts, &first[0], "experts");
    let w = scores.take_along_axis(&first[0], -1).unwrap();
    assert_same(&weights, &w.multiply(Array::from_f32(2.5)).unwrap(), "weights");
}

/// The field that an error names.
fn field<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    match result.unwrap_err() {
        Error::Precondition { what, .. } => what,
        other => panic!("{other}"),
    }
}

#[test]
fn refused_arguments_are_named() {
    let f16 = Dtype::Float16;
    let [gate, up] = pair(f16, [4, 64]);
    let x = normal(&[2, 1, K], 3, f16);
    let rhs = indices(&[0, 1], &[2]);
    let empty = |shape: &[i32], dtype| ops::zeros_dtype(shape, dtype).unwrap();
    let call = |x: &Array, up: &QuantizedExperts, lhs: Option<&Array>, rhs: &Array| {
        field(gather_qmm_swiglu(x, &gate, up, rhs, &GatherOptions { lhs_indices: lhs, ..Default::default() }))
    };
    assert_eq!(call(&normal(&[2, 1, K - 1], 3, f16), &up, None, &rhs), "x");
    assert_eq!(call(&normal(&[K], 3, f16), &up, None, &rhs), "x");
    assert_eq!(call(&x.as_dtype(Dtype::Int32).unwrap(), &up, None, &rhs), "x");
    assert_eq!(call(&empty(&[0, 1, K], f16), &up, None, &rhs), "x");
    assert_eq!(call(&x, &bank(&[E, N + 8, K], 1, f16, [4, 64]), None, &rhs), "up");
    assert_eq!(call(&x, &bank(&[E, N, K], 1, f16, [4, 32]), None, &rhs), "up");
    assert_eq!(call(&x, &up, None, &indices(&[0, 1, 2], &[3])), "rhs_indices");
    assert_eq!(call(&x, &up, None, &normal(&[2], 3, Dtype::Float32)), "rhs_indices");
    assert_eq!(call(&x, &up, None, &empty(&[0], Dtype::Uint32)), "rhs_indices");
    assert_eq!(call(&x, &up, Some(&indices(&[0, 1, 0], &[3])), &rhs), "rhs_indices");
    assert_eq!(call(&x, &up, Some(&normal(&[2], 3, Dtype::Float32)), &rhs), "lhs_indices");

    let exact = Numerics::Exact;
    let x = normal(&[2, 3, K], 3, f16);
    let (rhs, weights) = (indices(&[0; 6], &[2, 3]), normal(&[2, 3], 4, f16));
    assert_eq!(field(gather_qmm_combine(&normal(&[2, 3, 64], 3, f16), &up, &rhs, &weights, exact)), "x");
    assert_eq!(field(gather_qmm_combine(&x, &up, &indices(&[0; 3], &[3]), &weights, exact)), "rhs_indices");
    assert_eq!(field(gather_qmm_combine(&x, &up, &rhs, &normal(&[3], 4, f16), exact)), "weights");
    assert_eq!(field(gather_qmm_combine(&x, &up, &rhs, &rhs, exact)), "weights");

    let one = bank(&[N, K], 1, f16, [4, 64]);
    assert_eq!(field(qmm_swiglu(&x, &gate, &up, exact)), "gate");
    assert_eq!(field(qmm_swiglu(&x, &one, &up, exact)), "up");
    assert_eq!(field(qmm_swiglu(&normal(&[64], 3, f16), &one, &one, exact)), "x");
    assert_eq!(field(qmm_swiglu(&Array::from_f32(1.0), &one, &one, exact)), "x");

    let softmax = |logits: &Array, top_k| {
        field(route_softmax_top_k(logits, &SoftmaxTopK { top_k, renormalize: Renormalize::No }, exact))
    };
    let logits = normal(&[2, 16], 5, f16);
    assert_eq!(softmax(&logits, 17), "top_k");
    assert_eq!(softmax(&logits, 0), "top_k");
    assert_eq!(softmax(&Array::from_f32(1.0), 1), "logits");
    assert_eq!(softmax(&empty(&[0, 16], f16), 1), "logits");
    let noaux = |bias: &Array, n_group| {
        let (renormalize, eps, routed_scaling_factor) = (Renormalize::Yes, 1e-20, 1.0);
        let settings = NoauxTc { top_k: 4, n_group, topk_group: 1, renormalize, eps, routed_scaling_factor };
        field(route_noaux_tc(&logits, bias, &settings, exact))
    };
    assert_eq!(noaux(&normal(&[15], 6, f16), 1), "bias");
    assert_eq!(noaux(&indices(&[0; 16], &[16]), 1), "bias");
    assert_eq!(noaux(&normal(&[16], 6, f16), 5), "n_group");
}

/// Where there is Metal, each kernel in exact mode has the bits of its composition; where there is none, the check says so.
#[test]
fn self_checks_report_what_was_launched() {
    let bf16 = Dtype::Bfloat16;
    let [gate, up] = pair(bf16, [4, 64]);
    let one = bank(&[N, 256], 1, bf16, [4, 64]);
    let x = normal(&[2, 1, 1, K], 3, bf16);
    let slots = normal(&[2, 3, K], 3, bf16);
    let (rhs, weights) = (indices(&[0, 1, 2, 3, 4, 0], &[2, 3]), normal(&[2, 3], 4, bf16));
    let logits = normal(&[2, 16], 5, bf16);
    let softmax = SoftmaxTopK { top_k: 4, renormalize: Renormalize::Yes };
    let noaux = NoauxTc {
        top_k: 4,
        n_group: 1,
        topk_group: 1,
        renormalize: Renormalize::Yes,
        eps: 1e-20,
        routed_scaling_factor: 2.5,
    };
    let exact = Numerics::Exact;
    let (n, options) = (N, GatherOptions::default());
    let checks = [
        (self_check::gather_qmm_swiglu(&x, &gate, &up, &rhs, &options), vec![2, 3, 1, n]),
        (self_check::gather_qmm_combine(&slots, &gate, &rhs, &weights, exact), vec![2, n]),
        (self_check::qmm_swiglu(&normal(&[1, 256], 3, bf16), &one, &one, exact), vec![1, n]),
        (self_check::route_softmax_top_k(&logits, &softmax, exact), vec![2, 4]),
        (self_check::route_noaux_tc(&logits, &normal(&[16], 6, bf16), &noaux, exact), vec![2, 4]),
    ];
    let has_metal = Runtime::start().unwrap().gpu() == Some(Gpu::Metal);
    for (check, shape) in checks {
        let check = check.unwrap();
        assert!(check.kernel.starts_with("zmlx_"), "{check:?}");
        assert_eq!(check.shape, shape, "{check:?}");
        match check.outcome {
            Outcome::NotAvailable { .. } => assert!(!has_metal, "{check:?}"),
            ref outcome => assert_eq!(*outcome, Outcome::Compared { max_difference: 0.0 }, "{check:?}"),
        }
    }
}
