//! `causal_conv` and `gated_delta`, compared with the oracle, and the caches that hold their states. A backend may
//! refuse such caches with a typed error.

use zmlx_core::{
    Backend, CacheKind, ConvActivation, ConvWeights, DeltaDims, DeltaInputs, DeltaWeights, Error, Result,
};
use zmlx_oracle::ops;
use zmlx_oracle::testing::random_f32;

use crate::attention::check_chunks;
use crate::session::{Attend, Session};
use crate::suite::{Host, Instance, native, span};

/// `causal_conv`.
pub struct Conv {
    n_channels: usize,
    kernel: usize,
    silu: bool,
    /// `[n_channels, kernel]`.
    weight: Vec<f32>,
    /// One for each channel, or empty.
    bias: Vec<f32>,
}

impl Conv {
    fn new(n_channels: usize, kernel: usize, silu: bool, has_bias: bool) -> Self {
        let weight = random_f32(n_channels * kernel, 0.7, n_channels as u64);
        let bias = if has_bias { random_f32(n_channels, 0.5, 7) } else { Vec::new() };
        Self { n_channels, kernel, silu, weight, bias }
    }
}

impl<B: Backend> Attend<B> for Conv {
    fn kind(&self) -> CacheKind {
        CacheKind::Conv { n_channels: self.n_channels, kernel: self.kernel }
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        vec![vec![self.n_channels]]
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        let tap = |j: usize| self.weight.iter().skip(j).step_by(self.kernel);
        let taps: Vec<f32> = (0..self.kernel).flat_map(tap).copied().collect();
        let bias = (!self.bias.is_empty()).then(|| b.load_vector(&self.bias));
        let weights = ConvWeights { taps: &b.load_vector(&taps), bias: bias.as_ref() };
        let activation = if self.silu { ConvActivation::Silu } else { ConvActivation::None };
        b.causal_conv(&x[0], weights, cache, step, activation)
    }

    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        let Self { n_channels, kernel, silu, .. } = *self;
        let sizes = ops::CausalConv { n_tokens, n_channels, kernel, silu };
        ops::causal_conv(&x[0], &self.weight, &self.bias, sizes)
    }
}

/// `gated_delta`.
pub struct Delta {
    dims: DeltaDims,
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
}

impl Delta {
    fn new([n_k_heads, n_v_heads, k_dim, v_dim]: [usize; 4]) -> Self {
        let dims = DeltaDims { n_k_heads, n_v_heads, k_dim, v_dim, kernel: 4 };
        // Some heads decay at once, others only a little.
        let a_log = random_f32(n_v_heads, 2.0, 3);
        Self { dims, a_log, dt_bias: random_f32(n_v_heads, 1.0, 4) }
    }
}

impl<B: Backend> Attend<B> for Delta {
    fn kind(&self) -> CacheKind {
        CacheKind::Delta(self.dims)
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        vec![vec![self.dims.n_channels()], vec![self.dims.n_v_heads], vec![self.dims.n_v_heads]]
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        let (a_log, dt_bias) = (b.load_vector(&self.a_log), b.load_vector(&self.dt_bias));
        let inputs = DeltaInputs { qkv: &x[0], a: &x[1], b: &x[2] };
        b.gated_delta(inputs, DeltaWeights { a_log: &a_log, dt_bias: &dt_bias }, cache, step)
    }

    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        let DeltaDims { n_k_heads, n_v_heads, k_dim, v_dim, .. } = self.dims;
        let sizes = ops::GatedDelta { n_tokens, n_k_heads, n_v_heads, k_dim, v_dim };
        let inputs =
            ops::DeltaInputs { qkv: &x[0], a: &x[1], b: &x[2], a_log: &self.a_log, dt_bias: &self.dt_bias };
        ops::gated_delta(inputs, &mut vec![0.0; sizes.state_len()], sizes)
    }
}

/// The convolution and the rule after it, as in a layer: both states are in one cache.
struct Layer {
    conv: Conv,
    delta: Delta,
}

