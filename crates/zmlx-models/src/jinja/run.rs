//! Runs statements.

mod attributes;
mod expr;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::MAX_DEPTH;
use super::ast::{Call, ForLoop, MacroDef, Stmt, StmtKind, Target};
use super::budget::{Budget, Charge, Out};
use super::calls::Args;
use super::fault::{Fault, Res};
use super::iter::{Iter, LoopState, vec_of};
use super::ops;
use super::scope::Scope;
use super::text::write_str;
use super::value::{Macro, Namespace, Value};

/// Renders a template with its variables.
pub(super) fn render(body: &[Stmt], variables: &Map<String, Json>) -> Res<String> {
    let budget = Budget::new();
    let context = variables.iter().map(|(name, value)| Ok((name.clone(), budget.json(value)?)));
    let context = context.collect::<Res<_>>()?;
    budget.begin();
    let run = Run {
        budget: &budget,
        context,
        names: Names {
            loop_: "loop".into(),
            varargs: "varargs".into(),
            kwargs: "kwargs".into(),
            caller: "caller".into(),
        },
        depth: Cell::new(0),
        namespaces: RefCell::default(),
        captured: RefCell::default(),
    };
    let mut out = Out::new(&budget);
    match run.body(body, &Scope::outermost(), &mut out)? {
        Flow::Next => Ok(out.finish().0),
        Flow::Break | Flow::Continue => Fault::failed("break or continue outside of a loop"),
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// Variables that the interpreter sets.
struct Names {
    loop_: Arc<str>,
    varargs: Arc<str>,
    kwargs: Arc<str>,
    caller: Arc<str>,
}

/// The state of one rendering.
pub(super) struct Run<'b> {
    pub(super) budget: &'b Budget,
    context: HashMap<String, Value>,
    names: Names,
    depth: Cell<u32>,
    /// All namespaces. They can contain themselves, so they are emptied at the end.
    namespaces: RefCell<Vec<(Rc<Namespace>, Charge)>>,
    /// The scopes that macros hold, which are emptied at the end too.
    captured: RefCell<Vec<(Rc<Scope>, Charge)>>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.namespaces.borrow().iter().for_each(|(namespace, _)| namespace.clear());
        self.captured.borrow().iter().for_each(|(scope, _)| scope.clear());
    }
}

