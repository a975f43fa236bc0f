//! Sliding windows and sinks of `attention`, compared with the oracle. A backend may refuse windows or sinks with a
//! typed error, either when it creates the cache or in attention.

use zmlx_core::{AttentionInputs, AttentionSettings, Backend, CacheKind, Error};

use crate::session::{Attend, Heads, Session, Shared, Windowed};
use crate::suite::{Host, Instance, native, span};

const HEADS: Heads = Heads { n_heads: 6, n_kv_heads: 2, head_dim: 24 };

fn windowed(window: usize) -> Windowed {
    Windowed { heads: HEADS, window: Some(window), sinks: Vec::new() }
}

/// The instances whose backend supports windows.
fn with_windows<B: Backend>(instances: &[Instance<B>]) -> impl Iterator<Item = &Instance<B>> {
    instances.iter().filter(|i| match i.backend.cache(&native(Attend::<B>::kind(&windowed(5)))) {
        Ok(_) => true,
        Err(Error::Unsupported { .. }) => false,
        Err(error) => panic!("{}: {error}", i.name),
    })
}

/// Windows around the sizes of tiles, blocks and pages, in prompts and token by token.
pub fn tokens_see_their_window<B: Backend>(instances: &[Instance<B>]) {
    for window in [1, 2, 15, 16, 17, 95, 96, 97, 128] {
        let op = windowed(window);
        for instance in with_windows(instances).filter(|i| i.is_full() || window % 2 == 1) {
            let mut session = Session::new(instance, &op, &[230, 230], window as u64);
            session.feed(&[(0, 97)]);
            session.feed(&[(0, 1), (1, 33)]);
            session.feed(&[(1, 120), (0, 1)]);
            for _ in 0..3 {
                session.feed(&[(0, 1), (1, 1)]);
            }
            session.feed(&[(0, 128), (1, 64)]);
        }
    }
}

/// Sequences so long that what comes before the window is dropped: results, bytes, forks.
pub fn long_sequences<B: Backend>(instances: &[Instance<B>]) {
    let op = windowed(40);
    let spec = native(Attend::<B>::kind(&op));
    for instance in with_windows(instances) {
        let Instance { name, backend: b, .. } = instance;
        let mut session = Session::new(instance, &op, &[1300, 1300], 4);
        session.feed(&[(0, 700)]);
        let mut most = 0;
        for n in [1, 95, 96, 1, 150, 1] {
            let grows = b.growth_bytes(&session.cache, 0, session.n_fed(0) + n);
            let before = b.resident_bytes(&session.cache);
            session.feed(&[(0, n)]);
            let after = b.resident_bytes(&session.cache);
            assert!(after <= before + grows, "{name}");
            assert_eq!(after, b.cache_bytes(&spec, session.n_fed(0)), "{name}");
            most = most.max(after);
        }
        assert!(most < b.cache_bytes(&native(Attend::<B>::kind(&HEADS)), session.n_fed(0)), "{name}");
        // A snapshot, which continues on its own.
        let n = session.n_fed(0);
        session.fork(0, 1, n, 5);
        session.feed(&[(0, 100), (1, 1)]);
        session.release(0, 6);
        session.feed(&[(1, 100), (0, 50)]);
    }
}

/// With and without a window, with sinks that take nearly all, some and almost none of the weight.
pub fn sinks<B: Backend>(instances: &[Instance<B>]) {
    for window in [None, Some(20)] {
        let op = Windowed { heads: HEADS, window, sinks: vec![8.0, 2.0, 0.0, -3.0, -1e4, 1.5] };
        let supported = |i: &&Instance<B>| {
            let b = &i.backend;
            let Ok(mut cache) = b.cache(&native(Attend::<B>::kind(&op))) else { return false };
            let x = [6, 2, 2].map(|heads| b.put(&vec![0.5; heads * 24], &[1, heads, 24]));
            let result = op.call(b, &x, &mut cache, &b.spans(&[span(0, 0, 1)]));
            !matches!(result, Err(Error::Unsupported { .. }))
        };
        for instance in instances.iter().filter(supported) {
            let mut session = Session::new(instance, &op, &[150, 20], 7);
            session.feed(&[(0, 1)]);
            session.feed(&[(0, 110), (1, 9)]);
            session.feed(&[(1, 1), (0, 1)]);
            session.feed(&[(0, 38)]);
        }
    }
}