impl Layer {
    fn new() -> Self {
        let delta = Delta::new([2, 6, 24, 10]);
        Self { conv: Conv::new(delta.dims.n_channels(), delta.dims.kernel, true, false), delta }
    }
}

impl<B: Backend> Attend<B> for Layer {
    fn kind(&self) -> CacheKind {
        Attend::<B>::kind(&self.delta)
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        Attend::<B>::inputs(&self.delta)
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        let qkv = self.conv.call(b, &x[..1], cache, step)?;
        self.delta.call(b, &[qkv, x[1].clone(), x[2].clone()], cache, step)
    }

    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        let qkv = Attend::<B>::want(&self.conv, &x[..1], n_tokens);
        let qkv: Vec<f32> = qkv.iter().map(|v| *v as f32).collect();
        Attend::<B>::want(&self.delta, &[qkv, x[1].clone(), x[2].clone()], n_tokens)
    }
}

/// The instances whose backend has such caches.
fn with<'i, B: Backend, A: Attend<B>>(
    instances: &'i [Instance<B>],
    op: &A,
) -> impl Iterator<Item = &'i Instance<B>> {
    let kind = op.kind();
    instances.iter().filter(move |i| match i.backend.cache(&native(kind)) {
        Ok(_) => true,
        Err(Error::Unsupported { .. }) => false,
        Err(error) => panic!("{}: {error}", i.name),
    })
}

/// Prompts shorter and longer than the kernel, single tokens, several slots in one batch in any order, spans without
/// tokens.
fn check_pieces<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A, seed: u64) {
    let mut session = Session::new(instance, op, &[40, 3, 30, 9], seed);
    session.feed(&[(2, 11)]);
    session.feed(&[(0, 1), (2, 1), (3, 2)]);
    session.feed(&[(3, 1), (2, 1), (1, 3), (0, 0)]);
    session.feed(&[(0, 1), (3, 1)]);
    session.feed(&[(2, 9), (0, 30), (3, 5)]);
    session.feed(&[(2, 8), (0, 8)]);
}

/// Channels around the sizes of vectors, kernels of two and more, with and without bias and SiLU.
pub fn causal_conv<B: Backend>(instances: &[Instance<B>]) {
    for (i, n_channels) in [1, 7, 8, 9, 16, 17, 64, 257].into_iter().enumerate() {
        for kernel in [2, 3, 4, 13] {
            let op = Conv::new(n_channels, kernel, (i + kernel) % 2 == 0, i % 3 == 0);
            for instance in with(instances, &op).filter(|instance| instance.is_full() || kernel % 2 == i % 2)
            {
                check_pieces(instance, &op, i as u64);
            }
        }
    }
}

/// Heads that share keys and heads that do not; widths around the sizes of vectors, and those of a released model.
pub fn gated_delta<B: Backend>(instances: &[Instance<B>]) {
    let sizes = [
        [1, 1, 1, 1],
        [1, 1, 7, 5],
        [1, 3, 8, 4],
        [2, 4, 16, 16],
        [3, 3, 17, 3],
        [2, 6, 33, 9],
        [1, 2, 64, 7],
        [2, 4, 128, 128],
        [1, 2, 192, 130],
    ];
    for (i, sizes) in sizes.into_iter().enumerate() {
        let op = Delta::new(sizes);
        for instance in with(instances, &op).filter(|instance| instance.is_full() || i % 2 == 1) {
            check_pieces(instance, &op, i as u64);
        }
    }
}

/// A state so large that a backend may treat it differently.
pub fn large_states<B: Backend>(instances: &[Instance<B>]) {
    let op = Delta::new([4, 8, 128, 128]);
    for instance in with(instances, &op).filter(|instance| instance.is_full()) {
        let mut session = Session::new(instance, &op, &[9, 5], 1);
        session.feed(&[(0, 4), (1, 1)]);
        session.feed(&[(1, 1), (0, 1)]);
        session.feed(&[(1, 3), (0, 4)]);
    }
}

