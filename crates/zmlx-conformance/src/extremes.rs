//! Extreme values (large, zero, underflowing and overflowing), and batches without tokens.

use zmlx_core::{
    Activation, AttentionInputs, AttentionSettings, Backend, Down, GateUp, NoauxTc, Renormalize, SoftmaxTopK,
    WeightFormat,
};
use zmlx_oracle::ops;
use zmlx_oracle::testing::random_f32;

use crate::bounds::{self, check_bits};
use crate::cases;
use crate::inputs::{Place, Raw, TestWeight};
use crate::suite::{Host, Instance, span};

/// Activations up to 1e4 as outliers among small ones. The bounds grow only with the norms.
pub fn large_activations<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let w = TestWeight::random(format, [1, 5, 256], f as u64);
        let mut x = random_f32(9 * 256, 1.0, 1);
        x.iter_mut().step_by(37).for_each(|v| *v *= 3000.0);
        (x[3], x[300]) = (1e4, -1e4);
        let want = bounds::linear(&x, &w);
        for i @ Instance { name, backend: b, .. } in instances {
            for n in [1, 9] {
                let y = b.linear(&b.put(&x[..n * 256], &[n, 256]), &b.load(&w)).unwrap();
                want.first(n * 5).on(i).check(&b.get(&y), format_args!("{name}: {}", cases::name(format)));
            }
        }
    }
}

/// A row of zeros gives zeros, whatever the other rows contain.
pub fn zero_rows<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let w = TestWeight::random(format, [1, 5, 128], f as u64);
        let vector = random_f32(128, 1.0, 2);
        for n in [1, 3, 9] {
            let mut x = random_f32(n * 128, 1.0, 1);
            x[..128].fill(0.0);
            for Instance { name, backend: b, .. } in instances {
                let x = b.put(&x, &[n, 128]);
                let y = b.get(&b.linear(&x, &b.load(&w)).unwrap());
                assert!(y[..5].iter().all(|v| *v == 0.0), "{name}: {}", cases::name(format));
                assert!(y[5..].iter().all(|v| v.is_finite() && *v != 0.0), "{name}");
                let normed = b.get(&b.rms_norm(&x, &b.load_vector(&vector), 1e-6).unwrap());
                assert!(normed[..128].iter().all(|v| *v == 0.0), "{name}: norm");
            }
        }
    }
}

/// Groups with scale 0: their weights are equal to their biases, or 0.
pub fn zero_scales<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::quantised().into_iter().enumerate() {
        let WeightFormat::Quantized { spec, scale_dtype } = format else { unreachable!("quantised formats") };
        if spec.mode() != zmlx_core::QuantMode::Affine && spec.mode() != zmlx_core::QuantMode::Nvfp4 {
            continue; // the smallest e8m0 scale is 2^-127
        }
        let group = spec.group_size();
        let mut raw = Raw::random(format, [1, 6, 3 * group], f as u64);
        // Every other group, in turn the first, second and third of a row.
        for g in (0..18).step_by(2) {
            let size = scale_dtype.size_bytes();
            raw.scales[g * size..(g + 1) * size].fill(0);
            let bias = match spec.has_biases() {
                true => f64::from(scale_dtype.read_f32(&raw.biases[g * size..])),
                false => 0.0,
            };
            raw.values[g * group..(g + 1) * group].fill(bias);
        }
        let w = raw.at(Place::Odd);
        let x = random_f32(9 * w.n_in, 1.0, 1);
        let want = bounds::linear(&x, &w);
        for i @ Instance { name, backend: b, .. } in instances {
            for n in [1, 9] {
                let y = b.linear(&b.put(&x[..n * w.n_in], &[n, w.n_in]), &b.load(&w)).unwrap();
                want.first(n * 6).on(i).check(&b.get(&y), format_args!("{name}: {}", cases::name(format)));
            }
        }
    }
}

/// Gates from -1e4 to 1e4: silu approaches 0 and its argument, and never gives NaN or infinity.
pub fn silu_under_and_overflow<B: Backend>(instances: &[Instance<B>]) {
    let gates =
        [-1e4, -1000.0, -104.0, -100.0, -89.0, -88.0, -87.0, -50.0, 0.0, -0.0, 1e-30, 50.0, 89.0, 1e4];
    let ups = [1.0; 14];
    let exact = |v: &[f32]| bounds::Bounded::uniform(v.iter().map(|v| f64::from(*v)).collect(), 0.0);
    let want = bounds::swiglu(&exact(&gates), &exact(&ups));
    for Instance { name, backend: b, exponential_error, .. } in instances {
        let y = b.gated(&b.put(&gates, &[1, 14]), &b.put(&ups, &[1, 14]), Activation::SwiGlu).unwrap();
        want.times(*exponential_error).check(&b.get(&y), name);
        let y = b.get(&b.sigmoid(&b.put(&gates, &[1, 14])).unwrap());
        assert!(y.iter().all(|v| (0.0..=1.0).contains(v)), "{name}: {y:?}");
        // The same in a fused op: a gate with one weight, ±1e4 after the product.
        let one = b.upload(zmlx_core::HostWeight::from_f32(&[100.0; 3], 3, 1).unwrap()).unwrap();
        for (x, want) in [(-100.0f32, 0.0f32), (100.0, 1e8)] {
            let y = b.qmm_swiglu(&b.put(&[x], &[1, 1]), GateUp::swiglu(&one, &one)).unwrap();
            assert!(b.get(&y).iter().all(|v| *v == want), "{name}: {x}");
        }
    }
}

