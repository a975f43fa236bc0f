//! Elementwise ops, sums over rows, and ops that only move values.

use zmlx_core::{Activation, Backend, Logits, Span};
use zmlx_oracle::ops::{self, Combine};
use zmlx_oracle::testing::random_f32;

use crate::bounds::{self, Bounded, U, check_bits};
use crate::suite::{Host, Instance, span};

/// Around the sizes of vectors with eight and sixteen lanes.
const WIDTHS: [usize; 10] = [1, 2, 7, 8, 9, 15, 16, 17, 64, 257];

/// Rows of probabilities. Exponentials to 2 units in the last place (4 roundings), the sum's and the quotient's
/// roundings, and the rounding of `x - max`, which is up to 20.
pub fn softmax<B: Backend>(instances: &[Instance<B>]) {
    for width in WIDTHS {
        for std_dev in [1.0, 5.0] {
            let x = random_f32(3 * width, std_dev, width as u64);
            let want: Vec<f64> = x.chunks_exact(width).flat_map(ops::softmax).collect();
            let want = Bounded::relative(want, 1e-37, (16.0 + 8.0 * std_dev) * U);
            for Instance { name, backend: b, .. } in instances {
                let y = b.softmax(&b.put(&x, &[3, width])).unwrap();
                assert_eq!(b.shape(&y), [3, width]);
                want.check(&b.get(&y), format_args!("{name}: {width} wide"));
            }
        }
    }
}

/// Exponential, sum and quotient; values of up to about 20.
pub fn sigmoid<B: Backend>(instances: &[Instance<B>]) {
    for width in WIDTHS {
        let x = random_f32(2 * width, 6.0, width as u64);
        let want = x.iter().map(|v| ops::sigmoid(f64::from(*v))).collect();
        let want = Bounded::relative(want, 0.0, 8.0 * U); // exponential, sum and quotient
        for Instance { name, backend: b, exponential_error, .. } in instances {
            let y = b.sigmoid(&b.put(&x, &[2, width])).unwrap();
            assert_eq!(b.shape(&y), [2, width]);
            want.times(*exponential_error).check(&b.get(&y), format_args!("{name}: {width} wide"));
        }
    }
}

/// Values that are exact, without a tolerance.
fn exact(v: &[f32]) -> Bounded {
    Bounded::uniform(v.iter().map(|v| f64::from(*v)).collect(), 0.0)
}

/// `silu(gate) · up` of exact inputs.
pub fn swiglu<B: Backend>(instances: &[Instance<B>]) {
    for width in WIDTHS {
        let (gate, up) = (random_f32(3 * width, 4.0, 1), random_f32(3 * width, 2.0, 2));
        let want = bounds::swiglu(&exact(&gate), &exact(&up));
        for Instance { name, backend: b, .. } in instances {
            let y =
                b.gated(&b.put(&gate, &[3, width]), &b.put(&up, &[3, width]), Activation::SwiGlu).unwrap();
            assert_eq!(b.shape(&y), [3, width]);
            want.check(&b.get(&y), format_args!("{name}: {width} wide"));
        }
    }
}

/// `mul_sigmoid` with a gate for each value, and with one for each row. Roundings: exponential, sum, quotient, product.
pub fn gates<B: Backend>(instances: &[Instance<B>]) {
    for width in WIDTHS {
        let (x, gate) = (random_f32(3 * width, 2.0, 1), random_f32(3 * width, 4.0, 2));
        let (each, one) = (ops::mul_sigmoid(&x, &gate), ops::mul_sigmoid(&x, &gate[..3]));
        let bounded = |want: Vec<f64>| Bounded::relative(want, 0.0, 10.0 * U);
        let (each, one) = (bounded(each), bounded(one));
        for Instance { name, backend: b, exponential_error, .. } in instances {
            let what = format_args!("{name}: {width} wide");
            let shape = [1, 3, width];
            let tensor = b.put(&x, &shape);
            let y = b.mul_sigmoid(&tensor, &b.put(&gate, &shape)).unwrap();
            assert_eq!(b.shape(&y), shape);
            each.times(*exponential_error).check(&b.get(&y), what);
            let y = b.mul_sigmoid(&tensor, &b.put(&gate[..3], &[1, 3, 1])).unwrap();
            assert_eq!(b.shape(&y), shape);
            one.times(*exponential_error).check(&b.get(&y), what);
            assert!(b.mul_sigmoid(&tensor, &b.put(&gate, &[3, 1, width])).is_err(), "{what}");
            assert!(b.mul_sigmoid(&tensor, &b.put(&gate[..3], &[3, 1])).is_err(), "{what}");
            assert!(b.mul(&tensor, &b.put(&gate, &[3, 1, width])).is_err(), "{what}");
        }
    }
}