impl Run<'_> {
    /// Runs `work` one level deeper.
    pub(super) fn nested<T>(&self, work: impl FnOnce() -> Res<T>) -> Res<T> {
        let depth = self.depth.get() + 1;
        if depth > MAX_DEPTH {
            return Fault::too_large("levels of nested expressions, blocks and calls", MAX_DEPTH.into());
        }
        self.depth.set(depth);
        let done = work();
        self.depth.set(depth - 1);
        done
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str, scope: &Scope) -> Value {
        if let Some(value) = scope.get(name) {
            return value;
        }
        if let Some(value) = self.context.get(name) {
            return value.clone();
        }
        match super::calls::FUNCTIONS.iter().find(|f| **f == name) {
            Some(function) => Value::Function(function),
            None => Value::Undefined(format!("'{name}' is undefined").into()),
        }
    }

    /// A new namespace.
    pub(super) fn namespace(&self) -> Res<Rc<Namespace>> {
        let namespace = Rc::new(Namespace::empty());
        self.namespaces.borrow_mut().push((Rc::clone(&namespace), self.budget.charge(200)?));
        Ok(namespace)
    }

    fn body(&self, body: &[Stmt], scope: &Rc<Scope>, out: &mut Out<'_>) -> Res<Flow> {
        self.nested(|| {
            for stmt in body {
                self.budget.step()?;
                let flow = self.statement(stmt, scope, out).map_err(|fault| fault.at(stmt.line))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    /// Runs a body in a scope of its own.
    fn scoped(&self, body: &[Stmt], scope: &Rc<Scope>, out: &mut Out<'_>) -> Res<Flow> {
        self.body(body, &Scope::within(scope), out)
    }

    /// The text that a body writes.
    fn captured_text(&self, body: &[Stmt], scope: &Rc<Scope>) -> Res<Value> {
        let mut out = Out::new(self.budget);
        match self.body(body, scope, &mut out)? {
            Flow::Next => self.budget.written(out),
            Flow::Break | Flow::Continue => Fault::failed("break or continue outside of a loop"),
        }
    }

    fn statement(&self, stmt: &Stmt, scope: &Rc<Scope>, out: &mut Out<'_>) -> Res<Flow> {
        match &stmt.kind {
            StmtKind::Text(text) => out.push(text)?,
            StmtKind::Print(expr) => {
                let value = self.eval(expr, scope)?;
                write_str(out, &value)?;
            }
            StmtKind::If(arms, otherwise) => {
                for (condition, body) in arms {
                    if ops::truth(self.budget, &self.eval(condition, scope)?)? {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            StmtKind::For(for_loop) => {
                let items = self.eval(&for_loop.iter, scope)?;
                self.for_loop(for_loop, &items, 0, scope, out)?;
            }
            StmtKind::Set(target, expr) => {
                let value = self.eval(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filters, body) => {
                let text = self.captured_text(body, &Scope::within(scope))?;
                let value = self.filtered(text, filters, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::FilterBlock(filters, body) => {
                let text = self.captured_text(body, &Scope::within(scope))?;
                write_str(out, &self.filtered(text, filters, scope)?)?;
            }
            StmtKind::Macro(def) => {
                let value = self.new_macro(def, scope)?;
                scope.set(&def.name, value);
            }
            StmtKind::CallBlock(callee, def) => {
                let caller = self.new_macro(def, scope)?;
                let value = self.call_with_caller(callee, caller, scope)?;
                write_str(out, &value)?;
            }
            StmtKind::With(values, body) => {
                let inner = Scope::within(scope);
                for (target, expr) in values {
                    let value = self.eval(expr, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner, out);
            }
            StmtKind::Scoped(body) => return self.scoped(body, scope, out),
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn filtered(&self, text: Value, filters: &[Call], scope: &Rc<Scope>) -> Res<Value> {
        filters.iter().try_fold(text, |value, call| {
            let args = self.args(&call.arguments, scope)?;
            self.filter(&call.name, value, args)
        })
    }

    /// A macro that sees the variables of `scope`.
    fn new_macro(&self, def: &Arc<MacroDef>, scope: &Rc<Scope>) -> Res<Value> {
        let mut captured = Some(scope);
        while let Some(s) = captured.filter(|s| !s.is_captured.get()) {
            s.is_captured.set(true);
            self.captured.borrow_mut().push((Rc::clone(s), self.budget.charge(500)?));
            captured = s.parent();
        }
        Ok(Value::Macro(Rc::new(Macro { def: Arc::clone(def), scope: Rc::clone(scope) })))
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Res<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attr(name, attr) => match self.variable(name, scope) {
                Value::Namespace(namespace) => namespace.set(self.budget, attr, value)?,
                Value::Undefined(what) => return ops::undefined(&what),
                _ => return Fault::failed("cannot assign attribute on non-namespace object"),
            },
            Target::Tuple(targets) => {
                if matches!(value, Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_)) {
                    return Fault::failed(format!("cannot unpack non-iterable {} object", value.type_name()));
                }
                let values = vec_of(self.budget, &value)?;
                let (want, got) = (targets.len(), values.len());
                if got < want {
                    return Fault::failed(format!(
                        "not enough values to unpack (expected {want}, got {got})"
                    ));
                }
                if got > want {
                    return Fault::failed(format!("too many values to unpack (expected {want})"));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a loop over `items`, which is nested in `depth0` levels of recursion.
    pub(super) fn for_loop(
        &self,
        for_loop: &Arc<ForLoop>,
        items: &Value,
        depth0: usize,
        scope: &Rc<Scope>,
        out: &mut Out<'_>,
    ) -> Res<()> {
        let mut len = ops::length(self.budget, items)?;
        let mut iter = Iter::over(items)?;
        if let Some(filter) = &for_loop.filter {
            let mut kept = Vec::new();
            while let Some(item) = iter.next(self.budget)? {
                let inner = Scope::within(scope);
                self.assign(&for_loop.target, item.clone(), &inner)?;
                if ops::truth(self.budget, &self.eval(filter, &inner)?)? {
                    kept.push(item);
                }
            }
            len = None;
            iter = Iter::Vec(kept.into_iter());
        }
        let mut state = LoopState::new(iter, len, depth0);
        if for_loop.recursive {
            state.recurse = Some((Arc::clone(for_loop), Rc::clone(scope)));
        }
        let state = Rc::new(state);
        let ran = self.iterations(for_loop, &state, scope, out);
        state.clear();
        if ran? == 0 {
            self.scoped(&for_loop.otherwise, scope, out)?;
        }
        Ok(())
    }

    /// Runs the body for each item. Returns how often it ran.
    fn iterations(
        &self,
        for_loop: &ForLoop,
        state: &Rc<LoopState>,
        scope: &Rc<Scope>,
        out: &mut Out<'_>,
    ) -> Res<usize> {
        let mut n = 0;
        while let Some(item) = state.advance(self.budget)? {
            n += 1;
            let inner = Scope::within(scope);
            inner.set(&self.names.loop_, Value::Loop(Rc::clone(state)));
            self.assign(&for_loop.target, item, &inner)?;
            if self.body(&for_loop.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(n)
    }

    /// Calls a macro.
    pub(super) fn call_macro(&self, callee: &Macro, args: Args) -> Res<Value> {
        let def = &callee.def;
        let scope = Scope::within(&callee.scope);
        let Args { positional, mut named } = args;
        let n_given = positional.len();
        let mut positional = positional.into_iter();
        let n_required = def.params.len() - def.defaults.len().min(def.params.len());
        let mut missing = Vec::new();
        for (i, param) in def.params.iter().enumerate() {
            let by_name = named.iter().position(|(name, _)| **name == **param);
            let given = match (positional.next(), by_name) {
                (Some(_), Some(_)) => {
                    return Fault::failed(format!(
                        "macro '{}' got multiple values for argument '{param}'",
                        def.name
                    ));
                }
                (Some(value), None) => Some(value),
                (None, Some(at)) => Some(named.remove(at).1),
                (None, None) => None,
            };
            match given {
                Some(value) => scope.set(param, value),
                None => missing.push((i, param)),
            }
        }
        // Defaults are evaluated from left to right. They see the parameters before them.
        for (i, param) in missing {
            let value = match i.checked_sub(n_required).and_then(|d| def.defaults.get(d)) {
                Some(default) => self.eval(default, &scope)?,
                None => Value::Undefined(format!("parameter '{param}' was not provided").into()),
            };
            scope.set(param, value);
        }
        let extra: Vec<Value> = positional.collect();
        if def.takes.varargs {
            scope.set(&self.names.varargs, self.budget.tuple(extra)?);
        } else if !extra.is_empty() {
            return Fault::failed(format!(
                "macro '{}' takes not more than {} argument(s)",
                def.name,
                def.params.len().min(n_given)
            ));
        }
        if let Some(at) = named.iter().position(|(name, _)| name == "caller") {
            let caller = named.remove(at).1;
            if !def.takes.caller {
                return Fault::failed(format!(
                    "macro '{}' was invoked with two values for the special caller argument",
                    def.name
                ));
            }
            scope.set(&self.names.caller, caller);
        } else if def.takes.caller && !def.params.iter().any(|p| **p == *"caller") {
            scope.set(&self.names.caller, Value::Undefined("No caller defined".into()));
        }
        if def.takes.kwargs {
            let mut dict = super::value::Dict::builder(self.budget);
            for (name, value) in named {
                dict.insert(self.budget.str(&name)?, value)?;
            }
            scope.set(&self.names.kwargs, dict.finish()?);
        } else if let Some((name, _)) = named.first() {
            return Fault::failed(format!("macro '{}' takes no keyword argument '{name}'", def.name));
        }
        self.captured_text(&def.body, &scope)
    }
}
