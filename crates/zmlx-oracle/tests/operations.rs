//! The slice operations, compared with hand calculation, with other forms of the same formula, and with candle.

use candle_core::{D, DType, Device, Tensor};
use half::bf16;
use rstest::rstest;
use zmlx_oracle::compare::{max_abs, rel_rms};
use zmlx_oracle::ops::{
    Attention, Combine, GatherInput, GatherMatmul, MlaAttention, NoauxTc, Rope, RopeLayout, SoftmaxTopK, add,
    attention, combine, gather_matmul, matmul, mla_attention, noaux_tc, rms_norm, rope, rope_frequencies,
    silu, softmax, softmax_top_k, swiglu, top_k,
};
use zmlx_oracle::testing::{random_experts, random_f32};

/// Two `f64` computations in different orders: some thousand roundings of 1e-16.
const SAME_F64: f64 = 1e-12;

fn tensor(x: &[f32], shape: &[usize]) -> Tensor {
    let x = Tensor::from_vec(x.to_vec(), shape, &Device::Cpu).expect("a shape that fits");
    x.to_dtype(DType::F64).expect("a conversion")
}

fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().and_then(|x| x.to_vec1()).expect("f64 elements")
}

#[rstest]
fn matmul_equals_candle(
    #[values((1, 1, 1), (5, 7, 33), (1, 64, 129), (0, 3, 2))] (m, n, k): (usize, usize, usize),
) {
    let (x, w) = (random_f32(m * k, 1.0, 1), random_f32(n * k, 1.0, 2));
    let got = matmul(&x, &w, m, n, k);
    if m == 0 {
        assert!(got.is_empty());
        return;
    }
    let want = tensor(&x, &[m, k]).matmul(&tensor(&w, &[n, k]).t().expect("2 dims")).expect("a product");
    assert!(rel_rms(&got, &values(&want)) <= SAME_F64);
}

#[test]
fn inputs_of_any_float_type() {
    let (x, w) = ([1.5f32, -2.0], [bf16::from_f32(0.5), bf16::from_f32(4.0)]);
    assert_eq!(matmul(&x, &w, 1, 1, 2), [-7.25]);
    assert_eq!(matmul(&[1.5f64, -2.0], &x, 1, 1, 2), [6.25]);
}

#[test]
fn experts_one_by_one() {
    let (n_tokens, top_k, n_experts, n, k) = (3, 2, 4, 5, 6);
    let w = random_f32(n_experts * n * k, 1.0, 3);
    let indices = random_experts(n_tokens, top_k, n_experts, 4);
    let sizes = GatherMatmul { n_tokens, top_k, n_experts, n, k, input: GatherInput::PerSlot };
    let x = random_f32(n_tokens * top_k * k, 1.0, 5);
    let got = gather_matmul(&x, &w, &indices, sizes);
    let once = gather_matmul(
        &x[..n_tokens * k],
        &w,
        &indices,
        GatherMatmul { input: GatherInput::PerToken, ..sizes },
    );
    for (slot, &expert) in indices.iter().enumerate() {
        let w = &w[expert as usize * n * k..][..n * k];
        assert_eq!(got[slot * n..][..n], matmul(&x[slot * k..][..k], w, 1, n, k));
        assert_eq!(once[slot * n..][..n], matmul(&x[slot / top_k * k..][..k], w, 1, n, k));
    }
    let weights = [0.5, 2.0, 1.0, -1.0, 0.0, 3.0];
    let sums = combine(&got, &weights, Combine { n_tokens, top_k, hidden: n });
    for token in 0..n_tokens {
        for i in 0..n {
            let at = |slot: usize| got[(2 * token + slot) * n + i] * weights[2 * token + slot];
            assert_eq!(sums[token * n + i], at(0) + at(1));
        }
    }
}

#[test]
fn elementwise_functions() {
    assert_eq!(silu(0.0), 0.0);
    assert!((silu(1.0) - 0.731_058_578_630_004_9).abs() < 1e-15);
    assert!(silu(-1e4) == 0.0 && silu(1e4) == 1e4);
    assert_eq!(swiglu(&[0.0f32, 1.0], &[5.0f32, 2.0]), [0.0, 2.0 * silu(1.0)]);
    assert_eq!(add(&[1.0f32], &[2.0f64]), [3.0]);
    assert_eq!(softmax(&[f32::NEG_INFINITY, 3.0, 3.0]), [0.0, 0.5, 0.5]);
    assert!(softmax(&[f32::NAN, 1.0]).iter().any(|p| p.is_nan()));
    // The mean square is (9 + 16) / 2 = 12.5.
    let got = rms_norm(&[3.0f32, 4.0, 0.0, 0.0], &[1.0f32, 2.0], 0.0);
    assert!(max_abs(&got[..2], &[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()]) <= SAME_F64);
    let got = rms_norm(&[0.0f32, 0.0], &[1.0f32, 2.0], 1e-6);
    assert_eq!(got, [0.0, 0.0], "eps keeps zeros finite");
}