/// `add`, `mul`, `add_vector` and `scale` round once, so the results are exactly those of f32. `div_by_sum` has a sum
/// and a quotient.
pub fn arithmetic<B: Backend>(instances: &[Instance<B>]) {
    for width in WIDTHS {
        let (x, other) = (random_f32(3 * width, 1.0, 1), random_f32(3 * width, 1.0, 2));
        let sum: Vec<f32> = x.iter().zip(&other).map(|(a, b)| a + b).collect();
        let product: Vec<f32> = x.iter().zip(&other).map(|(a, b)| a * b).collect();
        let shifted: Vec<f32> = x.iter().enumerate().map(|(i, v)| v + other[i % width]).collect();
        let scaled: Vec<f32> = x.iter().map(|v| v * 1.7).collect();
        let positive: Vec<f32> = x.iter().map(|v| v.abs() + 0.1).collect();
        let quotient = positive.chunks_exact(width).flat_map(|row| {
            let sum = row.iter().map(|v| f64::from(*v)).sum::<f64>() + f64::from(0.25f32);
            row.iter().map(move |v| f64::from(*v) / sum)
        });
        // Sums of up to 257 positive numbers, in short chains.
        let quotient = Bounded::relative(quotient.collect(), 0.0, 16.0 * U);
        for Instance { name, backend: b, .. } in instances {
            let what = format_args!("{name}: {width} wide");
            let shape = [3, width];
            let x = b.put(&x, &shape);
            check_bits(&b.get(&b.add(&x, &b.put(&other, &shape)).unwrap()), &sum, what);
            check_bits(&b.get(&b.mul(&x, &b.put(&other, &shape)).unwrap()), &product, what);
            let vector = b.load_vector(&other[..width]);
            check_bits(&b.get(&b.add_vector(&x, &vector).unwrap()), &shifted, what);
            check_bits(&b.get(&b.scale(&x, 1.7).unwrap()), &scaled, what);
            quotient.check(&b.get(&b.div_by_sum(&b.put(&positive, &shape), 0.25).unwrap()), what);
        }
    }
}

/// Sums over the slots of a token.
pub fn weighted_sum<B: Backend>(instances: &[Instance<B>]) {
    for (n, top_k, width) in [(1, 1, 1), (1, 8, 64), (3, 2, 7), (5, 4, 33), (2, 3, 257)] {
        let (x, weights) = (random_f32(n * top_k * width, 1.0, 1), random_f32(n * top_k, 0.5, 2));
        let sizes = Combine { n_tokens: n, top_k, hidden: width };
        let want = bounds::combine(&exact(&x), &weights, top_k);
        assert_eq!(want.want, ops::combine(&x, &weights, sizes));
        for Instance { name, backend: b, .. } in instances {
            let y = b.weighted_sum(&b.put(&x, &[n, top_k, width]), &b.put(&weights, &[n, top_k])).unwrap();
            assert_eq!(b.shape(&y), [n, width]);
            want.check(&b.get(&y), format_args!("{name}: {n} × {top_k} × {width}"));
        }
    }
}

