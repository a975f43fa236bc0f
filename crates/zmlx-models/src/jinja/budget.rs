//! What a template may cost: steps, and bytes that are alive at one time.

use std::cell::Cell;
use std::rc::Rc;

use super::fault::{Fault, Res};

/// Most steps: nodes of expressions and statements, and 16 bytes of text that an operation passes over. A conversation of
/// a thousand messages takes a few hundred thousand; this many take less than a second.
const MAX_STEPS: u64 = 5_000_000;
/// Most bytes of values and text alive at one time, beside what the variables take.
const MAX_BYTES: usize = 48 << 20;

/// The account of one rendering.
#[derive(Debug)]
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Rc<Cell<usize>>,
    max_bytes: Cell<usize>,
}

impl Budget {
    /// A new account.
    pub(super) fn new() -> Self {
        Self { steps: Cell::new(0), bytes: Rc::default(), max_bytes: Cell::new(usize::MAX) }
    }

    /// From here on the limit holds: what is alive now are the variables of the request.
    pub(super) fn begin(&self) {
        // Values are rarely copied whole; a prompt and a copy of it fit in any case.
        self.max_bytes.set(self.bytes.get().saturating_mul(3).saturating_add(MAX_BYTES));
        self.steps.set(0);
    }

    /// Counts one step.
    pub(super) fn step(&self) -> Res<()> {
        self.steps(1)
    }

    /// Counts the steps of passing over `n_bytes`.
    pub(super) fn pass(&self, n_bytes: usize) -> Res<()> {
        self.steps(1 + n_bytes as u64 / 16)
    }

    /// Counts `n` steps.
    pub(super) fn steps(&self, n: u64) -> Res<()> {
        let steps = self.steps.get().saturating_add(n);
        self.steps.set(steps);
        if steps > MAX_STEPS { Fault::too_large("steps", MAX_STEPS) } else { Ok(()) }
    }

    /// Takes `n` bytes until the charge is dropped. Called before they are allocated.
    pub(super) fn charge(&self, n: usize) -> Res<Charge> {
        let mut charge = Charge { bytes: Rc::clone(&self.bytes), n: 0 };
        charge.grow(self, n)?;
        Ok(charge)
    }

    /// Fails if `n` more bytes would be too many.
    pub(super) fn room(&self, n: usize) -> Res<()> {
        let limit = self.max_bytes.get();
        match self.bytes.get().checked_add(n) {
            Some(total) if total <= limit => Ok(()),
            _ => Fault::too_large("bytes of memory", limit as u64),
        }
    }
}

/// Bytes that are alive.
#[derive(Debug)]
pub(super) struct Charge {
    bytes: Rc<Cell<usize>>,
    n: usize,
}

impl Charge {
    fn grow(&mut self, budget: &Budget, n: usize) -> Res<()> {
        budget.room(n)?;
        self.bytes.set(self.bytes.get() + n);
        self.n += n;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.bytes.set(self.bytes.get().saturating_sub(self.n));
    }
}

/// A text that grows within the budget.
#[derive(Debug)]
pub(super) struct Out<'b> {
    budget: &'b Budget,
    text: String,
    charge: Charge,
}

impl<'b> Out<'b> {
    /// An empty text.
    pub(super) fn new(budget: &'b Budget) -> Self {
        let charge = Charge { bytes: Rc::clone(&budget.bytes), n: 0 };
        Self { budget, text: String::new(), charge }
    }

    /// The account that pays.
    pub(super) fn budget(&self) -> &'b Budget {
        self.budget
    }

    /// Appends a text.
    pub(super) fn push(&mut self, text: &str) -> Res<()> {
        self.charge.grow(self.budget, text.len())?;
        self.budget.pass(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    /// Appends a character.
    pub(super) fn push_char(&mut self, c: char) -> Res<()> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    /// Appends a text `n` times.
    pub(super) fn repeat(&mut self, text: &str, n: usize) -> Res<()> {
        let total = text.len().saturating_mul(n);
        self.charge.grow(self.budget, total)?;
        self.budget.pass(total)?;
        (0..if text.is_empty() { 0 } else { n }).for_each(|_| self.text.push_str(text));
        Ok(())
    }

    /// What was written so far.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The text and its charge.
    pub(super) fn finish(self) -> (String, Charge) {
        (self.text, self.charge)
    }
}

/// A list that grows within the budget.
#[derive(Debug)]
pub(super) struct Items<'b, T> {
    budget: &'b Budget,
    items: Vec<T>,
    charge: Charge,
}

impl<'b, T> Items<'b, T> {
    /// An empty list.
    pub(super) fn new(budget: &'b Budget) -> Self {
        Self { budget, items: Vec::new(), charge: Charge { bytes: Rc::clone(&budget.bytes), n: 0 } }
    }

    /// Appends an item.
    pub(super) fn push(&mut self, item: T) -> Res<()> {
        self.charge.grow(self.budget, size_of::<T>())?;
        self.budget.step()?;
        self.items.push(item);
        Ok(())
    }

    /// Turns the order round.
    pub(super) fn reverse(&mut self) {
        self.items.reverse();
    }

    /// Number of items.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The items and their charge.
    pub(super) fn finish(self) -> (Vec<T>, Charge) {
        (self.items, self.charge)
    }
}
