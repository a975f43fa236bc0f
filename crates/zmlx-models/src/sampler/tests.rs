use rstest::rstest;

use super::*;

fn hot() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::greedy() }
}

fn sample(params: SamplingParams, logits: &[f32], history: &[u32]) -> Sampled {
    Sampler::new(params).unwrap().sample(&mut logits.to_vec(), &after(history)).unwrap()
}

/// A context with a prompt and no restrictions.
fn after(prompt: &[u32]) -> SampleContext<'_> {
    SampleContext { history: prompt, n_prompt: prompt.len(), ..SampleContext::default() }
}

/// How often each token is drawn in `n` draws.
fn counts(params: SamplingParams, logits: &[f32], n: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(params).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(&mut logits.to_vec(), &after(&[])).unwrap().token as usize] += 1;
    }
    counts
}

/// The tokens that are drawn at all, at a temperature that makes all kept ones about equally likely.
fn support(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
    let counts = counts(SamplingParams { temperature: 1e6, ..params }, logits, 50 * logits.len());
    counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, _)| i).collect()
}

fn ln(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let s = sample(SamplingParams::greedy(), &[1.0, 3.0, 3.0, -2.0], &[]);
    assert_eq!((s.token, s.margin), (1, 0.0));
    let s = sample(SamplingParams::greedy(), &[f32::NEG_INFINITY, 0.5, 0.0], &[]);
    let want = 0.5f64 - (0.5f64.exp() + 1.0).ln();
    assert_eq!((s.token, s.margin), (1, 0.5));
    assert!((s.logprob - want).abs() < 1e-15, "{} {want}", s.logprob);
    let s = sample(SamplingParams::greedy(), &[-7.0], &[]);
    assert_eq!((s.token, s.logprob, s.margin), (0, 0.0, f32::INFINITY));
    // The logits are so large that a plain sum of exponentials would overflow.
    let s = sample(SamplingParams::greedy(), &[3e38, -3e38], &[]);
    assert_eq!((s.token, s.logprob), (0, 0.0));
}

#[rstest]
#[case::nan(&[1.0, f32::NAN])]
#[case::infinity(&[1.0, f32::INFINITY])]
#[case::nothing(&[f32::NEG_INFINITY, f32::NEG_INFINITY])]
#[case::empty(&[])]
fn senseless_logits_are_errors(#[case] logits: &[f32], #[values(0.0, 1.0)] temperature: f32) {
    let mut sampler = Sampler::new(SamplingParams { temperature, ..hot() }).unwrap();
    assert!(matches!(sampler.sample(&mut logits.to_vec(), &after(&[])), Err(Error::Logits { .. })));
}

#[rstest]
#[case("temperature", SamplingParams { temperature: -1.0, ..hot() })]
#[case("temperature", SamplingParams { temperature: f32::NAN, ..hot() })]
#[case("temperature", SamplingParams { temperature: f32::INFINITY, ..hot() })]
#[case("top_k", SamplingParams { top_k: Some(0), ..hot() })]
#[case("top_p", SamplingParams { top_p: Some(0.0), ..hot() })]
#[case("top_p", SamplingParams { top_p: Some(1.1), ..hot() })]
#[case("top_p", SamplingParams { top_p: Some(f32::NAN), ..hot() })]
#[case("min_p", SamplingParams { min_p: Some(-0.1), ..hot() })]
#[case("min_p", SamplingParams { min_p: Some(f32::NAN), ..hot() })]
#[case("repetition_penalty", SamplingParams { repetition_penalty: Some(0.0), ..hot() })]
#[case("repetition_penalty", SamplingParams { repetition_penalty: Some(f32::INFINITY), ..hot() })]
#[case("presence_penalty", SamplingParams { presence_penalty: 2.1, ..hot() })]
#[case("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..hot() })]
#[case("frequency_penalty", SamplingParams { frequency_penalty: -2.1, ..hot() })]
#[case("logit_bias", SamplingParams { logit_bias: vec![(0, 100.5)], ..hot() })]
#[case("logit_bias", SamplingParams { logit_bias: vec![(0, f32::NAN)], ..hot() })]
fn parameters_have_ranges(#[case] name: &str, #[case] params: SamplingParams) {
    match Sampler::new(params) {
        Err(Error::Parameter { field, .. }) => assert_eq!(field, name),
        other => panic!("{other:?}"),
    }
}