/// A prompt in chunks of any size gives the same results as in one pass.
pub fn chunks_equal_one_go<B: Backend>(instances: &[Instance<B>]) {
    let (conv, layer) = (Conv::new(40, 4, true, false), Layer::new());
    for instance in with(instances, &conv) {
        check_chunks(instance, &conv);
        check_chunks(instance, &layer);
    }
}

fn check_snapshots<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let Instance { name, backend: b, .. } = instance;
    let mut session = Session::new(instance, op, &[40, 40, 40], 3);
    session.feed(&[(0, 10)]);
    assert_eq!(b.shortest(&session.cache, 0), 10, "{name}");
    for refused in [1, 9, 11] {
        for error in [b.truncate(&mut session.cache, 0, refused), b.fork(&mut session.cache, 0, 1, refused)] {
            assert!(matches!(error, Err(Error::Precondition { .. })), "{name}: {refused}");
        }
    }
    session.fork(0, 1, 10, 4);
    // The fork continues first, then its origin. Neither sees what the other writes.
    session.feed(&[(1, 3)]);
    session.feed(&[(0, 2)]);
    session.fork(1, 2, 13, 5);
    session.feed(&[(2, 1), (0, 1), (1, 1)]);
    session.feed(&[(2, 1), (0, 1), (1, 4)]);
    // An origin that is released, and one that starts again.
    session.release(0, 6);
    session.feed(&[(0, 5), (1, 1)]);
    session.truncate(1, 0, 7);
    session.feed(&[(1, 2), (2, 1)]);
    session.truncate(1, 2, 8); // to the length that it has
    session.feed(&[(1, 1)]);
    session.fork(2, 0, 0, 9); // of nothing
    session.feed(&[(0, 1), (2, 1)]);
    session.release(2, 10);
    session.fork(1, 2, 3, 11);
    session.release(1, 12);
    session.feed(&[(2, 20)]);
}

/// A state can be kept as a whole or not at all. A sequence continues from a snapshot on its own.
pub fn snapshots_grow_apart<B: Backend>(instances: &[Instance<B>]) {
    let (conv, layer) = (Conv::new(24, 3, false, false), Layer::new());
    for instance in with(instances, &conv) {
        check_snapshots(instance, &conv);
        check_snapshots(instance, &layer);
    }
}

fn check_rollback<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let b = &instance.backend;
    let mut session = Session::new(instance, op, &[40, 40, 40], 11);
    session.feed(&[(0, 5)]);
    session.fork(0, 1, 5, 12);
    for n in [1, 2, 17] {
        let before = b.resident_bytes(&session.cache);
        let grows: u64 =
            (0..3).map(|slot| b.growth_bytes(&session.cache, slot, session.n_fed(slot) + n)).sum();
        let (x, spans) = session.next(&[(1, n), (2, n), (0, 1)]);
        let step = b.spans(&spans);
        op.call(b, &x, &mut session.cache, &step).unwrap();
        b.rollback(&mut session.cache, &step);
        // Memory that is reserved but not used.
        b.reserve(&mut session.cache, 0, 30).unwrap();
        b.rollback(&mut session.cache, &step);
        let after = b.resident_bytes(&session.cache);
        assert!(after <= before + grows, "{}: {before} bytes before, {after} after", instance.name);
    }
    session.feed(&[(1, 6), (0, 1), (2, 4)]);
    session.feed(&[(0, 6)]);
}

/// A step that is rolled back has no effect.
pub fn failed_steps_leave_no_trace<B: Backend>(instances: &[Instance<B>]) {
    let (conv, layer) = (Conv::new(24, 4, true, false), Layer::new());
    for instance in with(instances, &conv) {
        check_rollback(instance, &conv);
        check_rollback(instance, &layer);
    }
}

