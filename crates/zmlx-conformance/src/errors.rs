//! Violates every precondition once: there must be the typed error, no panic, and unchanged caches.

use zmlx_core::{
    Activation, AttentionInputs, AttentionSettings, Backend, CacheKind, DType, Down, Error, GateUp,
    MAX_POSITIONS, MAX_SLOTS, NoauxTc, Renormalize, Result, Rope, RopePairing, SoftmaxTopK, Span,
    WeightFormat,
};

use crate::cases;
use crate::inputs::TestWeight;
use crate::session::{Heads, Latent, Session};
use crate::suite::{Host, Instance, native, span};

/// Passes if the op refused its arguments. A fused op may leave a check to one of its parts, which the error then
/// names.
#[track_caller]
fn refused<T>(result: Result<T>, ops: &[&str]) {
    match result {
        Err(Error::Precondition { op, .. }) if ops.contains(&op) => {}
        Err(error) => panic!("{ops:?}: another error: {error}"),
        Ok(_) => panic!("{ops:?}: no error"),
    }
}

#[track_caller]
fn out_of_range<T>(result: Result<T>, ops: &[&str], want_index: usize, want_len: usize) {
    match result {
        Err(Error::IndexOutOfRange { op, index, len, .. })
            if ops.contains(&op) && (index, len) == (want_index, want_len) => {}
        Err(error) => panic!("{ops:?}: another error: {error}"),
        Ok(_) => panic!("{ops:?}: no error"),
    }
}

/// Creating tensors and indices, moving values, and elementwise ops.
pub fn tensors<B: Backend>(instances: &[Instance<B>]) {
    for Instance { backend: b, .. } in instances {
        refused(b.tensor(&[0.0; 5], &[2, 3]), &["tensor"]);
        refused(b.tensor(&[0.0; 5], &[]), &["tensor"]);
        refused(b.tensor(&[0.0], &[1; 5]), &["tensor"]);
        refused(b.tensor(&[0.0; 5], &[usize::MAX, 2]), &["tensor"]);
        refused(b.indices(&[0; 5], &[2, 3]), &["indices"]);
        refused(b.indices(&[0], &[]), &["indices"]);

        let x = b.put(&[0.0; 6], &[2, 3]);
        let other = b.put(&[0.0; 6], &[3, 2]);
        refused(b.reshape(&x, &[5]), &["reshape"]);
        refused(b.reshape(&x, &[]), &["reshape"]);
        refused(b.reshape(&x, &[6, 1, 1, 1, 1]), &["reshape"]);
        refused(b.slice_last(&x, 1..1), &["slice_last"]);
        refused(b.slice_last(&x, 2..4), &["slice_last"]);
        #[allow(clippy::reversed_empty_ranges, reason = "the point of the test")]
        refused(b.slice_last(&x, 2..1), &["slice_last"]);
        refused(b.take_logit_rows(&x, &b.spans(&[span(0, 0, 3)])), &["take_logit_rows"]);
        refused(b.add(&x, &other), &["add"]);
        refused(b.gated(&x, &other, Activation::GeGlu), &["gated"]);
        refused(b.soft_cap(&x, 0.0), &["soft_cap"]);
        refused(b.soft_cap(&x, f32::NAN), &["soft_cap"]);
        let vector = b.load_vector(&[1.0; 2]);
        refused(b.mul_taken(&x, &vector, &b.put_indices(&[0; 3], &[3, 1])), &["mul_taken"]);
        out_of_range(
            b.mul_taken(&x, &vector, &b.put_indices(&[0, 1, 0, 1, 2, 0], &[2, 3])),
            &["mul_taken"],
            2,
            2,
        );
        refused(b.add_vector(&x, &b.load_vector(&[0.0; 2])), &["add_vector"]);
        refused(b.take_last(&x, &b.put_indices(&[0; 3], &[3, 1])), &["take_last"]);
        out_of_range(b.take_last(&x, &b.put_indices(&[0, 3], &[2, 1])), &["take_last"], 3, 3);
        refused(b.weighted_sum(&x, &x), &["weighted_sum"]);
        refused(b.weighted_sum(&b.put(&[0.0; 6], &[1, 2, 3]), &b.put(&[0.0; 3], &[1, 3])), &["weighted_sum"]);
    }
}

