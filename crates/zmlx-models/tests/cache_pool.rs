//! The pool of caches: forks, snapshots, the byte limit, and steps that fail.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::cell::Cell;
use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion, Hooked, Hooks, Result};
use zmlx_models::{CachePool, Checkpoint, Error, Input, KvFormat, Logits, Model, PoolOptions, Slot};

const MODELS: [&str; 2] = ["austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit"];

/// Fails at a certain op.
#[derive(Default)]
struct FailsAt {
    /// Number of ops that still succeed; `None` if none fails.
    n_left: Cell<Option<usize>>,
}

impl<B: Backend> Hooks<B> for FailsAt {
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        let n_left = self.n_left.get();
        self.n_left.set(n_left.map(|n| n.saturating_sub(1)));
        match n_left {
            Some(0) => {
                Err(zmlx_kernels::Error::Fault { op, backend: "test", why: "broken on purpose".into() })
            }
            _ => run(),
        }
    }
}

type Fragile = Hooked<CpuBackend, FailsAt>;

fn load(name: &str) -> Model<Fragile> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    let backend = Hooked::new(CpuBackend::new(Some(2)).unwrap(), FailsAt::default());
    Model::load(backend, &Checkpoint::open(&dir).unwrap(), &mut |_, _| ()).unwrap()
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 3072).collect()
}

fn pool(model: &Model<Fragile>, max_bytes: Option<u64>) -> CachePool<Fragile> {
    model.pool(PoolOptions { max_bytes, format: KvFormat::Native }).unwrap()
}

fn feed(model: &Model<Fragile>, pool: &mut CachePool<Fragile>, slot: Slot, tokens: &[u32]) -> Vec<f32> {
    let y = model.forward(pool, &[Input { slot, tokens, logits: Logits::Last }], &Fusion::FUSED).unwrap();
    let mut out = Vec::new();
    model.backend().read(&y, &mut out).unwrap();
    out
}

/// What two sequences share is stored once. Each then continues as if it were alone, bit for bit, because the same
/// steps follow.
#[rstest]
fn forks_go_on_as_if_alone(#[values(0, 1)] model: usize) {
    let model = load(MODELS[model]);
    let (prompt, [a, b]) = (tokens(150, 1), [tokens(5, 2), tokens(5, 3)]);
    let alone = |rest: &[u32]| {
        let mut pool = pool(&model, None);
        let slot = pool.allocate().unwrap();
        feed(&model, &mut pool, slot, &prompt);
        rest.chunks(1).flat_map(|t| feed(&model, &mut pool, slot, t)).collect::<Vec<f32>>()
    };
    let mut pool = pool(&model, None);
    let first = pool.allocate().unwrap();
    feed(&model, &mut pool, first, &prompt);
    let bytes = pool.bytes();
    assert_eq!(bytes, pool.bytes_for(150));
    let second = pool.fork(first, 150).unwrap();
    assert_eq!((pool.bytes(), pool.bytes_of(second), pool.n_tokens(second)), (bytes, bytes, 150));
    let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
    for i in 0..5 {
        of_first.extend(feed(&model, &mut pool, first, &a[i..=i]));
        of_second.extend(feed(&model, &mut pool, second, &b[i..=i]));
    }
    assert!(of_first == alone(&a) && of_second == alone(&b));
    // A snapshot restores a sequence.
    let snapshot = pool.snapshot(second).unwrap();
    let once = feed(&model, &mut pool, second, &a);
    feed(&model, &mut pool, second, &b);
    pool.restore(second, snapshot).unwrap();
    assert_eq!(pool.n_tokens(second), 155);
    assert!(feed(&model, &mut pool, second, &a) == once);
    for slot in [first, second, snapshot] {
        pool.free(slot).unwrap();
    }
    assert_eq!((pool.bytes(), pool.n_slots()), (0, 0));
}