/// Scores of ±1e6: one position takes all the weight, and equal scores share it.
pub fn attention_of_large_scores<B: Backend>(instances: &[Instance<B>]) {
    let kind = zmlx_core::CacheKind::Full { n_kv_heads: 1, head_dim: 2 };
    for Instance { name, backend: b, .. } in instances {
        let mut cache = b.native(kind);
        let q = b.put(&[1000.0, 0.0, 1000.0, 0.0, 1000.0, 0.0], &[3, 1, 2]);
        let k = b.put(&[-1000.0, 5.0, 1000.0, 1.0, 1000.0, -7.0], &[3, 1, 2]);
        let v = b.put(&[1.0, 2.0, 3.0, 4.0, 7.0, 8.0], &[3, 1, 2]);
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, sinks: None };
        let settings = AttentionSettings { scale: 1.0, window: None };
        let y = b.attention(inputs, &mut cache, &b.spans(&[span(0, 0, 3)]), &settings).unwrap();
        let want = bounds::Bounded::relative(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.0, 1e-4); // values of 16 bits
        want.check(&b.get(&y), name);
    }
}

/// Logits that saturate: probabilities of 0 and 1, no NaN, and weights with the right sum.
pub fn router_of_large_logits<B: Backend>(instances: &[Instance<B>]) {
    for Instance { name, backend: b, .. } in instances {
        let logits = b.put(&[1e4, -1e4, 9999.0, 0.0], &[1, 4]);
        let settings = SoftmaxTopK { top_k: 2, renormalize: Renormalize::Yes };
        let (experts, weights) = b.route_softmax_top_k(&logits, &settings).unwrap();
        assert_eq!(b.get_indices(&experts), [0, 2], "{name}");
        let want = ops::softmax(&[1.0f32, 0.0]);
        bounds::Bounded::relative(want, 0.0, 1e-6).check(&b.get(&weights), name); // a few roundings
        // Three scores of 0: their sum is only the term that prevents a division by 0.
        let none = b.put(&[-1e4; 4], &[1, 4]);
        let settings = NoauxTc {
            top_k: 3,
            n_group: 1,
            topk_group: 1,
            renormalize: Renormalize::Yes,
            eps: 1e-20,
            routed_scaling_factor: 2.5,
        };
        let (experts, weights) = b.route_noaux_tc(&none, &b.load_vector(&[0.0; 4]), &settings).unwrap();
        assert_eq!(b.get_indices(&experts), [0, 1, 2], "{name}");
        check_bits(&b.get(&weights), &[0.0; 3], name);
    }
}

/// No tokens give no values and no error, because a scheduler may have nothing to do.
pub fn no_tokens<B: Backend>(instances: &[Instance<B>]) {
    let w = TestWeight::random(cases::quantised()[4], [2, 5, 64], 1);
    let one = TestWeight::random(cases::quantised()[4], [1, 5, 64], 1);
    for Instance { name, backend: b, .. } in instances {
        let (w, one) = (b.load(&w), b.load(&one));
        let (x, experts) = (b.put(&[], &[0, 64]), b.put_indices(&[], &[0, 2]));
        let slots = b.put(&[], &[0, 2, 64]);
        assert_eq!(b.shape(&b.linear(&x, &one).unwrap()), [0, 5], "{name}");
        assert_eq!(b.shape(&b.gather_linear(&x, &w, &experts).unwrap()), [0, 2, 5], "{name}");
        assert_eq!(b.shape(&b.head_linear(&slots, &w).unwrap()), [0, 2, 5], "{name}");
        let weights = b.put(&[], &[0, 2]);
        let y = b.gather_qmm_combine(&slots, Down::plain(&w), &experts, &weights).unwrap();
        assert_eq!(b.shape(&y), [0, 5], "{name}");
        let y = b.gather_qmm_swiglu(&x, GateUp::swiglu(&w, &w), &experts).unwrap();
        assert_eq!(b.shape(&y), [0, 2, 5], "{name}");
        let y = b.embed(&one, &b.put_indices(&[], &[0])).unwrap();
        assert_eq!(b.shape(&y), [0, 64], "{name}");
        assert_eq!(b.shape(&b.softmax(&x).unwrap()), [0, 64], "{name}");
        let (sum, _) = b.add_rms_norm(&x, &x, &b.load_vector(&[1.0; 64]), 1e-6).unwrap();
        assert_eq!(b.shape(&sum), [0, 64], "{name}");
    }
}