#[test]
fn rope_turns_pairs_and_leaves_the_rest() {
    let frequencies = rope_frequencies(4, 100.0);
    let layout = RopeLayout::Interleaved;
    let sizes = Rope { n_tokens: 2, n_heads: 2, head_dim: 6, frequencies: &frequencies, scale: 1.0, layout };
    let x = random_f32(24, 1.0, 6);
    let y = rope(&x, &[0, 3], sizes);
    assert_eq!(max_abs(&y[..12], &x[..12]), 0.0, "position 0 turns nothing");
    for head in x[12..].chunks(6).zip(y[12..].chunks(6)) {
        let (x, y): (Vec<f64>, &[f64]) = (head.0.iter().map(|&x| x.into()).collect(), head.1);
        for (pair, angle) in [(0, 3.0f64), (1, 0.3)] {
            let (a, b) = (x[2 * pair], x[2 * pair + 1]);
            let want = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
            assert!(max_abs(&y[2 * pair..2 * pair + 2], &want) <= SAME_F64);
        }
        assert_eq!(y[4..], x[4..]);
    }
    // The half-split layout is the interleaved one on permuted elements.
    let order = [0, 2, 1, 3, 4, 5];
    let permuted: Vec<f32> = x.chunks(6).flat_map(|head| order.map(|i| head[i])).collect();
    let split = rope(&permuted, &[0, 3], Rope { layout: RopeLayout::HalfSplit, ..sizes });
    let want: Vec<f64> = y.chunks(6).flat_map(|head| order.map(|i| head[i])).collect();
    assert_eq!(split, want);
    let slower: Vec<f64> = frequencies.iter().map(|f| 0.5 * f).collect();
    assert_eq!(rope(&x, &[0, 6], Rope { frequencies: &slower, ..sizes }), y);
    let scaled = rope(&x, &[0, 3], Rope { scale: 2.0, ..sizes });
    for (scaled, y) in scaled.chunks(6).zip(y.chunks(6)) {
        assert_eq!(scaled[..4], [2.0 * y[0], 2.0 * y[1], 2.0 * y[2], 2.0 * y[3]]);
        assert_eq!(scaled[4..], y[4..]);
    }
}

#[test]
fn softmax_router() {
    let router = SoftmaxTopK { n_experts: 4, top_k: 2, norm_topk_prob: true };
    let logits = [0.0f32, 1.0, 1.0, 1.0, 5.0, 0.0, 0.0, 4.0];
    let routing = softmax_top_k(&logits, router);
    assert_eq!(routing.indices, [1, 2, 0, 3], "best first; of equals the lower index");
    assert_eq!(routing.weights[..2], [0.5, 0.5]);
    assert_eq!(routing.margins[0], 0.0, "expert 3 was as good");
    assert!((routing.weights[2] / routing.weights[3] - 1f64.exp()).abs() < 1e-12);
    let plain = softmax_top_k(&logits, SoftmaxTopK { norm_topk_prob: false, ..router });
    assert_eq!(plain.indices, routing.indices);
    assert!((plain.weights[0] - 1.0 / (3.0 + (-1f64).exp())).abs() < 1e-15);
    let all = softmax_top_k(&logits, SoftmaxTopK { top_k: 4, ..router });
    assert!(all.margins.iter().all(|m| *m == f64::INFINITY));
    assert!(softmax_top_k::<f32>(&[], router).indices.is_empty());
    assert_eq!(top_k(&[1.0f32, 1.0, 1.0], 2), [0, 1]);
}

#[test]
fn noaux_router() {
    let router = NoauxTc {
        n_experts: 6,
        top_k: 2,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        eps: 1e-20,
        routed_scaling_factor: 1.8,
    };
    // The sigmoid is 0.5 for all but expert 5. The bias alone decides between the others, but it is not part of the
    // weights.
    let logits = [0.0f32, 0.0, 0.0, 0.0, 0.0, 3f32.ln()];
    let bias = [0.0f32, 0.3, 0.0, 0.1, 0.0, 0.0];
    let routing = noaux_tc(&logits, &bias, router);
    assert_eq!(routing.indices, [1, 5], "0.8 and 0.75");
    assert!(max_abs(&routing.weights, &[1.8 * 0.5 / 1.25, 1.8 * 0.75 / 1.25]) < 1e-7, "f32 logits");
    assert!((routing.margins[0] - 0.15).abs() < 1e-7);
    let plain = noaux_tc(&logits, &bias, NoauxTc { norm_topk_prob: false, ..router });
    assert!(max_abs(&plain.weights, &[0.9, 1.35]) < 1e-7);
    let one = noaux_tc(&logits, &bias, NoauxTc { top_k: 1, ..router });
    assert_eq!((one.indices, one.weights), (vec![1], vec![0.9]), "a single weight is not normalised");

    // The groups are {0,1,2} and {3,4,5}. Their sums of two are 1.3 and 1.35, so only the second is kept.
    let grouped = noaux_tc(&logits, &bias, NoauxTc { n_group: 2, ..router });
    assert_eq!(grouped.indices, [5, 3]);
    // The scores of experts in dropped groups become 0 and not -∞, so they can win over negative ones.
    let bias = [-2.0f32, -2.0, -2.0, -1.9, -1.9, -1.9];
    let negative = noaux_tc(&logits, &bias, NoauxTc { n_group: 2, ..router });
    assert_eq!(negative.indices, [0, 1]);
    // Of equal groups the lower one is kept.
    let equal = noaux_tc(&[0.0f32; 6], &[0.0f32; 6], NoauxTc { n_group: 3, ..router });
    assert_eq!(equal.indices, [0, 1]);
}

