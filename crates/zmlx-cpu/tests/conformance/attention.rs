//! The CPU's attention in integers: its error at the sizes of released models, and the results for NaN and infinity,
//! which integers do not have.

use zmlx_conformance::bounds::check_bits;
use zmlx_conformance::suite::{Host, span};
use zmlx_core::{AttentionInputs, AttentionSettings, Backend, CacheKind, MlaInputs};
use zmlx_cpu::{CpuBackend, Level};
use zmlx_oracle::ops;
use zmlx_oracle::testing::random_f32;

fn backends() -> impl Iterator<Item = (&'static str, CpuBackend)> {
    let backend = |level: Level| (level.name(), CpuBackend::with_level(level, Some(2)).unwrap());
    crate::levels().into_iter().map(backend)
}

/// The root mean square error relative to that of the values.
fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    let errors: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    (errors / want.iter().map(|w| w.powi(2)).sum::<f64>()).sqrt()
}

/// 700 positions: several blocks in several parts, and a remainder.
const N: usize = 700;

/// Rounds values to the nearest bf16.
fn rounded(x: &[f32]) -> Vec<f32> {
    let round = |v: &f32| v.to_bits() + 0x7fff + (v.to_bits() >> 16 & 1);
    x.iter().map(|v| f32::from_bits(round(v) & 0xffff_0000)).collect()
}

/// Passes if the error is at most a tenth of what it would be with queries, keys and values in bf16 and everything else
/// exact: 1.3e-4 with scores of about 1, 2.0e-4 with scores of about 4.
#[track_caller]
fn check(got: &[f32], want: &[f64], of_bf16: &[f64], what: String) {
    let of_bf16: Vec<f32> = of_bf16.iter().map(|v| *v as f32).collect();
    let (error, limit) = (relative_error(got, want), relative_error(&of_bf16, want) / 10.0);
    assert!(error <= limit, "{what}: {error:e}, limit {limit:e}");
}

/// Heads of 128 values, eight to a kv head.
#[test]
fn heads_are_precise() {
    let (n_heads, head_dim, scale) = (8, 128, 1.0 / 128f32.sqrt());
    for spread in [1.0, 4.0] {
        let q = random_f32(n_heads * head_dim, spread, 1);
        let [k, v] = [2, 3].map(|seed| random_f32(N * head_dim, 1.0, seed));
        let sizes = ops::Attention {
            n_tokens: 1,
            n_kv: N,
            n_heads,
            n_kv_heads: 1,
            head_dim,
            v_head_dim: head_dim,
            scale: f64::from(scale),
        };
        let want = ops::attention(&q, &k, &v, sizes);
        let of_bf16 = ops::attention(&rounded(&q), &rounded(&k), &rounded(&v), sizes);
        for (level, b) in backends() {
            let mut cache = b.native(CacheKind::Full { n_kv_heads: 1, head_dim });
            let mut feed = |q: &[f32], heads: usize, from: usize, n: usize| {
                let q = b.put(q, &[n, heads, head_dim]);
                let [k, v] =
                    [&k, &v].map(|x| b.put(&x[from * head_dim..][..n * head_dim], &[n, 1, head_dim]));
                let step = b.spans(&[span(0, from, n)]);
                let inputs = AttentionInputs { q: &q, k: &k, v: &v, sinks: None };
                let y = b.attention(inputs, &mut cache, &step, &AttentionSettings { scale, window: None });
                b.commit(&mut cache, &step);
                b.get(&y.unwrap())
            };
            // Only the last results are checked, so one head is enough for the tokens before.
            feed(&k[head_dim..], 1, 0, N - 1);
            check(&feed(&q, n_heads, N - 1, 1), &want, &of_bf16, format!("{level}, spread {spread}"));
        }
    }
}