fn check_bytes<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let Instance { name, backend: b, .. } = instance;
    let spec = native(op.kind());
    let mut session = Session::new(instance, op, &[40, 40, 40], 2);
    assert_eq!(b.resident_bytes(&session.cache), 0, "{name}");
    assert_eq!(b.cache_bytes(&spec, 0), 0, "{name}");
    let bytes = |session: &Session<'_, B, A>| b.resident_bytes(&session.cache);
    for n in [1, 1, 3, 1, 9] {
        let n_tokens = session.n_fed(0) + n;
        let grows = b.growth_bytes(&session.cache, 0, n_tokens);
        let before = bytes(&session);
        session.feed(&[(0, n)]);
        assert_eq!(bytes(&session), before + grows, "{name}: {n_tokens}");
        assert_eq!(bytes(&session), b.slot_bytes(&session.cache, 0), "{name}: {n_tokens}");
        assert!(bytes(&session) <= b.cache_bytes(&spec, n_tokens), "{name}: {n_tokens}");
    }
    let whole = bytes(&session);
    assert!(whole > 0, "{name}");
    session.fork(0, 1, 15, 3);
    session.fork(0, 2, 15, 4);
    assert_eq!(bytes(&session), whole, "{name}: what is shared counts once");
    assert!(b.slot_bytes(&session.cache, 1) > 0, "{name}");
    for _ in 0..3 {
        let grows: u64 =
            (0..3).map(|slot| b.growth_bytes(&session.cache, slot, session.n_fed(slot) + 1)).sum();
        let before = bytes(&session);
        session.feed(&[(1, 1), (2, 1), (0, 1)]);
        assert!(bytes(&session) <= before + grows, "{name}");
    }
    assert_eq!(bytes(&session), 3 * whole, "{name}: nothing is shared any more");
    for slot in 0..3 {
        b.release(&mut session.cache, slot);
        assert_eq!(b.slot_bytes(&session.cache, slot), 0, "{name}");
    }
    assert_eq!(bytes(&session), 0, "{name}");
}

/// The bytes that a cache reports, and the growth that it predicts, agree.
pub fn bytes_count_what_is_shared_once<B: Backend>(instances: &[Instance<B>]) {
    let (conv, layer) = (Conv::new(24, 4, true, false), Layer::new());
    for instance in with(instances, &conv) {
        check_bytes(instance, &conv);
        check_bytes(instance, &layer);
    }
}