/// Attention to what another layer has written, with and without a window, with other queries than that layer's.
pub fn shared<B: Backend>(instances: &[Instance<B>]) {
    for window in [None, Some(20)] {
        let op = Shared(Windowed { heads: HEADS, window, sinks: Vec::new() });
        let supported = |i: &&Instance<B>| {
            let b = &i.backend;
            let Ok(mut cache) = b.cache(&native(Attend::<B>::kind(&op))) else { return false };
            let x = [6, 2, 2, 6].map(|heads| b.put(&vec![0.5; heads * 24], &[1, heads, 24]));
            let result = op.call(b, &x, &mut cache, &b.spans(&[span(0, 0, 1)]));
            !matches!(result, Err(Error::Unsupported { .. }))
        };
        for instance in instances.iter().filter(supported) {
            let mut session = Session::new(instance, &op, &[150, 20], 11);
            session.feed(&[(0, 1)]);
            session.feed(&[(0, 110), (1, 9)]);
            session.feed(&[(1, 1), (0, 1)]);
            session.feed(&[(0, 38)]);
            // Nothing was written in this step.
            let b = &instance.backend;
            let settings = AttentionSettings { scale: 1.0, window };
            let q = b.put(&vec![0.5; 6 * 24 * 300], &[300, 6, 24]);
            let step = b.spans(&[span(0, 150, 300)]);
            let result = b.attention_shared(&q, &session.cache, &step, &settings);
            assert!(
                matches!(result, Err(Error::Precondition { op: "attention_shared", .. })),
                "{}",
                instance.name
            );
        }
    }
}

/// A sequence can be shortened by a few tokens, for example if one too many was computed, but only to lengths that its
/// window still covers.
pub fn what_is_gone_cannot_be_had_again<B: Backend>(instances: &[Instance<B>]) {
    let op = windowed(30);
    for instance in with_windows(instances) {
        let Instance { name, backend: b, .. } = instance;
        let mut session = Session::new(instance, &op, &[1100, 1100], 8);
        session.feed(&[(0, 200)]);
        assert_eq!(b.shortest(&session.cache, 0), 0, "{name}: nothing is gone");
        session.truncate(0, 3, 9);
        session.feed(&[(0, 700)]);
        for n in 0..40 {
            session.truncate(0, 702, 10 + n); // by one
            session.feed(&[(0, 1)]);
        }
        let shortest = b.shortest(&session.cache, 0);
        assert!(shortest > 0 && shortest <= 703, "{name}: {shortest}");
        for refused in [1, shortest - 1] {
            for error in
                [b.truncate(&mut session.cache, 0, refused), b.fork(&mut session.cache, 0, 1, refused)]
            {
                assert!(matches!(error, Err(Error::Precondition { .. })), "{name}: {refused}");
            }
        }
        session.fork(0, 1, shortest, 60);
        session.feed(&[(1, 5), (0, 1)]);
        session.truncate(0, shortest, 61);
        session.feed(&[(0, 1)]);
        session.feed(&[(0, 100)]);
        // After it is emptied, it is as new.
        session.truncate(0, 0, 62);
        session.feed(&[(0, 50)]);
        assert_eq!(b.shortest(&session.cache, 0), 0, "{name}");
    }
}

/// The window belongs to the cache, so an op with another window is refused.
pub fn a_window_that_is_not_the_cache_s<B: Backend>(instances: &[Instance<B>]) {
    for Instance { name, backend: b, .. } in with_windows(instances) {
        let x = [6, 2, 2].map(|heads| b.put(&vec![0.5; heads * 24], &[1, heads, 24]));
        let [q, k, v] = &x;
        let inputs = AttentionInputs { q, k, v, sinks: None };
        let step = b.spans(&[span(0, 0, 1)]);
        let mut cache = b.native(Attend::<B>::kind(&windowed(5)));
        for window in [None, Some(4), Some(6)] {
            let settings = AttentionSettings { scale: 1.0, window };
            let result = b.attention(inputs, &mut cache, &step, &settings);
            assert!(matches!(result, Err(Error::Precondition { op: "attention", .. })), "{name}: {window:?}");
        }
        let none = CacheKind::Window { n_kv_heads: 2, head_dim: 24, window: 0 };
        assert!(matches!(b.cache(&native(none)), Err(Error::Precondition { op: "cache", .. })), "{name}");
        let sinks = b.load_vector(&[0.0; 5]);
        let inputs = AttentionInputs { sinks: Some(&sinks), ..inputs };
        let settings = AttentionSettings { scale: 1.0, window: Some(5) };
        assert!(b.attention(inputs, &mut cache, &step, &settings).is_err(), "{name}: five sinks, six heads");
    }
}