/// `linear`, `qmm_swiglu`, `head_linear`, `concat_rows` and `embed`.
pub fn products<B: Backend>(instances: &[Instance<B>]) {
    let format = cases::quantised()[4];
    let weight = |shape| TestWeight::random(format, shape, 1);
    let (one, wide, tall) = (weight([1, 3, 64]), weight([1, 3, 128]), weight([1, 4, 64]));
    let bank = weight([2, 3, 64]);
    for Instance { backend: b, .. } in instances {
        let [one, wide, tall, bank] = [&one, &wide, &tall, &bank].map(|w| b.load(w));
        let x = b.put(&[1.0; 128], &[2, 64]);
        refused(b.linear(&x, &wide), &["linear"]);
        refused(b.linear(&x, &bank), &["linear"]);
        const SWIGLU: &[&str] = &["qmm_swiglu", "linear", "gated"];
        refused(b.qmm_swiglu(&x, GateUp::swiglu(&wide, &wide)), SWIGLU);
        refused(b.qmm_swiglu(&x, GateUp::swiglu(&one, &tall)), SWIGLU);
        refused(b.qmm_swiglu(&x, GateUp::swiglu(&one, &bank)), SWIGLU);
        refused(b.qmm_swiglu(&x, GateUp::swiglu(&bank, &bank)), SWIGLU);
        refused(b.head_linear(&x, &bank), &["head_linear"]);
        refused(b.head_linear(&b.put(&[1.0; 192], &[1, 3, 64]), &bank), &["head_linear"]);
        refused(b.head_linear(&b.put(&[1.0; 64], &[1, 2, 32]), &bank), &["head_linear"]);
        refused(b.head_linear(&b.put(&[1.0; 128], &[1, 1, 2, 64]), &bank), &["head_linear"]);
        refused(b.concat_rows(&[]), &["concat_rows"]);
        refused(b.concat_rows(&[&one, &wide]), &["concat_rows"]);
        refused(b.concat_rows(&[&one, &bank]), &["concat_rows"]);

        let ids = b.put_indices(&[2, 3], &[2]);
        out_of_range(b.embed(&one, &ids), &["embed"], 3, 3);
        out_of_range(b.embed(&one, &b.put_indices(&[u32::MAX], &[1])), &["embed"], u32::MAX as usize, 3);
        refused(b.embed(&bank, &b.put_indices(&[0], &[1])), &["embed"]);
    }
}

/// `gather_linear`, `gather_qmm_swiglu` and `gather_qmm_combine`.
pub fn experts<B: Backend>(instances: &[Instance<B>]) {
    let format = cases::quantised()[4];
    let weight = |shape| TestWeight::random(format, shape, 1);
    let (bank, tall, more) = (weight([3, 4, 64]), weight([3, 5, 64]), weight([4, 4, 64]));
    for Instance { backend: b, .. } in instances {
        let [bank, tall, more] = [&bank, &tall, &more].map(|w| b.load(w));
        let (per_token, per_slot) = (b.put(&[1.0; 128], &[2, 64]), b.put(&[1.0; 256], &[2, 2, 64]));
        let experts = b.put_indices(&[0, 1, 2, 0], &[2, 2]);
        let beyond = b.put_indices(&[0, 1, 3, 0], &[2, 2]);
        let flat = b.put_indices(&[0, 1], &[2]);
        let fewer = b.put_indices(&[0, 1], &[1, 2]);
        let narrow = b.put(&[1.0; 64], &[2, 32]);
        let three_slots = b.put(&[1.0; 384], &[2, 3, 64]);

        const GATHER: &[&str] = &["gather_linear"];
        out_of_range(b.gather_linear(&per_token, &bank, &beyond), GATHER, 3, 3);
        for (x, e) in
            [(&per_token, &flat), (&per_token, &fewer), (&narrow, &experts), (&three_slots, &experts)]
        {
            refused(b.gather_linear(x, &bank, e), GATHER);
        }

        const SWIGLU: &[&str] = &["gather_qmm_swiglu", "gather_linear", "gated"];
        let weights = GateUp::swiglu(&bank, &bank);
        out_of_range(b.gather_qmm_swiglu(&per_token, weights, &beyond), SWIGLU, 3, 3);
        for (x, e) in
            [(&per_token, &flat), (&per_token, &fewer), (&narrow, &experts), (&three_slots, &experts)]
        {
            refused(b.gather_qmm_swiglu(x, weights, e), SWIGLU);
        }
        for up in [&tall, &more] {
            refused(b.gather_qmm_swiglu(&per_token, GateUp::swiglu(&bank, up), &experts), SWIGLU);
        }

        const COMBINE: &[&str] = &["gather_qmm_combine", "gather_linear", "weighted_sum"];
        let combine = |x, e, w: &[usize]| {
            let w = b.put(&vec![0.5; w.iter().product()], w);
            b.gather_qmm_combine(x, Down::plain(&bank), e, &w)
        };
        out_of_range(combine(&per_slot, &beyond, &[2, 2]), COMBINE, 3, 3);
        refused(combine(&per_slot, &flat, &[2, 2]), COMBINE);
        refused(combine(&three_slots, &experts, &[2, 2]), COMBINE);
        refused(combine(&per_slot, &experts, &[4]), COMBINE);
        refused(combine(&per_slot, &experts, &[2, 3]), COMBINE);
        refused(combine(&narrow, &experts, &[2, 2]), COMBINE);

        // Biases with another width, or for another number of experts.
        const ADD: &[&str] = &["gather_add"];
        let vectors = |n: usize, len: usize| {
            b.load(&TestWeight::random(WeightFormat::Dense(DType::F32), [n, 1, len], 1))
        };
        let (fits, wide) = (vectors(3, 64), vectors(3, 65));
        out_of_range(b.gather_add(&per_slot, &fits, &beyond), ADD, 3, 3);
        refused(b.gather_add(&per_slot, &wide, &experts), ADD);
        refused(b.gather_add(&per_slot, &fits, &flat), ADD);
        refused(b.gather_add(&three_slots, &fits, &experts), ADD);
        let (right, wrong) = (vectors(3, 4), [vectors(3, 5), vectors(2, 4)]);
        for wrong in &wrong {
            let weights = GateUp { biases: Some([&right, wrong]), ..GateUp::swiglu(&bank, &bank) };
            const BIASED: &[&str] = &["gather_qmm_swiglu", "gather_add"];
            let result = b.gather_qmm_swiglu(&per_token, weights, &experts);
            assert!(
                matches!(&result, Err(Error::Precondition { op, .. } | Error::IndexOutOfRange { op, .. })
                if BIASED.contains(op))
            );
            let w = b.put(&[0.5; 4], &[2, 2]);
            let result =
                b.gather_qmm_combine(&per_slot, Down { weight: &bank, bias: Some(wrong) }, &experts, &w);
            const SUMMED: &[&str] = &["gather_qmm_combine", "gather_add"];
            assert!(
                matches!(&result, Err(Error::Precondition { op, .. } | Error::IndexOutOfRange { op, .. })
                if SUMMED.contains(op))
            );
        }
    }
}