/// Each count is within 5 standard deviations of its expectation. One of the 15 counts in these tests would fail by
/// chance for about one in 100,000 seeds, and the seed is fixed.
#[rstest]
#[case(1.0)]
#[case(0.5)]
#[case(2.0)]
fn draws_follow_the_distribution(#[case] temperature: f32) {
    const N: usize = 20_000;
    let p = [0.1f32, 0.4, 0.2, 0.05, 0.25];
    let counts = counts(SamplingParams { temperature, seed: 7, ..hot() }, &ln(&p), N);
    let tempered: Vec<f64> = p.iter().map(|p| f64::from(*p).powf(1.0 / f64::from(temperature))).collect();
    let sum: f64 = tempered.iter().sum();
    for (n, w) in counts.iter().zip(tempered) {
        let q = w / sum;
        let (mean, deviation) = (N as f64 * q, (N as f64 * q * (1.0 - q)).sqrt());
        assert!((*n as f64 - mean).abs() < 5.0 * deviation, "{counts:?}: {n} for {mean}");
    }
}

#[rstest]
#[case::none(hot(), &[0, 1, 2, 3, 4])]
#[case::top_k_1(SamplingParams { top_k: Some(1), ..hot() }, &[1])]
#[case::top_k_3(SamplingParams { top_k: Some(3), ..hot() }, &[1, 2, 4])]
#[case::top_k_all(SamplingParams { top_k: Some(9), ..hot() }, &[0, 1, 2, 3, 4])]
// 0.4 reaches 0.39; 0.4 + 0.25 reaches 0.6; 0.65 does not reach 0.7.
#[case::top_p_39(SamplingParams { top_p: Some(0.39), ..hot() }, &[1])]
#[case::top_p_60(SamplingParams { top_p: Some(0.6), ..hot() }, &[1, 4])]
#[case::top_p_70(SamplingParams { top_p: Some(0.7), ..hot() }, &[1, 2, 4])]
#[case::top_p_1(SamplingParams { top_p: Some(1.0), ..hot() }, &[0, 1, 2, 3, 4])]
#[case::min_p_0(SamplingParams { min_p: Some(0.0), ..hot() }, &[0, 1, 2, 3, 4])]
#[case::min_p_49(SamplingParams { min_p: Some(0.49), ..hot() }, &[1, 2, 4])]
#[case::min_p_1(SamplingParams { min_p: Some(1.0), ..hot() }, &[1])]
// Top-p counts the probability of all tokens, not only of those that top-k leaves.
#[case::both(SamplingParams { top_k: Some(2), top_p: Some(0.64), ..hot() }, &[1, 4])]
#[case::all_three(SamplingParams { top_k: Some(4), top_p: Some(0.9), min_p: Some(0.49), ..hot() }, &[1, 2, 4])]
fn filters_keep(#[case] params: SamplingParams, #[case] want: &[usize]) {
    assert_eq!(support(params, &ln(&[0.1, 0.4, 0.2, 0.05, 0.25])), want);
}

#[test]
fn ties_at_the_edge_of_a_filter() {
    let logits = ln(&[0.2, 0.2, 0.2, 0.2, 0.2]);
    assert_eq!(support(SamplingParams { top_k: Some(2), ..hot() }, &logits), [0, 1]);
    assert_eq!(support(SamplingParams { top_p: Some(0.3), ..hot() }, &logits), [0, 1, 2, 3, 4]);
    assert_eq!(support(SamplingParams { min_p: Some(1.0), ..hot() }, &logits), [0, 1, 2, 3, 4]);
}

/// The part of the list that is ranked first has 64 candidates. The cases are nuclei around that size, and some that
/// need several rounds.
#[rstest]
fn a_nucleus_of(#[values(1, 63, 64, 65, 511, 512, 513, 1999)] n: usize) {
    let logits: Vec<f32> = (0..2000).map(|i| -((i * 7919 % 2000) as f32) * 1e-3).collect();
    let mut sorted: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sorted.iter().sum();
    let reached = |n: usize| sorted[..n].iter().sum::<f64>() / total;
    // Halfway between what n - 1 and n tokens reach.
    let top_p = Some(((reached(n - 1) + reached(n)) / 2.0) as f32);
    let params = SamplingParams { top_p, ..hot() };
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let last = last_kept(&params, &logits, (max, total), &mut Vec::new()).unwrap();
    let n_kept = logits.iter().filter(|l| **l >= last.logit).count();
    assert_eq!(n_kept, n);
}

