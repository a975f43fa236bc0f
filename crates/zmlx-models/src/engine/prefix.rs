//! Sequences that no request uses any more. They are kept for prompts that begin with the same tokens.
//!
//! There are a few hundred at most, so the longest common prefix is found by a search through all of them. This needs
//! no tree and no hashes, and a prefix can end at any token.

use crate::Slot;

/// The settings of the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixCacheOptions {
    /// The largest number of sequences that are kept; 0 turns the cache off.
    pub max_entries: usize,
    /// The largest number of bytes that they take.
    pub max_bytes: u64,
    /// Common beginnings with fewer tokens are computed again.
    pub min_tokens: usize,
}

impl Default for PrefixCacheOptions {
    /// Keeps everything for which the caches have room, and uses common beginnings of at least 32 tokens.
    fn default() -> Self {
        Self { max_entries: usize::MAX, max_bytes: u64::MAX, min_tokens: 32 }
    }
}

impl PrefixCacheOptions {
    /// Nothing is kept or shared.
    pub const OFF: Self = Self { max_entries: 0, max_bytes: 0, min_tokens: 0 };

    /// True if nothing is kept or shared.
    pub fn is_off(&self) -> bool {
        self.max_entries == 0
    }
}

/// The idle sequences.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    entries: Vec<Entry>,
    /// The number of uses so far, which serves as a clock.
    n_uses: u64,
}

/// An idle sequence.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) slot: Slot,
    /// The tokens that its slot holds.
    pub(super) tokens: Vec<u32>,
    /// Why it is kept.
    pub(super) keep: Keep,
    last_use: u64,
    /// Number of sequences that continued separately from it.
    n_forks: usize,
}

/// Why a sequence is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Its request has ended.
    End,
    /// It is the state before the answer to a prompt.
    Answer,
    /// It is the state at the end of a beginning that several prompts have in common.
    Parting,
}

/// How much of a prompt an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// The entry.
    pub(super) index: usize,
    /// Number of tokens in common.
    pub(super) n_shared: usize,
}

/// Number of equal tokens at the beginnings of two sequences.
pub(super) fn n_common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PrefixCache {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.entries.iter().map(|e| e.slot)
    }

    /// The entry that shares the longest beginning with `tokens`; of equal ones the one that was used last. `shortest`
    /// gives the smallest length to which the sequence of a slot can be shortened.
    pub(super) fn find(&self, tokens: &[u32], shortest: impl Fn(Slot) -> usize) -> Option<Hit> {
        let hits = self.entries.iter().enumerate().filter_map(|(index, e)| {
            let n_shared = n_common(&e.tokens, tokens);
            (n_shared >= shortest(e.slot)).then_some(Hit { index, n_shared })
        });
        hits.max_by_key(|hit| (hit.n_shared, self.entries[hit.index].last_use)).filter(|hit| hit.n_shared > 0)
    }

    pub(super) fn get(&self, index: usize) -> &Entry {
        &self.entries[index]
    }

    /// True if so much of an entry is shared that its sequence is continued instead of forked.
    pub(super) fn goes_on(&self, hit: Hit) -> bool {
        // Nine tenths, in integers.
        hit.n_shared * 10 >= self.entries[hit.index].tokens.len() * 9
    }

    /// Records that a sequence continued separately from an entry.
    pub(super) fn forked(&mut self, index: usize) {
        self.n_uses += 1;
        let entry = &mut self.entries[index];
        entry.last_use = self.n_uses;
        entry.n_forks += 1;
    }

    pub(super) fn remove(&mut self, index: usize) -> Entry {
        self.entries.remove(index)
    }

    /// The largest number of tokens at the beginning that `tokens` and an entry have in common.
    pub(super) fn longest_common(&self, tokens: &[u32]) -> usize {
        self.entries.iter().map(|e| n_common(&e.tokens, tokens)).max().unwrap_or(0)
    }

    /// Keeps a sequence. Returns the sequences that are no longer needed, because they are the beginning of another
    /// one. If the other one cannot be shortened that much (`shortest` gives the limit), it replaces only what no other
    /// conversation would use.
    pub(super) fn insert(
        &mut self,
        slot: Slot,
        tokens: Vec<u32>,
        mut keep: Keep,
        shortest: impl Fn(Slot) -> usize,
    ) -> Vec<Slot> {
        self.n_uses += 1;
        let mut n_forks = 0;
        let mut freed = Vec::new();
        let least = shortest(slot);
        let is_beginning = |e: &Entry| e.tokens.len() <= tokens.len() && tokens.starts_with(&e.tokens);
        // The next prompt may not contain the end of an answer, so the last state before it stays.
        let is_before_answer = |e: &&Entry| keep == Keep::End && e.keep == Keep::Answer && is_beginning(e);
        let last = self.entries.iter().filter(is_before_answer).map(|e| e.tokens.len()).max();
        let is_unneeded = |e: &Entry| {
            let is_replaced = e.keep != Keep::Parting && Some(e.tokens.len()) != last;
            is_beginning(e) && (e.tokens.len() >= least || is_replaced)
        };
        while let Some(index) = self.entries.iter().position(is_unneeded) {
            let old = self.entries.remove(index);
            n_forks += old.n_forks;
            if old.tokens.len() == tokens.len() && old.keep == Keep::Parting {
                keep = Keep::Parting;
            }
            freed.push(old.slot);
        }
        let has_it = |e: &&mut Entry| e.tokens.starts_with(&tokens) && tokens.len() >= shortest(e.slot);
        if let Some(longer) = self.entries.iter_mut().find(has_it) {
            longer.last_use = self.n_uses;
            freed.push(slot);
        } else {
            self.entries.push(Entry { slot, tokens, keep, last_use: self.n_uses, n_forks });
        }
        freed
    }

    /// Removes the least useful entry, but not the one that is in use. Entries from which at most one sequence forked
    /// go first, and of these the one that was unused for the longest time. The others are beginnings that
    /// conversations share.
    pub(super) fn evict(&mut self, apart_from: Option<Slot>) -> Option<Slot> {
        let mut candidates: Vec<_> =
            self.entries.iter().enumerate().filter(|(_, e)| Some(e.slot) != apart_from).collect();
        candidates.sort_by_key(|(_, e)| (e.n_forks > 1, e.last_use));
        let index = candidates.first()?.0;
        Some(self.entries.remove(index).slot)
    }
}