/// `rms_norm`, `add_rms_norm` and `rope`.
pub fn rows<B: Backend>(instances: &[Instance<B>]) {
    for Instance { backend: b, .. } in instances {
        let x = b.put(&[1.0; 8], &[2, 4]);
        let (fits, longer) = (b.load_vector(&[1.0; 4]), b.load_vector(&[1.0; 5]));
        let matrix = b.upload(zmlx_core::HostWeight::from_f32(&[1.0; 8], 2, 4).unwrap()).unwrap();
        for weight in [&longer, &matrix] {
            refused(b.rms_norm(&x, weight, 1e-6), &["rms_norm"]);
            refused(b.add_rms_norm(&x, &x, weight, 1e-6), &["add_rms_norm", "rms_norm"]);
        }
        let other = b.put(&[1.0; 8], &[4, 2]);
        refused(b.add_rms_norm(&x, &other, &fits, 1e-6), &["add_rms_norm", "add"]);
        // A backend may or may not support a vector that consists of parts, but it must not panic.
        let halves = b.load_vector(&[1.0; 2]);
        assert!(b.rms_norm(&x, &b.concat_rows(&[&halves, &halves]).unwrap(), 1e-6).is_err());

        let rope = |x: &B::Tensor, spans: &[_], dims| {
            b.rope(x, &b.spans(spans), &Rope::plain(dims, 1e4, RopePairing::HalfSplit))
        };
        let heads = b.put(&[1.0; 16], &[2, 2, 4]);
        for dims in [0, 3, 6, usize::MAX - 1] {
            refused(rope(&heads, &[span(0, 0, 2)], dims), &["rope"]);
        }
        for spans in [vec![], vec![span(0, 0, 1)], vec![span(0, 0, 3)], vec![span(0, 0, 2), span(1, 0, 1)]] {
            refused(rope(&heads, &spans, 4), &["rope"]);
        }
        refused(rope(&x, &[span(0, 0, 2)], 4), &["rope"]);
        refused(rope(&b.put(&[], &[2, 0, 4]), &[span(0, 0, 2)], 4), &["rope"]);
    }
}

