//! Scopes: which variables a body sees, and which it sets.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::value::Value;

/// The variables of a body. Its parent is the scope of the body around it.
#[derive(Debug)]
pub(super) struct Scope {
    vars: RefCell<Vec<(Arc<str>, Value)>>,
    parent: Option<Rc<Scope>>,
    /// True if a macro that outlives the body may still see the variables.
    pub(super) is_captured: Cell<bool>,
}

impl Scope {
    /// The outermost scope.
    pub(super) fn outermost() -> Rc<Self> {
        Rc::new(Self { vars: RefCell::default(), parent: None, is_captured: Cell::new(false) })
    }

    /// A scope inside `parent`.
    pub(super) fn within(parent: &Rc<Self>) -> Rc<Self> {
        let parent = Some(Rc::clone(parent));
        Rc::new(Self { vars: RefCell::default(), parent, is_captured: Cell::new(false) })
    }

    /// The scope around this one.
    pub(super) fn parent(&self) -> Option<&Rc<Self>> {
        self.parent.as_ref()
    }

    /// The value of a variable in this scope or an outer one.
    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(s) = scope {
            let vars = s.vars.borrow();
            if let Some((_, value)) = vars.iter().find(|(n, _)| &**n == name) {
                return Some(value.clone());
            }
            scope = s.parent.as_deref();
        }
        None
    }

    /// Sets a variable of this scope.
    pub(super) fn set(&self, name: &Arc<str>, value: Value) {
        let mut vars = self.vars.borrow_mut();
        let old = match vars.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => Some(std::mem::replace(&mut slot.1, value)),
            None => {
                vars.push((Arc::clone(name), value));
                None
            }
        };
        drop(vars);
        drop(old);
    }

    /// Removes the variables, so that scopes and macros that hold each other are freed.
    pub(super) fn clear(&self) {
        let vars = std::mem::take(&mut *self.vars.borrow_mut());
        drop(vars);
    }
}