#[rstest]
fn attention_equals_candle(
    #[values((5, 5, 4, 4), (5, 5, 4, 2), (1, 9, 6, 1), (3, 7, 2, 2))] case: (usize, usize, usize, usize),
) {
    let (n_tokens, n_kv, n_heads, n_kv_heads) = case;
    let (head_dim, v_head_dim) = (8, 6);
    let q = random_f32(n_tokens * n_heads * head_dim, 1.0, 7);
    let k = random_f32(n_kv * n_kv_heads * head_dim, 1.0, 8);
    let v = random_f32(n_kv * n_kv_heads * v_head_dim, 1.0, 9);
    let sizes = Attention { n_tokens, n_kv, n_heads, n_kv_heads, head_dim, v_head_dim, scale: 0.3 };
    let got = attention(&q, &k, &v, sizes);
    let want = || -> candle_core::Result<Tensor> {
        let repeat = n_heads / n_kv_heads;
        let heads = |x: &[f32], n, n_heads, dim, repeat| -> candle_core::Result<Tensor> {
            let x = tensor(x, &[n, n_heads, dim]).transpose(0, 1)?.unsqueeze(1)?;
            x.repeat((1, repeat, 1, 1))?.reshape((n_heads * repeat, n, dim))
        };
        let (q, k) =
            (heads(&q, n_tokens, n_heads, head_dim, 1)?, heads(&k, n_kv, n_kv_heads, head_dim, repeat)?);
        let v = heads(&v, n_kv, n_kv_heads, v_head_dim, repeat)?;
        let mask: Vec<f64> = (0..n_tokens * n_kv)
            .map(|i| if i % n_kv > n_kv - n_tokens + i / n_kv { f64::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (1, n_tokens, n_kv), &Device::Cpu)?;
        let powers = (q.matmul(&k.t()?)? * 0.3)?.broadcast_add(&mask)?.exp()?;
        powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?.matmul(&v)?.transpose(0, 1)
    };
    assert!(rel_rms(&got, &values(&want().expect("fitting shapes"))) <= SAME_F64);
}

/// The absorbed form: queries go into the latent space, the latents are keys and values, and the sum comes back out.
#[rstest]
fn expanded_latent_attention_equals_the_absorbed_form(
    #[values((4, 4), (1, 7), (2, 5))] (n_tokens, n_kv): (usize, usize),
) {
    let (n_heads, nope, pe, rank, v_head_dim, scale) = (3, 5, 4, 7, 6, 0.4);
    let q_nope = random_f32(n_tokens * n_heads * nope, 1.0, 10);
    let q_pe = random_f32(n_tokens * n_heads * pe, 1.0, 11);
    let (kv, k_pe) = (random_f32(n_kv * rank, 1.0, 12), random_f32(n_kv * pe, 1.0, 13));
    let embed_q = random_f32(n_heads * rank * nope, 1.0, 14);
    let unembed_out = random_f32(n_heads * v_head_dim * rank, 1.0, 15);
    let sizes = MlaAttention {
        n_tokens,
        n_kv,
        n_heads,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: pe,
        kv_lora_rank: rank,
        v_head_dim,
        scale,
    };
    let got = mla_attention((&q_nope, &q_pe), (&kv, &k_pe), (&embed_q, &unembed_out), sizes);
    for token in 0..n_tokens {
        for head in 0..n_heads {
            let at = token * n_heads + head;
            let latent = matmul(
                &q_nope[at * nope..][..nope],
                &embed_q[head * rank * nope..][..rank * nope],
                1,
                rank,
                nope,
            );
            let seen = n_kv - n_tokens + token + 1;
            let near = matmul(&latent, &kv[..seen * rank], 1, seen, rank);
            let far = matmul(&q_pe[at * pe..][..pe], &k_pe[..seen * pe], 1, seen, pe);
            let p = softmax(&add(&near, &far).iter().map(|s| scale * s).collect::<Vec<_>>());
            let sum: Vec<f64> =
                (0..rank).map(|r| (0..seen).map(|j| p[j] * f64::from(kv[j * rank + r])).sum()).collect();
            let up = &unembed_out[head * v_head_dim * rank..][..v_head_dim * rank];
            let want = matmul(&sum, up, 1, v_head_dim, rank);
            assert!(
                rel_rms(&got[at * v_head_dim..][..v_head_dim], &want) <= SAME_F64,
                "token {token} head {head}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "matmul: w has 5 elements, want 6")]
fn wrong_lengths_panic_and_name_the_argument() {
    let _ = matmul(&[0f32; 6], &[0f32; 5], 2, 2, 3);
}