/// A latent of 512 values and 64 rotated ones, for 20 heads.
#[test]
fn latents_are_precise() {
    let (n_heads, rank, rope_dim, scale) = (20, 512, 64, 1.0 / 576f32.sqrt());
    for spread in [1.0, 4.0] {
        let q = [random_f32(n_heads * rank, spread, 1), random_f32(n_heads * rope_dim, spread, 2)];
        let k = [random_f32(N * rank, 1.0, 3), random_f32(N * rope_dim, 1.0, 4)];
        let beside = |[a, b]: &[Vec<f32>; 2]| -> Vec<f32> {
            a.chunks_exact(rank).zip(b.chunks_exact(rope_dim)).flat_map(|(a, b)| [a, b].concat()).collect()
        };
        let sizes = ops::Attention {
            n_tokens: 1,
            n_kv: N,
            n_heads,
            n_kv_heads: 1,
            head_dim: rank + rope_dim,
            v_head_dim: rank,
            scale: f64::from(scale),
        };
        let want = ops::attention(&beside(&q), &beside(&k), &k[0], sizes);
        let of_bf16 = ops::attention(&rounded(&beside(&q)), &rounded(&beside(&k)), &rounded(&k[0]), sizes);
        for (level, b) in backends() {
            let mut cache = b.native(CacheKind::Latent { rank, rope_dim });
            let mut feed = |q: [&[f32]; 2], heads: usize, from: usize, n: usize| {
                let q = [0, 1].map(|i| b.put(q[i], &[n, heads, [rank, rope_dim][i]]));
                let k = [0, 1].map(|i| {
                    let width = [rank, rope_dim][i];
                    b.put(&k[i][from * width..][..n * width], &[n, width])
                });
                let inputs = MlaInputs { q_nope: &q[0], q_pe: &q[1], kv: &k[0], k_pe: &k[1] };
                let step = b.spans(&[span(0, from, n)]);
                let y = b.latent_attention(inputs, &mut cache, &step, scale);
                b.commit(&mut cache, &step);
                b.get(&y.unwrap())
            };
            feed([&k[0][rank..], &k[1][rope_dim..]], 1, 0, N - 1);
            let got = feed([&q[0], &q[1]], n_heads, N - 1, 1);
            check(&got, &want, &of_bf16, format!("{level}, spread {spread}"));
        }
    }
}

const TOKENS: usize = 9;
const HEADS: usize = 4;
const WIDTH: usize = 24;

/// Results of [`TOKENS`] tokens of [`HEADS`] heads: of two kv heads, or of a latent. `inputs` are queries, keys, values.
fn attend(b: &CpuBackend, inputs: &[Vec<f32>; 3], is_latent: bool) -> Vec<f32> {
    let put = |i: usize, heads: usize| b.put(&inputs[i], &[TOKENS, heads, WIDTH]);
    let step = b.spans(&[span(0, 0, TOKENS)]);
    if !is_latent {
        let mut cache = b.native(CacheKind::Full { n_kv_heads: 2, head_dim: WIDTH });
        let inputs = AttentionInputs { q: &put(0, HEADS), k: &put(1, 2), v: &put(2, 2), sinks: None };
        let settings = AttentionSettings { scale: 0.2, window: None };
        return b.get(&b.attention(inputs, &mut cache, &step, &settings).unwrap());
    }
    let mut cache = b.native(CacheKind::Latent { rank: WIDTH, rope_dim: WIDTH });
    // The first halves of keys and values serve as rotated keys and latents.
    let half = |i: usize| b.put(&inputs[i][..TOKENS * WIDTH], &[TOKENS, WIDTH]);
    let inputs = MlaInputs { q_nope: &put(0, HEADS), q_pe: &put(0, HEADS), kv: &half(2), k_pe: &half(1) };
    b.get(&b.latent_attention(inputs, &mut cache, &step, 0.2).unwrap())
}

/// A token that sees NaN or infinity gives no finite number. A token that does not see it gives the same bits as
/// without it.
#[test]
fn what_is_not_finite_is_passed_on_to_those_who_see_it() {
    for (level, b) in backends() {
        for is_latent in [false, true] {
            let values = |heads: usize, seed: u64| random_f32(TOKENS * heads * WIDTH, 1.0, seed);
            let clean = [values(HEADS, 1), values(2, 2), values(2, 3)];
            let want = attend(&b, &clean, is_latent);
            assert!(want.iter().all(|v| v.is_finite()));
            for value in [f32::NAN, -f32::NAN, f32::from_bits(0x7fc0_7fff), f32::INFINITY, f32::NEG_INFINITY]
            {
                for (input, token) in [(0, 2), (1, 3), (2, 3), (1, TOKENS - 1), (2, 0)] {
                    let mut dirty = clean.clone();
                    let heads = if input == 0 {
                        HEADS
                    } else if is_latent {
                        1
                    } else {
                        2
                    };
                    dirty[input][token * heads * WIDTH + 5] = value; // of the first head
                    let got = attend(&b, &dirty, is_latent);
                    for (i, (got, want)) in got.chunks_exact(WIDTH).zip(want.chunks_exact(WIDTH)).enumerate()
                    {
                        let (t, head) = (i / HEADS, i % HEADS);
                        let sees = if input == 0 {
                            (t, head) == (token, 0)
                        } else {
                            t >= token && head / (HEADS / heads) == 0
                        };
                        let what =
                            format!("{level}, latent {is_latent}: {value} in input {input} of token {token}");
                        if sees {
                            assert!(got.iter().all(|v| !v.is_finite()), "{what}: token {t}, head {head}");
                        } else {
                            check_bits(got, want, format_args!("{what}: token {t}, head {head}"));
                        }
                    }
                }
            }
        }
    }
}