#[test]
fn the_seed_decides() {
    let run = |seed| {
        let mut sampler = Sampler::new(SamplingParams { seed, ..hot() }).unwrap();
        (0..64).map(|_| sampler.sample(&mut [0.0; 16], &after(&[])).unwrap().token).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    // Recorded on x86-64. The result must be the same on every machine.
    assert_eq!(run(42)[..8], [10, 15, 6, 10, 4, 2, 4, 12]);
}

#[test]
fn the_repetition_penalty_touches_each_recent_token_once() {
    let params = SamplingParams {
        repetition_penalty: Some(2.0),
        repetition_context_size: 3,
        ..SamplingParams::greedy()
    };
    let mut sampler = Sampler::new(params).unwrap();
    let mut logits = [4.0, 3.0, -1.0, 2.5];
    // Token 3 comes before the last three. Token 0 counts once, although it occurs twice.
    let s = sampler.sample(&mut logits, &after(&[3, 0, 2, 0])).unwrap();
    assert_eq!(logits, [2.0, 3.0, -2.0, 2.5]);
    assert_eq!((s.token, s.margin), (1, 1.0));
    assert!(matches!(
        sampler.sample(&mut logits, &after(&[4])),
        Err(Error::Parameter { field: "history", .. })
    ));

    let params = SamplingParams { repetition_penalty: Some(1e-38), ..SamplingParams::greedy() };
    let s = sample(params, &[9.0, 1.0, f32::NEG_INFINITY], &[0, 1, 2]);
    assert_eq!(s.token, 0);
    assert!(s.logprob.is_finite());
}

#[test]
fn extreme_temperatures() {
    let logits = [0.0, 80.0, -80.0];
    assert_eq!(sample(SamplingParams { temperature: f32::MIN_POSITIVE, ..hot() }, &logits, &[]).token, 1);
    let counts = counts(SamplingParams { temperature: f32::MAX, ..hot() }, &logits, 300);
    assert!(counts.iter().all(|n| *n > 50), "{counts:?}");
}

#[test]
fn a_masked_token_is_never_drawn() {
    assert_eq!(counts(hot(), &[f32::NEG_INFINITY, 0.0, 0.0], 300)[0], 0);
}

/// The logits after a choice.
fn adjusted(params: SamplingParams, logits: &[f32], context: &SampleContext<'_>) -> (Vec<f32>, Sampled) {
    let mut logits = logits.to_vec();
    let sampled = Sampler::new(params).unwrap().sample(&mut logits, context).unwrap();
    (logits, sampled)
}

#[rstest]
#[case::nothing(0.0, None, 0.0, None, [1.0, 2.0, 3.0, 4.0])]
// Token 3 is only in the prompt, and token 0 is nowhere. Token 1 was generated three times, token 2 once.
#[case::presence(0.5, None, 0.0, None, [1.0, 1.5, 2.5, 4.0])]
#[case::frequency(0.0, None, 0.25, None, [1.0, 1.25, 2.75, 4.0])]
#[case::both(0.5, None, 0.25, None, [1.0, 0.75, 2.25, 4.0])]
#[case::negative(-0.5, None, -0.25, None, [1.0, 3.25, 3.75, 4.0])]
// The last two generated tokens are 2 and 1.
#[case::presence_of_two(0.5, Some(2), 0.0, None, [1.0, 1.5, 2.5, 4.0])]
#[case::presence_of_one(0.5, Some(1), 0.0, None, [1.0, 1.5, 3.0, 4.0])]
#[case::frequency_of_two(0.0, None, 0.25, Some(2), [1.0, 1.75, 2.75, 4.0])]
#[case::none_of_them(0.5, Some(0), 0.25, Some(0), [1.0, 2.0, 3.0, 4.0])]
fn additive_penalties(
    #[case] presence_penalty: f32,
    #[case] presence_context_size: Option<usize>,
    #[case] frequency_penalty: f32,
    #[case] frequency_context_size: Option<usize>,
    #[case] want: [f32; 4],
) {
    let params = SamplingParams {
        presence_penalty,
        presence_context_size,
        frequency_penalty,
        frequency_context_size,
        ..SamplingParams::greedy()
    };
    let context = SampleContext { history: &[3, 3, 1, 1, 2, 1], n_prompt: 2, ..SampleContext::default() };
    let (logits, sampled) = adjusted(params, &[1.0, 2.0, 3.0, 4.0], &context);
    assert_eq!(logits, want);
    // The margin is that of the model's own logits.
    assert_eq!((sampled.token, sampled.margin), (3, 1.0));
    let total: f64 = want.iter().map(|l| f64::from(*l).exp()).sum();
    assert!((sampled.logprob - (4.0 - total.ln())).abs() < 1e-15);
}

#[test]
fn bias_comes_before_penalties() {
    let params = SamplingParams {
        logit_bias: vec![(0, 5.0), (2, -100.0)],
        repetition_penalty: Some(2.0),
        ..SamplingParams::greedy()
    };
    // (1 + 5) / 2 = 3.
    let (logits, sampled) = adjusted(params.clone(), &[1.0, 2.0, 4.0], &after(&[0]));
    assert_eq!((logits, sampled.token, sampled.margin), (vec![3.0, 2.0, -96.0], 0, 2.0));
    assert!(params.check_tokens(3).is_ok());
    assert!(matches!(params.check_tokens(2), Err(Error::TokenOutOfRange { token: 2, vocab: 2 })));
    let mut sampler = Sampler::new(params).unwrap();
    let refused = sampler.sample(&mut [1.0, 2.0], &after(&[]));
    assert!(matches!(refused, Err(Error::Parameter { field: "logit_bias", .. })));
}

#[test]
fn only_allowed_tokens_are_chosen() {
    let logits: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
    // Tokens 3, 5 and 33. Tokens after the words are not allowed.
    let words = [1 << 3 | 1 << 5, 1 << 1];
    let allowed = Some(TokenMask::new(&words));
    let context = SampleContext { allowed, ..SampleContext::default() };
    let (left, sampled) = adjusted(SamplingParams::greedy(), &logits, &context);
    assert_eq!(sampled.token, 33);
    let kept: Vec<usize> = (0..40).filter(|&i| left[i].is_finite()).collect();
    assert_eq!(kept, [3, 5, 33]);
    let context = SampleContext { allowed: Some(TokenMask::new(&words[..1])), ..context };
    assert_eq!(adjusted(SamplingParams::greedy(), &logits, &context).1.token, 5);
    let mut sampler = Sampler::new(SamplingParams { temperature: 1e6, ..hot() }).unwrap();
    for _ in 0..50 {
        assert!([3, 5].contains(&sampler.sample(&mut logits.clone(), &context).unwrap().token));
    }
    let context = SampleContext { allowed: Some(TokenMask::new(&[0])), ..context };
    assert!(matches!(sampler.sample(&mut logits.clone(), &context), Err(Error::Logits { .. })));
    // A banned token that the model lacks has no effect.
    let context = SampleContext { allowed: None, banned: &[39, 38, 1000], ..context };
    assert_eq!(adjusted(SamplingParams::greedy(), &logits, &context).1.token, 37);
}

#[test]
fn the_most_probable_tokens() {
    let logits = ln(&[0.1, 0.4, 0.1, 0.0, 0.4]);
    let top = |n| top_logprobs(&logits, n);
    assert_eq!(top(0), []);
    let tokens = |n| top(n).iter().map(|t| t.token).collect::<Vec<_>>();
    assert_eq!(tokens(1), [1]);
    assert_eq!(tokens(3), [1, 4, 0]);
    // Token 3 has no probability.
    assert_eq!(tokens(9), [1, 4, 0, 2]);
    for (got, want) in top(4).iter().zip([0.4f64, 0.4, 0.1, 0.1]) {
        // The probabilities are f32. Their logarithms, up to 2.3, are rounded to 6e-8.
        assert!((got.logprob - want.ln()).abs() < 3e-7, "{got:?} {want}");
    }
    let greedy = sample(SamplingParams::greedy(), &logits, &[]);
    assert_eq!(top(1)[0], TokenLogprob { token: greedy.token, logprob: greedy.logprob });
    assert_eq!(top_logprobs(&[], 3), []);
}

#[test]
fn a_choice_that_a_device_made() {
    let params = SamplingParams { repetition_penalty: Some(2.0), ..SamplingParams::greedy() };
    let mut sampler = Sampler::new(params).unwrap();
    let mut logits = [4.0, 3.0];
    let s = sampler.assess(&mut logits, &after(&[0]), 0).unwrap();
    assert_eq!((s.token, s.margin, logits), (0, 1.0, [2.0, 3.0]));
    assert!((s.logprob + (1.0 + 1f64.exp()).ln()).abs() < 1e-15, "{s:?}");
    let unknown = sampler.assess(&mut logits, &after(&[]), 2);
    assert!(matches!(unknown, Err(Error::Parameter { field: "token", .. })));
}