/// Routers and the plain ops that they consist of.
pub fn routers<B: Backend>(instances: &[Instance<B>]) {
    let noaux = |top_k, n_group, topk_group| NoauxTc {
        top_k,
        n_group,
        topk_group,
        renormalize: Renormalize::Yes,
        eps: 1e-20,
        routed_scaling_factor: 1.0,
    };
    for Instance { backend: b, .. } in instances {
        let x = b.put(&[1.0; 12], &[2, 6]);
        let flat = b.put(&[1.0; 12], &[12]);
        for k in [0, 7] {
            refused(b.top_k(&x, k), &["top_k"]);
            let settings = SoftmaxTopK { top_k: k, renormalize: Renormalize::Yes };
            refused(b.route_softmax_top_k(&x, &settings), &["route_softmax_top_k", "top_k"]);
        }
        refused(b.top_k(&flat, 1), &["top_k"]);
        let settings = SoftmaxTopK { top_k: 1, renormalize: Renormalize::No };
        refused(b.route_softmax_top_k(&flat, &settings), &["route_softmax_top_k", "top_k"]);
        // Groups of unequal size, groups of one, no groups; no group kept, too many kept.
        let groups = [(4, 1), (6, 1), (0, 1), (2, 0), (2, 3)];
        for (n_group, topk_group) in groups {
            refused(b.keep_top_groups(&x, n_group, topk_group), &["keep_top_groups"]);
        }
        const NOAUX: &[&str] = &["route_noaux_tc", "keep_top_groups", "top_k", "add_vector"];
        let bias = b.load_vector(&[0.0; 6]);
        for (n_group, topk_group) in groups.into_iter().filter(|(n_group, _)| *n_group > 1) {
            refused(b.route_noaux_tc(&x, &bias, &noaux(1, n_group, topk_group)), NOAUX);
        }
        refused(b.route_noaux_tc(&x, &bias, &noaux(0, 1, 1)), NOAUX);
        refused(b.route_noaux_tc(&x, &bias, &noaux(7, 1, 1)), NOAUX);
        refused(b.route_noaux_tc(&x, &b.load_vector(&[0.0; 5]), &noaux(1, 1, 1)), NOAUX);
        refused(b.route_noaux_tc(&flat, &bias, &noaux(1, 1, 1)), NOAUX);
    }
}

/// Steps that do not fit a batch of three tokens, after three tokens in slot 0 and two in slot 1.
const BAD_SPANS: [&[Span]; 5] = [
    &[],
    &[SPAN],                                                                       // too few tokens
    &[SPAN, Span { slot: 1, start: 2, n_tokens: 2, ..SPAN }],                      // too many
    &[SPAN, Span { slot: 1, start: 1, n_tokens: 1, ..SPAN }], // not at the end of the slot
    &[Span { start: 4, ..SPAN }, Span { slot: 1, start: 2, n_tokens: 1, ..SPAN }], // beyond it
];
const SPAN: Span = Span { slot: 0, start: 3, n_tokens: 2, logits: zmlx_core::Logits::Last };

/// Spans that are invalid for every step.
pub fn steps<B: Backend>(instances: &[Instance<B>]) {
    for Instance { backend: b, .. } in instances {
        refused(b.step(&[span(0, 3, 2), span(0, 5, 1)]), &["step"]);
        refused(b.step(&[span(1, usize::MAX, 2)]), &["step"]);
        refused(b.step(&[span(1, MAX_POSITIONS, 1)]), &["step"]);
        out_of_range(b.step(&[span(MAX_SLOTS, 0, 1)]), &["step"], MAX_SLOTS, MAX_SLOTS);
    }
}

