//! Prompts of random tokens that are the same on every machine.

/// `n` token ids below `vocab` that depend only on the seed.
pub fn seeded_tokens(seed: u64, n: usize, vocab: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64: a counter with a full period, mixed.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let vocab = u64::from(u32::try_from(vocab).unwrap_or(u32::MAX)).max(1);
    (0..n).map(|_| (next() % vocab) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::seeded_tokens;

    #[test]
    fn seeded_tokens_are_fixed_and_in_range() {
        let tokens = seeded_tokens(1, 1000, 7);
        assert_eq!(tokens, seeded_tokens(1, 1000, 7));
        assert_ne!(tokens, seeded_tokens(2, 1000, 7));
        assert!(tokens.iter().all(|&t| t < 7));
        assert!((0..7).all(|t| tokens.contains(&t)));
    }
}