/// Steps that fail at every op in turn leave nothing behind.
#[rstest]
fn a_failed_step_leaves_nothing(#[values(0, 1)] model: usize) {
    let model = load(MODELS[model]);
    let (prompt, more) = (tokens(95, 4), tokens(3, 5));
    let mut pool = pool(&model, None);
    let slots = [(); 2].map(|()| pool.allocate().unwrap());
    let mut want = Vec::new();
    for slot in slots {
        feed(&model, &mut pool, slot, &prompt);
    }
    let bytes = pool.bytes();
    let inputs = slots.map(|slot| Input { slot, tokens: &more, logits: Logits::All });
    let hooks = model.backend().hooks();
    for n in 0.. {
        hooks.n_left.set(Some(n));
        let done = model.forward(&mut pool, &inputs, &Fusion::FUSED);
        hooks.n_left.set(None);
        match done {
            Err(Error::Kernels(zmlx_kernels::Error::Fault { .. })) => {
                assert_eq!((pool.bytes(), slots.map(|slot| pool.n_tokens(slot))), (bytes, [95; 2]), "op {n}");
            }
            Err(error) => panic!("{error}"),
            Ok(y) => {
                assert!(n > 20, "a model has more ops than {n}");
                model.backend().read(&y, &mut want).unwrap();
                break;
            }
        }
    }
    // The same step on sequences without a failure.
    let mut fresh = self::pool(&model, None);
    let slots = [(); 2].map(|()| fresh.allocate().unwrap());
    for slot in slots {
        feed(&model, &mut fresh, slot, &prompt);
    }
    let inputs = slots.map(|slot| Input { slot, tokens: &more, logits: Logits::All });
    let y = model.forward(&mut fresh, &inputs, &Fusion::FUSED).unwrap();
    let mut got = Vec::new();
    model.backend().read(&y, &mut got).unwrap();
    assert!(got == want);
}

/// The limit is checked before anything is computed, and freed memory can be used again.
#[rstest]
fn a_full_pool_says_so(#[values(0, 1)] model: usize) {
    let model = load(MODELS[model]);
    let limit = pool(&model, None).bytes_for(200);
    let mut pool = pool(&model, Some(limit));
    let (slot, other) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    let prompt = tokens(150, 6);
    feed(&model, &mut pool, slot, &prompt);
    let is_full = |e: &Error| {
        matches!(e, Error::CacheFull { want_bytes, used_bytes, limit_bytes }
            if *limit_bytes == limit && want_bytes + used_bytes > limit)
    };
    let long = tokens(500, 7);
    let error = model.prefill(&mut pool, other, &long, &Fusion::FUSED, &mut |_, _| ()).err().unwrap();
    assert!(is_full(&error), "{error}");
    assert_eq!((pool.n_tokens(other), pool.bytes_of(other)), (0, 0));
    assert!(pool.bytes() <= limit);
    // There is room for what is shared, but not for what is written.
    let fork = pool.fork(slot, 150).unwrap();
    assert!(pool.growth(slot, 1).unwrap() > 0);
    pool.free(fork).unwrap();
    assert_eq!(pool.growth(slot, 1).unwrap(), 0);
    while pool.n_tokens(slot) < 200 {
        feed(&model, &mut pool, slot, &[5]);
        assert!(pool.bytes() <= limit);
    }
    pool.free(slot).unwrap();
    model.prefill(&mut pool, other, &long[..200], &Fusion::FUSED, &mut |_, _| ()).unwrap();
    assert_eq!(pool.bytes(), limit);
}

/// A prompt whose later chunk fails keeps the earlier chunks.
#[test]
fn a_prefill_says_how_far_it_came() {
    let model = load(MODELS[1]);
    let mut pool = pool(&model, None);
    let slot = pool.allocate().unwrap();
    let prompt = tokens(700, 8);
    let hooks = model.backend().hooks();
    let mut fail_later = |_: usize, _: usize| hooks.n_left.set(Some(3));
    let failed = model.prefill(&mut pool, slot, &prompt, &Fusion::FUSED, &mut fail_later);
    hooks.n_left.set(None);
    assert!(failed.is_err());
    let n_done = pool.n_tokens(slot);
    assert_eq!(n_done, zmlx_models::PREFILL_CHUNK);
    let y = model.prefill(&mut pool, slot, &prompt[n_done..], &Fusion::FUSED, &mut |_, _| ()).unwrap();
    assert_eq!((model.backend().shape(&y), pool.n_tokens(slot)), (vec![1, 3072], 700));
}

#[test]
fn lengths_that_cannot_be_had() {
    let model = load(MODELS[1]);
    let mut pool = pool(&model, None);
    let slot = pool.allocate().unwrap();
    feed(&model, &mut pool, slot, &tokens(20, 9));
    for error in [pool.truncate(slot, 21).unwrap_err(), pool.fork(slot, 21).unwrap_err()] {
        assert!(matches!(error, Error::Shorten { n_tokens: 21, had: 20, shortest: 0 }), "{error}");
    }
    assert!(matches!(pool.restore(slot, slot), Err(Error::Slot)));
    assert_eq!((pool.n_tokens(slot), pool.n_slots()), (20, 1));
    pool.truncate(slot, 0).unwrap();
    assert_eq!((pool.n_tokens(slot), pool.bytes()), (0, 0));
}