/// Calls that must fail, between two pieces of a session. The later pieces give the same results as without these
/// calls.
pub fn attention<B: Backend>(instances: &[Instance<B>]) {
    const OP: &[&str] = &["attention"];
    let op = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 8 };
    for instance in instances {
        let b = &instance.backend;
        let mut session = Session::new(instance, &op, &[9, 9], 1);
        session.feed(&[(0, 3), (1, 2)]);
        let (x, spans) = session.next(&[(0, 2), (1, 1)]);
        let good = (x[0].clone(), x[1].clone(), x[2].clone());
        let put = |shape: &[usize]| b.put(&vec![9.0; shape.iter().product()], shape);
        let shapes = [
            (put(&[3, 3, 8]), good.1.clone(), good.2.clone()), // heads that the kv heads do not divide
            (put(&[3, 4, 7]), good.1.clone(), good.2.clone()),
            (put(&[2, 4, 8]), good.1.clone(), good.2.clone()),
            (put(&[12, 8]), good.1.clone(), good.2.clone()),
            (good.0.clone(), put(&[3, 4, 8]), good.2.clone()),
            (good.0.clone(), put(&[2, 2, 8]), good.2.clone()),
            (good.0.clone(), good.1.clone(), put(&[3, 2, 9])),
            (good.0.clone(), good.1.clone(), put(&[3, 16])),
        ];
        let settings = AttentionSettings { scale: 1.0, window: None };
        let step = b.spans(&spans);
        for (q, k, v) in &shapes {
            let inputs = AttentionInputs { q, k, v, sinks: None };
            refused(b.attention(inputs, &mut session.cache, &step, &settings), OP);
        }
        let good = AttentionInputs { q: &good.0, k: &good.1, v: &good.2, sinks: None };
        let windowed = AttentionSettings { window: Some(2), ..settings };
        refused(b.attention(good, &mut session.cache, &step, &windowed), OP);
        for spans in BAD_SPANS {
            let step = b.spans(spans);
            refused(b.attention(good, &mut session.cache, &step, &settings), OP);
        }
        let mut latent = b.native(CacheKind::Latent { rank: 8, rope_dim: 8 });
        refused(b.attention(good, &mut latent, &step, &settings), OP);

        session.feed(&[(0, 2), (1, 1)]);
        session.feed(&[(1, 6), (0, 4)]);
    }
}

/// As [`attention`], for latents.
pub fn latent_attention<B: Backend>(instances: &[Instance<B>]) {
    const OP: &[&str] = &["latent_attention"];
    let op = Latent { n_heads: 3, rank: 8, rope_dim: 4, weights: None };
    for instance in instances {
        let b = &instance.backend;
        let mut session = Session::new(instance, &op, &[9, 9], 1);
        session.feed(&[(0, 3), (1, 2)]);
        let (x, spans) = session.next(&[(0, 2), (1, 1)]);
        let call = |x: &[B::Tensor], cache: &mut B::Cache, spans: &[_]| {
            crate::session::Attend::call(&op, b, x, cache, &b.spans(spans))
        };
        for (i, shape) in [
            (0, vec![3, 3, 7]),
            (0, vec![2, 3, 8]),
            (0, vec![9, 8]),
            (1, vec![3, 2, 4]),
            (1, vec![3, 3, 5]),
            (2, vec![3, 9]),
            (2, vec![2, 8]),
            (3, vec![3, 3]),
            (3, vec![3, 1, 4]),
        ] {
            let mut x = x.clone();
            x[i] = b.put(&vec![9.0; shape.iter().product()], &shape);
            refused(call(&x, &mut session.cache, &spans), OP);
        }
        for spans in BAD_SPANS {
            refused(call(&x, &mut session.cache, spans), OP);
        }
        let mut heads = b.native(CacheKind::Full { n_kv_heads: 1, head_dim: 12 });
        refused(call(&x, &mut heads, &spans), OP);

        session.feed(&[(0, 2), (1, 1)]);
        session.feed(&[(1, 6), (0, 4)]);
    }
}

/// Specifications of caches, and `truncate`.
pub fn caches<B: Backend>(instances: &[Instance<B>]) {
    let op = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 4 };
    for instance in instances {
        let b = &instance.backend;
        for (n_kv_heads, head_dim) in [(0, 4), (1, 0)] {
            refused(b.cache(&native(CacheKind::Full { n_kv_heads, head_dim })), &["cache"]);
        }
        for (rank, rope_dim) in [(0, 4), (4, 0)] {
            refused(b.cache(&native(CacheKind::Latent { rank, rope_dim })), &["cache"]);
        }
        let mut session = Session::new(instance, &op, &[6], 1);
        session.feed(&[(0, 4)]);
        let cache = &mut session.cache;
        refused(b.truncate(cache, 0, 5), &["truncate"]);
        refused(b.truncate(cache, 1, 1), &["truncate"]);
        out_of_range(b.truncate(cache, MAX_SLOTS, 0), &["truncate"], MAX_SLOTS, MAX_SLOTS);
        refused(b.fork(cache, 0, 1, 5), &["fork"]);
        refused(b.fork(cache, 1, 0, 1), &["fork"]);
        refused(b.fork(cache, 0, 0, 4), &["fork"]);
        out_of_range(b.fork(cache, MAX_SLOTS, 0, 0), &["fork"], MAX_SLOTS, MAX_SLOTS);
        out_of_range(b.fork(cache, 0, MAX_SLOTS, 0), &["fork"], MAX_SLOTS, MAX_SLOTS);
        out_of_range(b.reserve(cache, MAX_SLOTS, 1), &["reserve"], MAX_SLOTS, MAX_SLOTS);
        session.feed(&[(0, 2)]);
    }
}
