//! Iteration over values, and the `loop` variable.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::ForLoop;
use super::budget::{Budget, Items};
use super::fault::{Fault, Res};
use super::scope::Scope;
use super::value::{Dict, Range, Seq, Stream, Text, Value, View};

/// An iterator over a value.
#[derive(Debug)]
pub(super) enum Iter {
    Empty,
    Seq(Rc<Seq>, usize),
    /// A text and the byte at which its next character begins.
    Chars(Text, usize),
    Dict(View, Rc<Dict>, usize),
    Range(Range, usize),
    Stream(Rc<Stream>),
    Vec(std::vec::IntoIter<Value>),
}

impl Iter {
    /// An iterator over `value`.
    pub(super) fn over(value: &Value) -> Res<Self> {
        Ok(match value {
            Value::Undefined(_) => Self::Empty,
            Value::List(seq) | Value::Tuple(seq) => Self::Seq(Rc::clone(seq), 0),
            Value::Str(text) => Self::Chars(text.clone(), 0),
            Value::Dict(dict) => Self::Dict(View::Keys, Rc::clone(dict), 0),
            Value::View(view, dict) => Self::Dict(*view, Rc::clone(dict), 0),
            Value::Range(range) => Self::Range(*range, 0),
            Value::Stream(stream) => Self::Stream(Rc::clone(stream)),
            other => return Fault::failed(format!("'{}' object is not iterable", other.type_name())),
        })
    }

    /// The next item.
    pub(super) fn next(&mut self, budget: &Budget) -> Res<Option<Value>> {
        budget.step()?;
        Ok(match self {
            Self::Empty => None,
            Self::Seq(seq, at) => {
                let item = seq.items().get(*at).cloned();
                *at += 1;
                item
            }
            Self::Chars(text, at) => match text.as_str()[*at..].chars().next() {
                Some(c) => {
                    *at += c.len_utf8();
                    Some(budget.string(c.to_string())?)
                }
                None => None,
            },
            Self::Dict(view, dict, at) => {
                let entry = dict.entry(*at);
                *at += 1;
                match (view, entry) {
                    (_, None) => None,
                    (View::Keys, Some((key, _))) => Some(key.clone()),
                    (View::Values, Some((_, value))) => Some(value.clone()),
                    (View::Items, Some((key, value))) => {
                        Some(budget.tuple(vec![key.clone(), value.clone()])?)
                    }
                }
            }
            Self::Range(range, at) => {
                let item = (*at < range.len).then(|| range.get(*at));
                *at += 1;
                item
            }
            Self::Stream(stream) => stream.next()?,
            Self::Vec(items) => items.next(),
        })
    }

    /// All remaining items.
    pub(super) fn rest<'b>(mut self, budget: &'b Budget) -> Res<Items<'b, Value>> {
        let mut items = Items::new(budget);
        while let Some(item) = self.next(budget)? {
            items.push(item)?;
        }
        Ok(items)
    }
}

/// All items of a value.
pub(super) fn items_of<'b>(budget: &'b Budget, value: &Value) -> Res<Items<'b, Value>> {
    Iter::over(value)?.rest(budget)
}

/// The items of a value as a plain list, which must be dropped before the next statement.
pub(super) fn vec_of(budget: &Budget, value: &Value) -> Res<Vec<Value>> {
    Ok(items_of(budget, value)?.finish().0)
}

/// The value of `loop` in the body of a loop.
#[derive(Debug)]
pub(super) struct LoopState {
    pub(super) depth0: usize,
    pub(super) idx: Cell<usize>,
    iter: RefCell<Iter>,
    /// The item after the current one, if it has been fetched.
    ahead: RefCell<Option<Option<Value>>>,
    pub(super) previous: RefCell<Option<Value>>,
    current: RefCell<Option<Value>>,
    len: Cell<Option<usize>>,
    /// The arguments of the last call of `changed`.
    pub(super) last_changed: RefCell<Option<Vec<Value>>>,
    /// The loop and its outer scope, if the loop is recursive.
    pub(super) recurse: Option<(Arc<ForLoop>, Rc<Scope>)>,
}

impl LoopState {
    pub(super) fn new(iter: Iter, len: Option<usize>, depth0: usize) -> Self {
        Self {
            depth0,
            idx: Cell::new(0),
            iter: RefCell::new(iter),
            ahead: RefCell::new(None),
            previous: RefCell::new(None),
            current: RefCell::new(None),
            len: Cell::new(len),
            last_changed: RefCell::new(None),
            recurse: None,
        }
    }

    /// Moves to the next item.
    pub(super) fn advance(&self, budget: &Budget) -> Res<Option<Value>> {
        let next = self.peek(budget)?;
        self.ahead.replace(None);
        let started = self.current.borrow().is_some();
        if started {
            self.idx.set(self.idx.get() + 1);
        }
        let passed = self.current.replace(next.clone());
        self.previous.replace(passed);
        Ok(next)
    }

    /// The item after the current one.
    pub(super) fn peek(&self, budget: &Budget) -> Res<Option<Value>> {
        if let Some(ahead) = &*self.ahead.borrow() {
            return Ok(ahead.clone());
        }
        let next = self.iter.borrow_mut().next(budget)?;
        self.ahead.replace(Some(next.clone()));
        Ok(next)
    }

    /// The total number of items.
    pub(super) fn len(&self, budget: &Budget) -> Res<usize> {
        if let Some(len) = self.len.get() {
            return Ok(len);
        }
        let mut items = Vec::new();
        let ahead = self.ahead.replace(None);
        let ended = matches!(ahead, Some(None));
        items.extend(ahead.flatten());
        if !ended {
            while let Some(item) = self.iter.borrow_mut().next(budget)? {
                items.push(item);
            }
        }
        let len = self.idx.get() + usize::from(self.current.borrow().is_some()) + items.len();
        self.iter.replace(Iter::Vec(items.into_iter()));
        self.len.set(Some(len));
        Ok(len)
    }

    /// Drops all items.
    pub(super) fn clear(&self) {
        self.iter.replace(Iter::Empty);
        self.ahead.replace(Some(None));
        self.current.replace(None);
        self.previous.replace(None);
        self.last_changed.replace(None);
    }
}
