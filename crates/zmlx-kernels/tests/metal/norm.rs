//! `add_rms_norm` and `norm_rope`.

use zmlx_kernels::metal::{self, KernelSpec};
use zmlx_kernels::{DType, Rope, RopeFrequencies, RopePairing};

use crate::inputs::{Buffer, activations, half_ulp, round};
use crate::{sim, stock};

const EPS: f32 = 1e-6;
/// Less than a thread's four, a rest of a simdgroup, the width of a head, the real models', the widest.
const WIDTHS: [usize; 7] = [1, 3, 130, 128, 2047, 2048, 4096];

fn inputs(dtype: DType, n_rows: usize, width: usize) -> [Buffer; 3] {
    let of = |seed| activations(dtype, &[n_rows, width], seed);
    [of(1), of(2), activations(dtype, &[width], 3)]
}

#[test]
fn add_rms_norm_equals_the_stock_ops() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for width in WIDTHS {
            let n_rows = if width < 200 { 3 } else { 1 };
            let [x, residual, w] = inputs(dtype, n_rows, width);
            let spec = metal::add_rms_norm(dtype, [n_rows, width], EPS).unwrap();
            let out = sim::run_all_ways(&spec, &[&x, &residual, &w]);
            let (total, normed, w) = (out[0].floats(), out[1].floats(), w.floats());
            let rows = x.floats().into_iter().zip(residual.floats());
            let want: Vec<f32> = rows.map(|(x, r)| round(dtype, x + r)).collect();
            assert!(total == want, "{dtype:?}, {width} wide: the sums");
            for (row, (got, total)) in normed.chunks(width).zip(want.chunks(width)).enumerate() {
                let want = stock::rms_norm(dtype, total, &w, EPS);
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(bits(got) == bits(&want), "{dtype:?}, {width} wide, row {row}");
            }
        }
    }
}

/// Against the formula in f64: half an ulp of f32 for each of the chain's steps (a thread's four, twice the lanes' five, root and
/// quotient), and two roundings to the type besides that of the sum, which is an input here.
#[test]
fn add_rms_norm_is_near_the_formula() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::BF16, DType::F32] {
        let width = 2048;
        let [x, residual, w] = inputs(dtype, 1, width);
        let spec = metal::add_rms_norm(dtype, [1, width], EPS).unwrap();
        let out = sim::run(&spec, &[&x, &residual, &w]);
        let total: Vec<f64> = out[0].floats().iter().map(|v| f64::from(*v)).collect();
        let mean = total.iter().map(|v| v * v).sum::<f64>() / width as f64;
        let scale = (mean + f64::from(EPS)).sqrt().recip();
        let allowed = 2.1 * half_ulp(dtype) + 20.0 * 2f64.powi(-24);
        for ((got, total), w) in out[1].floats().iter().zip(&total).zip(w.floats()) {
            let want = total * scale * f64::from(w);
            assert!((f64::from(*got) - want).abs() <= allowed * want.abs(), "{dtype:?}: {got} for {want}");
        }
    }
}

#[test]
fn rows_that_stock_mlx_sums_otherwise_are_not_fused() {
    for (n_rows, width) in [(1, 4097), (1, 0), (0, 64)] {
        assert!(metal::add_rms_norm(DType::BF16, [n_rows, width], EPS).is_err(), "{n_rows} × {width}");
    }
    assert!(metal::add_rms_norm(DType::U32, [1, 64], EPS).is_err());
}

/// Heads of two tokens far apart, with their rope: a rest of a thread's four, a part that does not turn, the real models' width, more
/// than a simdgroup, frequencies that are no powers.
pub(crate) fn ropes(dtype: DType) -> Vec<(Rope, KernelSpec, Vec<Buffer>)> {
    let given = RopeFrequencies::Given([1.0, 0.25, 0.3].into());
    let mut all = Vec::new();
    for pairing in [RopePairing::HalfSplit, RopePairing::Interleaved] {
        for (d, [n_heads, n_kv_heads], rope) in [
            (6, [3, 1], Rope { dims: 6, frequencies: given.clone(), scale: 1.0, pairing }),
            (37, [2, 2], Rope::plain(10, 1e4, pairing)),
            (128, [4, 1], Rope::plain(128, 1e6, pairing)),
            (256, [2, 1], Rope::plain(64, 1e7, pairing)),
        ] {
            let spec = metal::norm_rope(dtype, [2, n_heads, n_kv_heads, d], EPS, &rope).unwrap();
            let periods: Vec<f32> = match &rope.frequencies {
                RopeFrequencies::Given(given) => given.iter().map(|f| f.recip() as f32).collect(),
                RopeFrequencies::Powers { .. } => vec![1.0],
            };
            let inputs = vec![
                activations(dtype, &[2, n_heads, d], 1),
                activations(dtype, &[2, n_kv_heads, d], 2),
                activations(dtype, &[d], 3),
                activations(dtype, &[d], 4),
                Buffer::of_u32(&[7, 4001], &[2]),
                Buffer::of_floats(DType::F32, &periods, &[periods.len()]),
            ];
            all.push((rope, spec, inputs));
        }
    }
    all
}

#[test]
fn norm_rope_equals_the_stock_ops() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (rope, spec, inputs) in ropes(dtype) {
            let out = sim::run_all_ways(&spec, &inputs.iter().collect::<Vec<_>>());
            for (i, got) in out.iter().enumerate() {
                let (x, w) = (inputs[i].floats(), inputs[2 + i].floats());
                let n_heads = inputs[i].shape[1];
                let got = got.floats();
                for (h, (got, head)) in got.chunks(w.len()).zip(x.chunks(w.len())).enumerate() {
                    let position = inputs[4].words()[h / n_heads];
                    let normed = stock::rms_norm(dtype, head, &w, EPS);
                    let want = stock::rope(dtype, &normed, &rope, position);
                    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert!(bits(got) == bits(&want), "{dtype:?}, {rope:?}, head {h} of output {i}");
                }
            }
        }
    }
}

#[test]
fn ropes_that_the_kernel_does_not_know_are_not_fused() {
    let plain = Rope::plain(64, 1e6, RopePairing::HalfSplit);
    let spec = |d, rope: &Rope| metal::norm_rope(DType::BF16, [1, 4, 1, d], EPS, rope);
    assert!(spec(64, &plain).is_ok());
    assert!(spec(32, &plain).is_err(), "more dimensions than there are");
    assert!(spec(2048, &plain).is_err(), "a head that no threadgroup holds");
    assert!(spec(64, &Rope { scale: 1.5, ..plain }).is_err(), "a scale");
}