/// Inputs, weights, caches and steps that do not fit are refused, and then nothing has changed.
pub fn what_does_not_fit<B: Backend>(instances: &[Instance<B>]) {
    let op = Layer::new();
    let dims = op.delta.dims;
    for instance in with(instances, &op) {
        let Instance { name, backend: b, .. } = instance;
        for kind in [
            CacheKind::Conv { n_channels: 0, kernel: 4 },
            CacheKind::Conv { n_channels: 8, kernel: 1 },
            CacheKind::Conv { n_channels: 8, kernel: 0 },
            CacheKind::Delta(DeltaDims { n_k_heads: 4, ..dims }),
            CacheKind::Delta(DeltaDims { n_k_heads: 0, ..dims }),
            CacheKind::Delta(DeltaDims { k_dim: 0, ..dims }),
            CacheKind::Delta(DeltaDims { v_dim: 0, ..dims }),
            CacheKind::Delta(DeltaDims { kernel: 1, ..dims }),
            CacheKind::Delta(DeltaDims { k_dim: 1 << 24, v_dim: 1 << 24, ..dims }),
        ] {
            assert!(matches!(b.cache(&native(kind)), Err(Error::Precondition { op: "cache", .. })), "{name}");
        }
        let mut session = Session::new(instance, &op, &[9, 9], 1);
        session.feed(&[(0, 3)]);
        let (n_channels, n_heads) = (dims.n_channels(), dims.n_v_heads);
        let rows = |n: usize, width: usize| b.put(&vec![0.5; n * width], &[n, width]);
        let vector = |n: usize| b.load_vector(&vec![0.5; n]);
        let step = b.spans(&[span(0, 3, 2)]);
        let taps = vector(dims.kernel * n_channels);
        let few_taps = vector((dims.kernel - 1) * n_channels);
        let few_biases = vector(n_channels - 1);
        let weights = ConvWeights { taps: &taps, bias: None };
        let biased = ConvWeights { bias: Some(&few_biases), ..weights };
        let short = ConvWeights { taps: &few_taps, bias: None };
        let x = rows(2, n_channels);
        let late = b.spans(&[span(0, 4, 2)]);
        for (x, weights, step) in [
            (&rows(2, n_channels - 1), weights, &step),
            (&rows(3, n_channels), weights, &step),
            (&b.put(&vec![0.5; 2 * n_channels], &[2, 1, n_channels]), weights, &step),
            (&x, short, &step),
            (&x, biased, &step),
            (&x, weights, &late),
        ] {
            let result = b.causal_conv(x, weights, &mut session.cache, step, ConvActivation::None);
            assert!(matches!(result, Err(Error::Precondition { op: "causal_conv", .. })), "{name}");
        }
        let (per_head, few) = (vector(n_heads), vector(n_heads - 1));
        let (good, bad) = (rows(2, n_heads), rows(2, n_heads - 1));
        let weights = DeltaWeights { a_log: &per_head, dt_bias: &per_head };
        let inputs = DeltaInputs { qkv: &x, a: &good, b: &good };
        for (inputs, weights, step) in [
            (DeltaInputs { qkv: &rows(2, n_channels + 1), ..inputs }, weights, &step),
            (DeltaInputs { a: &bad, ..inputs }, weights, &step),
            (DeltaInputs { b: &bad, ..inputs }, weights, &step),
            (inputs, DeltaWeights { a_log: &few, ..weights }, &step),
            (inputs, DeltaWeights { dt_bias: &few, ..weights }, &step),
            (inputs, weights, &late),
        ] {
            let result = b.gated_delta(inputs, weights, &mut session.cache, step);
            assert!(matches!(result, Err(Error::Precondition { op: "gated_delta", .. })), "{name}");
        }
        let mut other = b.native(CacheKind::Conv { n_channels, kernel: dims.kernel });
        let first = b.spans(&[span(0, 0, 2)]);
        assert!(
            b.gated_delta(inputs, weights, &mut other, &first).is_err(),
            "{name}: a cache without a state"
        );
        let mut other = b.native(CacheKind::Full { n_kv_heads: 1, head_dim: 8 });
        assert!(b.gated_delta(inputs, weights, &mut other, &first).is_err(), "{name}: another kind of cache");
        let conv = ConvWeights { taps: &taps, bias: None };
        let result = b.causal_conv(&x, conv, &mut other, &first, ConvActivation::None);
        assert!(result.is_err(), "{name}: another kind of cache");
        session.feed(&[(0, 2), (1, 1)]);
    }
}

/// Keys that decay to nothing, and gates and inputs of thousands, give no NaN.
pub fn extreme_gates<B: Backend>(instances: &[Instance<B>]) {
    let op = Delta::new([1, 2, 16, 8]);
    let n_channels = op.dims.n_channels();
    for Instance { name, backend: b, .. } in with(instances, &op) {
        for (scale, gate) in [(1e4, 0.0), (1.0, 1e4), (1.0, -1e4), (0.0, 0.0), (1e-15, 3.0)] {
            let mut cache = b.native(Attend::<B>::kind(&op));
            let x = random_f32(3 * n_channels, scale, 1);
            let x = [b.put(&x, &[3, n_channels]), b.put(&[gate; 6], &[3, 2]), b.put(&[-gate; 6], &[3, 2])];
            let step = b.spans(&[span(0, 0, 3)]);
            let y = b.get(&op.call(b, &x, &mut cache, &step).unwrap());
            assert!(y.iter().all(|y| y.is_finite()), "{name}: {scale} {gate}: {y:?}");
        }
    }
}
