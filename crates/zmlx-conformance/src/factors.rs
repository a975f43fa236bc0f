//! Weights with a factor for each matrix, which is nvfp4's second scale. Every product must apply it on every path.

use zmlx_core::{Backend, Down, GateUp, HostWeight, QuantMode, QuantSpec, WeightFormat};
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::inputs::TestWeight;
use crate::suite::{Host, Instance};

const N_EXPERTS: usize = 5;
const N_IN: usize = 48;

/// A bank, and the same bank dequantised with its factors, as a dense bank without factors.
fn bank<B: Backend>(b: &B, [n_mats, n_out, n_in]: [usize; 3], seed: u64) -> [B::Weight; 2] {
    let spec = QuantSpec::new(QuantMode::Nvfp4, 4, 16).unwrap();
    let format = WeightFormat::Quantized { spec, scale_dtype: zmlx_core::DType::U8 };
    let w = TestWeight::random(format, [n_mats, n_out, n_in], seed).host;
    let factors = (0..n_mats).map(|i| [0.5, 3.0, 0.01, 20.0, 1.0][(i + seed as usize) % 5]).collect();
    let w = w.with_factors(factors).unwrap();
    let dense = w.to_f32_vec();
    let mats = dense.chunks(n_out * n_in).map(|m| HostWeight::from_f32(m, n_out, n_in).unwrap());
    let dense = HostWeight::stack(mats.collect()).unwrap();
    [b.upload(w).unwrap(), b.upload(dense).unwrap()]
}

/// Equal up to the rounding of weights to bf16 and of activations to 8 bits. This leaves 5e-3 of a product, and a few
/// times that of a product's product. If a factor is forgotten, results are off by half or more.
fn check(got: &[f32], want: &[f32], what: &str) {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let error = square(&mut got.iter().zip(want).map(|(g, w)| g - w)).sqrt();
    let size = square(&mut want.iter().copied()).sqrt();
    assert!(got.len() == want.len() && error <= 5e-2 * size, "{what}: {error} of {size}");
}

/// `linear`, the gathers, heads, the embedding and fused products, for few and for many tokens.
pub fn products<B: Backend>(instances: &[Instance<B>]) {
    for Instance { name, backend: b, .. } in instances {
        for n in [1, 3, 40] {
            let x = b.put(&random_f32(n * N_IN, 1.0, 7), &[n, N_IN]);
            let what = |op: &str| format!("{name}: {op}, {n} tokens");
            let [one, dense] = bank(b, [1, 13, N_IN], 1);
            let both = [&one, &dense].map(|w| b.get(&b.linear(&x, w).unwrap()));
            check(&both[0], &both[1], &what("linear"));
            let joined = [b.concat_rows(&[&one, &dense]).unwrap(), b.concat_rows(&[&dense, &dense]).unwrap()];
            let both = joined.map(|w| b.get(&b.linear(&x, &w).unwrap()));
            check(&both[0], &both[1], &what("linear of a concatenation"));
            let ids = b.put_indices(&vec![5; n], &[n]);
            let both = [&one, &dense].map(|w| b.get(&b.embed(w, &ids).unwrap()));
            check(&both[0], &both[1], &what("embed"));

            let experts = b.put_indices(&random_experts(n, 2, N_EXPERTS, 3), &[n, 2]);
            let (gate, up) = (bank(b, [N_EXPERTS, 16, N_IN], 1), bank(b, [N_EXPERTS, 16, N_IN], 2));
            let down = bank(b, [N_EXPERTS, 20, 16], 3);
            let both = [0, 1].map(|i| b.get(&b.gather_linear(&x, &gate[i], &experts).unwrap()));
            check(&both[0], &both[1], &what("gather_linear"));
            let inner =
                [0, 1].map(|i| b.gather_qmm_swiglu(&x, GateUp::swiglu(&gate[i], &up[i]), &experts).unwrap());
            check(&b.get(&inner[0]), &b.get(&inner[1]), &what("gather_qmm_swiglu"));
            let weights = b.put(&random_f32(n * 2, 1.0, 9), &[n, 2]);
            let both = [0, 1].map(|i| {
                b.get(&b.gather_qmm_combine(&inner[1], Down::plain(&down[i]), &experts, &weights).unwrap())
            });
            check(&both[0], &both[1], &what("gather_qmm_combine"));
            let heads = b.put(&random_f32(n * N_EXPERTS * N_IN, 1.0, 8), &[n, N_EXPERTS, N_IN]);
            let both = [0, 1].map(|i| b.get(&b.head_linear(&heads, &gate[i]).unwrap()));
            check(&both[0], &both[1], &what("head_linear"));
        }
    }
}
