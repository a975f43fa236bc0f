//! `attention`, `latent_attention`, `mla_attention` and `norm_rope_mla`, compared with the oracle.

use zmlx_core::{Backend, DType, Rope, RopePairing, WeightFormat};

use crate::bounds::Bounded;
use crate::cases;
use crate::inputs::TestWeight;
use crate::session::{Attend, Heads, Latent, Projected, Session, TOLERANCE};
use crate::suite::Instance;

/// Groups of 1, 2, 3 and 8 query heads per kv head; widths around the sizes of vectors; a prompt, then single tokens.
pub fn grouped_heads<B: Backend>(instances: &[Instance<B>]) {
    let sizes = [(1, 1), (4, 4), (4, 2), (8, 1), (6, 2), (16, 2)];
    for (s, (n_heads, n_kv_heads)) in sizes.into_iter().enumerate() {
        for head_dim in [1, 7, 8, 9, 16, 33, 64, 128] {
            let op = Heads { n_heads, n_kv_heads, head_dim };
            for instance in instances.iter().filter(|i| i.is_full() || head_dim % 8 == s % 2) {
                let mut session = Session::new(instance, &op, &[12], s as u64);
                for n in [5, 1, 1, 4, 1] {
                    session.feed(&[(0, n)]);
                }
            }
        }
    }
}

/// Every width that is a multiple of 16, with more positions than a tile has, in two chunks.
pub fn long_prompts<B: Backend>(instances: &[Instance<B>]) {
    for head_dim in (16..=128).step_by(16) {
        let op = Heads { n_heads: 4, n_kv_heads: 2, head_dim };
        for instance in instances.iter().filter(|i| i.is_full() || head_dim == 48) {
            let mut session = Session::new(instance, &op, &[140], head_dim as u64);
            session.feed(&[(0, 70)]);
            session.feed(&[(0, 70)]);
        }
    }
}

const GROUPED: Heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 32 };

fn latent_op() -> Latent {
    Latent { n_heads: 5, rank: 40, rope_dim: 8, weights: None }
}

/// A prompt in chunks gives the same results as in one pass.
pub(crate) fn check_chunks<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let whole = Session::new(instance, op, &[41], 1).feed(&[(0, 41)]);
    for chunks in [&[1; 41][..], &[2, 3, 36], &[40, 1], &[17, 1, 1, 22], &[0, 8, 8, 8, 9, 0, 8]] {
        let mut session = Session::new(instance, op, &[41], 1);
        let got: Vec<f32> = chunks.iter().flat_map(|n| session.feed(&[(0, *n)])).collect();
        // The numbers are the same, but they may be added in another order.
        let bound = TOLERANCE * instance.chunk_error;
        let want = Bounded::uniform(whole.iter().map(|v| f64::from(*v)).collect(), bound);
        want.check(&got, format_args!("{}: {chunks:?}", instance.name));
    }
}

/// A prompt in chunks of any size gives the same results as in one pass, with both ops.
pub fn chunks_equal_one_go<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        check_chunks(instance, &GROUPED);
        check_chunks(instance, &latent_op());
    }
}

/// Prompts and decode steps of several sequences in one batch, in any order of slots.
fn check_slots<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let mut session = Session::new(instance, op, &[20, 3, 30, 9], 5);
    session.feed(&[(2, 11)]);
    session.feed(&[(0, 4), (2, 1), (3, 7)]);
    session.feed(&[(3, 1), (2, 1), (1, 3), (0, 1)]);
    session.feed(&[(2, 9), (0, 15)]);
    session.feed(&[(2, 8), (3, 1)]);
}

/// Sequences that share batches get the results that the oracle gives for each alone.
pub fn slots_in_one_batch_equal_each_alone<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        check_slots(instance, &GROUPED);
        check_slots(instance, &latent_op());
    }
}

fn check_truncate<B: Backend, A: Attend<B>>(instance: &Instance<B>, op: &A) {
    let mut session = Session::new(instance, op, &[16, 10], 9);
    session.feed(&[(0, 12), (1, 5)]);
    session.truncate(0, 7, 1000); // to the middle
    session.feed(&[(0, 3), (1, 1)]);
    session.truncate(0, 10, 2000); // to the length that it has
    session.feed(&[(0, 6)]);
    session.truncate(0, 0, 3000); // emptied
    session.feed(&[(1, 4), (0, 16)]);
}

