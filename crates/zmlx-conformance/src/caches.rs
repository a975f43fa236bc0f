//! Caches: what sequences share, what a failed step leaves behind, and how many bytes this takes.

use zmlx_core::Backend;

use crate::session::{Attend, Heads, Latent, Session};
use crate::suite::{Host, Instance, native, span};

const GROUPED: Heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 24 };

fn latent_op() -> Latent {
    Latent { n_heads: 3, rank: 40, rope_dim: 8, weights: None }
}

/// A sequence longer than any backend's unit of memory, and forks around multiples of these units (96 and 256).
fn check_forks<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    for n in [1, 15, 16, 95, 96, 97, 192, 193, 256, 257, 300] {
        let mut session = Session::new(instance, op, &[320, 320, 320], 1);
        session.feed(&[(0, 300)]);
        session.fork(0, 1, n, 7);
        // The fork continues first, then its origin. Neither sees what the other writes.
        session.feed(&[(1, 3)]);
        session.feed(&[(0, 2)]);
        // A fork of a fork, into a slot that was in use.
        session.feed(&[(2, 5)]);
        session.fork(1, 2, n + 1, 8);
        session.feed(&[(2, 1), (0, 1), (1, 1)]);
        session.feed(&[(1, 9), (2, 9), (0, 9)]);
    }
}

/// Forks of every length, while both sequences continue.
pub fn forks_grow_apart<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        check_forks(instance, &GROUPED);
        check_forks(instance, &latent_op());
    }
}

fn check_origin<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let mut session = Session::new(instance, op, &[220, 220, 220], 3);
    session.feed(&[(0, 200)]);
    session.fork(0, 1, 200, 4);
    session.fork(0, 2, 120, 5);
    session.release(0, 6);
    session.feed(&[(0, 210)]); // over the memory that it gave back
    session.feed(&[(1, 8), (2, 8)]);
    session.truncate(1, 100, 7);
    session.feed(&[(1, 4), (2, 4)]);
    // Back to the state that another slot kept.
    session.fork(2, 1, 132, 8);
    session.feed(&[(1, 4), (2, 1)]);
}

/// What a fork shares stays when its origin is released.
pub fn a_fork_outlives_its_origin<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        check_origin(instance, &GROUPED);
        check_origin(instance, &latent_op());
    }
}

/// Ops of a step that is then rolled back, on a sequence of its own and on one that shares its end.
fn check_rollback<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let b = &instance.backend;
    let mut session = Session::new(instance, op, &[330, 330], 11);
    session.feed(&[(0, 50)]);
    session.fork(0, 1, 50, 12);
    for n in [1, 46, 47, 207, 270] {
        let before = b.resident_bytes(&session.cache);
        let grows = b.growth_bytes(&session.cache, 1, 50 + n) + b.growth_bytes(&session.cache, 0, 51);
        let (x, spans) = session.next(&[(1, n), (0, 1)]);
        let step = b.spans(&spans);
        op.call(b, &x, &mut session.cache, &step).unwrap();
        b.rollback(&mut session.cache, &step);
        // Memory that is reserved but not used.
        b.reserve(&mut session.cache, 0, 300).unwrap();
        b.rollback(&mut session.cache, &step);
        let after = b.resident_bytes(&session.cache);
        assert!(after <= before + grows, "{}: {before} bytes before, {after} after", instance.name);
    }
    session.feed(&[(1, 60), (0, 1)]);
    session.feed(&[(0, 60)]);
}

/// A step that is rolled back has no effect.
pub fn failed_steps_leave_no_trace<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        check_rollback(instance, &GROUPED);
        check_rollback(instance, &latent_op());
    }
}

fn check_bytes<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let Instance { name, backend: b, .. } = instance;
    let spec = native(op.kind());
    let mut session = Session::new(instance, op, &[400, 400, 400], 2);
    assert_eq!(b.resident_bytes(&session.cache), 0, "{name}");
    assert_eq!(b.cache_bytes(&spec, 0), 0, "{name}");
    // The first step may determine the type of the values.
    session.feed(&[(0, 1)]);
    let bytes = |session: &Session<'_, B, A>| b.resident_bytes(&session.cache);
    let one = bytes(&session);
    assert!(one > 0 && one == b.slot_bytes(&session.cache, 0), "{name}");
    for n in [94, 1, 1, 159, 1, 1] {
        let n_tokens = session.n_fed(0) + n;
        let grows = b.growth_bytes(&session.cache, 0, n_tokens);
        let before = bytes(&session);
        session.feed(&[(0, n)]);
        assert_eq!(bytes(&session), before + grows, "{name}: {n_tokens}");
    }
    let whole = bytes(&session);
    assert_eq!(whole, b.slot_bytes(&session.cache, 0), "{name}");
    session.fork(0, 1, 258, 3);
    session.fork(0, 2, 100, 4);
    assert_eq!(bytes(&session), whole, "{name}: what is shared counts once");
    assert!(b.slot_bytes(&session.cache, 1) > 0, "{name}");
    // Both ends are shared, so each is copied when it is written to.
    let grows = [1, 2].map(|slot| b.growth_bytes(&session.cache, slot, session.n_fed(slot) + 1));
    session.feed(&[(1, 1), (2, 1)]);
    assert_eq!(bytes(&session), whole + grows[0] + grows[1], "{name}");
    for slot in 0..3 {
        b.release(&mut session.cache, slot);
        assert_eq!(b.slot_bytes(&session.cache, slot), 0, "{name}");
    }
    assert_eq!(bytes(&session), 0, "{name}");
}

/// The bytes that a cache reports, and the growth that it predicts, agree.
pub fn bytes_count_what_is_shared_once<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        check_bytes(instance, &GROUPED);
        check_bytes(instance, &latent_op());
    }
}

/// Sequences that come and go take no more memory than the largest set of them that existed at once.
pub fn released_memory_is_used_again<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        let b = &instance.backend;
        let mut session = Session::new(instance, &GROUPED, &[200, 200], 1);
        session.feed(&[(0, 200)]);
        let most = b.resident_bytes(&session.cache);
        for i in 0..4 {
            session.release(0, 10 + i);
            session.feed(&[(0, 100), (1, 50)]);
            session.release(1, 20 + i);
            session.feed(&[(0, 100)]);
            assert!(b.resident_bytes(&session.cache) <= most, "{}", instance.name);
        }
    }
}

/// Slots can be used in any order, with gaps between them.
pub fn any_slot<B: Backend>(instances: &[Instance<B>]) {
    for Instance { backend: b, .. } in instances {
        let mut cache = b.native(Attend::<B>::kind(&GROUPED));
        for slot in [1000, 3, 77] {
            b.reserve(&mut cache, slot, 5).unwrap();
            let x = |heads: usize| b.put(&vec![1.0; heads * 24], &[1, heads, 24]);
            let step = b.spans(&[span(slot, 0, 1)]);
            let y = GROUPED.call(b, &[x(4), x(2), x(2)], &mut cache, &step).unwrap();
            assert_eq!(b.shape(&y), [1, 4, 24]);
            b.commit(&mut cache, &step);
        }
        b.release(&mut cache, 5000);
        assert_eq!(b.slot_bytes(&cache, 5000), 0);
    }
}