/// `tensor` and `read`, `reshape`, `slice_last`, `take_logit_rows`, `take_last`, and their index counterparts.
pub fn moves_are_exact<B: Backend>(instances: &[Instance<B>]) {
    for Instance { name, backend: b, .. } in instances {
        let x: Vec<f32> = (0..24).map(|i| i as f32 - 11.5).collect();
        let at = |indices: &[usize]| indices.iter().map(|i| x[*i]).collect::<Vec<_>>();
        let t = b.put(&x, &[2, 3, 4]);
        check_bits(&b.get(&t), &x, name);
        let flat = b.reshape(&t, &[4, 6]).unwrap();
        assert_eq!(b.shape(&flat), [4, 6]);
        check_bits(&b.get(&flat), &x, name);

        let part = b.slice_last(&t, 1..3).unwrap();
        assert_eq!(b.shape(&part), [2, 3, 2]);
        check_bits(&b.get(&part), &at(&[1, 2, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22]), name);
        check_bits(&b.get(&b.slice_last(&t, 0..4).unwrap()), &x, name);
        check_bits(&b.get(&b.slice_last(&t, 3..4).unwrap()), &at(&[3, 7, 11, 15, 19, 23]), name);

        let wanted = |n: usize, logits: Logits| Span { logits, ..span(n, 0, n) };
        // Rows 0 and 3 of four, then all rows, then none.
        let step = b.spans(&[wanted(1, Logits::All), wanted(3, Logits::Last)]);
        let rows = b.take_logit_rows(&flat, &step).unwrap();
        assert_eq!(b.shape(&rows), [2, 6]);
        check_bits(&b.get(&rows), &at(&[0, 1, 2, 3, 4, 5, 18, 19, 20, 21, 22, 23]), name);
        let rows = b.take_logit_rows(&flat, &b.spans(&[wanted(4, Logits::All)])).unwrap();
        check_bits(&b.get(&rows), &x, name);
        let rows = b.take_logit_rows(&t, &b.spans(&[wanted(2, Logits::Last)])).unwrap();
        assert_eq!(b.shape(&rows), [1, 3, 4]);
        check_bits(&b.get(&rows), &x[12..], name);
        let rows = b.take_logit_rows(&flat, &b.spans(&[wanted(4, Logits::None)])).unwrap();
        assert_eq!(b.shape(&rows), [0, 6]);

        let chosen = b.put_indices(&[5, 0, 1, 1, 2, 4, 3, 3], &[4, 2]);
        assert_eq!(b.get_indices(&chosen), [5, 0, 1, 1, 2, 4, 3, 3]);
        let taken = b.take_last(&flat, &chosen).unwrap();
        assert_eq!(b.shape(&taken), [4, 2]);
        check_bits(&b.get(&taken), &at(&[5, 0, 7, 7, 14, 16, 21, 21]), name);
    }
}

/// So many values that a team divides them, and a number that the team size does not divide. Every value must be
/// written.
pub fn large_tensors<B: Backend>(instances: &[Instance<B>]) {
    let (n, width) = (67, 1023);
    let (x, other) = (random_f32(n * width, 2.0, 1), random_f32(n * width, 2.0, 2));
    let sum: Vec<f32> = x.iter().zip(&other).map(|(a, b)| a + b).collect();
    let swiglu = bounds::swiglu(&exact(&x), &exact(&other));
    let probabilities: Vec<f64> = x.chunks_exact(width).flat_map(ops::softmax).collect();
    let probabilities = Bounded::relative(probabilities, 0.0, 40.0 * U); // as in `softmax`
    let weight = random_f32(width, 1.0, 3);
    let normed = Bounded::relative(ops::rms_norm(&sum, &weight, f64::from(1e-6f32)), 0.0, 16.0 * U);
    let weights = random_f32(n, 0.5, 4);
    let weighted = bounds::combine(&exact(&x), &weights, 1);
    for Instance { name, backend: b, .. } in instances {
        let (x, other) = (b.put(&x, &[n, width]), b.put(&other, &[n, width]));
        check_bits(&b.get(&b.add(&x, &other).unwrap()), &sum, name);
        swiglu.check(&b.get(&b.gated(&x, &other, Activation::SwiGlu).unwrap()), name);
        probabilities.check(&b.get(&b.softmax(&x).unwrap()), name);
        let (got_sum, got_normed) = b.add_rms_norm(&x, &other, &b.load_vector(&weight), 1e-6).unwrap();
        check_bits(&b.get(&got_sum), &sum, name);
        normed.check(&b.get(&got_normed), name);
        let (terms, weights) = (b.reshape(&x, &[n, 1, width]).unwrap(), b.put(&weights, &[n, 1]));
        weighted.check(&b.get(&b.weighted_sum(&terms, &weights).unwrap()), name);
    }
}