/// A sequence that is shortened, at last to nothing, and continued with other tokens.
pub fn truncate_and_continue<B: Backend>(instances: &[Instance<B>]) {
    for instance in instances {
        check_truncate(instance, &GROUPED);
        check_truncate(instance, &latent_op());
    }
}

/// A sequence that outgrows the memory that a cache probably reserves at first, token by token at that point.
pub fn past_the_growth_step<B: Backend>(instances: &[Instance<B>]) {
    let op = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 16 };
    for instance in instances {
        let mut session = Session::new(instance, &op, &[600], 2);
        session.feed(&[(0, 250)]);
        for _ in 0..14 {
            session.feed(&[(0, 1)]);
        }
        session.feed(&[(0, 336)]);
    }
}

/// Latents with widths around the sizes of vectors, and with those of a released model.
pub fn latent<B: Backend>(instances: &[Instance<B>]) {
    for (n_heads, rank, rope_dim) in [(1, 1, 2), (3, 7, 2), (4, 8, 8), (5, 33, 6), (20, 512, 64)] {
        let op = Latent { n_heads, rank, rope_dim, weights: None };
        for instance in instances {
            let mut session = Session::new(instance, &op, &[9, 4], 3);
            session.feed(&[(0, 5)]);
            session.feed(&[(1, 3), (0, 1)]);
            session.feed(&[(0, 3), (1, 1)]);
        }
    }
}

/// Complete multi-head latent attention, compared with its expanded form, with the projections in every format.
pub fn latent_with_projections<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::formats();
    for f in 0..formats.len() {
        // Embedding and unembedding may have different formats.
        let (embed, unembed) = (formats[f], formats[(f + f % 2 * 13) % formats.len()]);
        let (n_heads, rank, nope, v_dim) = ([1, 3, 4][f % 3], 128, 128, [5, 64][f % 2]);
        let op = Latent {
            n_heads,
            rank,
            rope_dim: 16,
            weights: Some([
                TestWeight::random(embed, [n_heads, rank, nope], f as u64),
                TestWeight::random(unembed, [n_heads, v_dim, rank], 100 + f as u64),
            ]),
        };
        for instance in instances.iter().filter(|i| i.is_full() || f % 4 == 0) {
            let mut session = Session::new(instance, &op, &[11, 4], f as u64);
            session.feed(&[(0, 9)]);
            session.feed(&[(1, 3), (0, 1)]);
            session.feed(&[(0, 1), (1, 1)]);
        }
    }
}

/// The same from the projections on: a prompt, single tokens, few tokens, and several sequences; both pairings; also with the sizes of a
/// released model.
pub fn norm_rope_mla<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::formats();
    let dense = WeightFormat::Dense(DType::F32);
    for (f, ([n_heads, rank, nope, rope_dim, v_dim], format)) in [
        ([3, 128, 128, 16, 5], formats[0]),
        ([4, 256, 128, 8, 64], formats[formats.len() / 2]),
        ([2, 33, 7, 6, 9], dense),
        ([20, 512, 192, 64, 256], formats[0]),
    ]
    .into_iter()
    .enumerate()
    {
        let pairing = [RopePairing::Interleaved, RopePairing::HalfSplit][f % 2];
        let weights = [
            TestWeight::random(format, [n_heads, rank, nope], f as u64),
            TestWeight::random(format, [n_heads, v_dim, rank], 100 + f as u64),
        ];
        let op = Projected {
            latent: Latent { n_heads, rank, rope_dim, weights: Some(weights) },
            norm: TestWeight::random(dense, [1, 1, rank], 200 + f as u64),
            rope: Rope::plain(rope_dim, 1e4, pairing),
        };
        for instance in instances {
            let mut session = Session::new(instance, &op, &[15, 5], f as u64);
            session.feed(&[(0, 9)]);
            session.feed(&[(1, 3), (0, 1)]);
            session.feed(&[(0, 1), (1, 1)]);
            session.feed(&[(0, 3)]);
            session.feed(&[(1, 1), (0, 1)]);
        }
    }
}
