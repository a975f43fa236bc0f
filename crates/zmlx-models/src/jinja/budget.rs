//! The limits of a template's cost: steps, and bytes in use at one time.

use std::cell::Cell;
use std::rc::Rc;

use super::fault::{Fault, Res};

/// The largest number of steps. A step is a node of an expression or statement, or 16 bytes of text that an operation
/// reads. A conversation of a thousand messages takes a few hundred thousand steps. This many take less than a second.
const MAX_STEPS: u64 = 5_000_000;
/// The largest number of bytes of values and text in use at one time, besides those of the variables.
const MAX_BYTES: usize = 48 << 20;

/// The costs of one rendering so far.
#[derive(Debug)]
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Rc<Cell<usize>>,
    max_bytes: Cell<usize>,
}

impl Budget {
    /// No costs yet.
    pub(super) fn new() -> Self {
        Self { steps: Cell::new(0), bytes: Rc::default(), max_bytes: Cell::new(usize::MAX) }
    }

    /// Applies the limit from now on. What is in use so far belongs to the request's variables.
    pub(super) fn begin(&self) {
        // Values are rarely copied as a whole. A prompt and a copy of it always fit.
        self.max_bytes.set(self.bytes.get().saturating_mul(3).saturating_add(MAX_BYTES));
        self.steps.set(0);
    }

    /// Counts one step.
    pub(super) fn step(&self) -> Res<()> {
        self.steps(1)
    }

    /// Counts the steps for reading `n_bytes`.
    pub(super) fn pass(&self, n_bytes: usize) -> Res<()> {
        self.steps(1 + n_bytes as u64 / 16)
    }

    /// Counts `n` steps.
    pub(super) fn steps(&self, n: u64) -> Res<()> {
        let steps = self.steps.get().saturating_add(n);
        self.steps.set(steps);
        if steps > MAX_STEPS { Fault::too_large("steps", MAX_STEPS) } else { Ok(()) }
    }

    /// Charges `n` bytes until the charge is dropped. Call it before the bytes are allocated.
    pub(super) fn charge(&self, n: usize) -> Res<Charge> {
        let mut charge = Charge { bytes: Rc::clone(&self.bytes), n: 0 };
        charge.grow(self, n)?;
        Ok(charge)
    }

    /// Fails if `n` more bytes would exceed the limit.
    pub(super) fn room(&self, n: usize) -> Res<()> {
        let limit = self.max_bytes.get();
        match self.bytes.get().checked_add(n) {
            Some(total) if total <= limit => Ok(()),
            _ => Fault::too_large("bytes of memory", limit as u64),
        }
    }
}

/// Bytes in use.
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

    /// The budget that is charged.
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

    /// The text so far.
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

    /// Reverses the order.
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
