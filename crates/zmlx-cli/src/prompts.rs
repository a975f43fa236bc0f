//! Built-in prompts.

/// The opening of *Pride and Prejudice*: the built-in model continues it as the novel does.
pub(crate) const NOVEL: &str = "It is a truth universally acknowledged, that a single man in possession of a good \
     fortune, must be in want of a wife.\n\nHowever little known the feelings or views of such a man may be on his \
     first entering a neighbourhood, this truth is so well fixed in the mind";

/// Prompts of several lengths and kinds for models of which nothing is known but that they read English.
pub(crate) const NEUTRAL: &[(&str, &str)] = &[
    ("short", "The capital of France is"),
    ("list", "Three things to pack for a walk in the rain:\n1."),
    ("code", "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n"),
    ("sums", "12 + 30 = 42\n7 + 8 = 15\n9 + 16 ="),
    (
        "story",
        "The ferry left the harbour a little after six. Most of the passengers had gone below to drink coffee, but \
         an old woman stayed on deck and watched the lights of the town become smaller. She had made this crossing \
         every autumn for thirty years, and",
    ),
];

/// `n` token ids below `vocab` that are the same on every machine.
pub(crate) fn seeded_tokens(seed: u64, n: usize, vocab: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64: a full-period counter, mixed.
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
    use super::*;

    #[test]
    fn seeded_tokens_are_fixed_and_in_range() {
        let tokens = seeded_tokens(1, 1000, 7);
        assert_eq!(tokens, seeded_tokens(1, 1000, 7));
        assert_ne!(tokens, seeded_tokens(2, 1000, 7));
        assert!(tokens.iter().all(|&t| t < 7));
        assert!((0..7).all(|t| tokens.contains(&t)));
    }
}
