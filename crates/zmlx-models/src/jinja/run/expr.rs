//! Evaluates expressions.

use std::rc::Rc;

use super::super::ast::{Arguments, CompareOp, Const, Expr};
use super::super::budget::Items;
use super::super::calls::Args;
use super::super::fault::{Fault, Res};
use super::super::iter::Iter;
use super::super::ops;
use super::super::scope::Scope;
use super::super::text::write_str;
use super::super::value::{Dict, Value};
use super::{Out, Run};

impl Run<'_> {
    /// The value of an expression.
    pub(in super::super) fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        self.budget.step()?;
        match expr {
            Expr::Const(constant) => self.constant(constant),
            Expr::Name(name) => Ok(self.variable(name, scope)),
            _ => self.nested(|| self.compound(expr, scope)),
        }
    }

    fn constant(&self, constant: &Const) -> Res<Value> {
        Ok(match constant {
            Const::None => Value::None,
            Const::Bool(b) => Value::Bool(*b),
            Const::Int(i) => Value::Int(*i),
            Const::Float(x) => Value::Float(*x),
            Const::Str(text) => self.budget.str(text)?,
        })
    }

    fn compound(&self, expr: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        match expr {
            Expr::Const(constant) => self.constant(constant),
            Expr::Name(name) => Ok(self.variable(name, scope)),
            Expr::Concat(parts) => {
                // Unlike `+`, this escapes nothing: Jinja2 escapes here only if it escapes all output.
                let mut out = Out::new(self.budget);
                for part in parts {
                    write_str(&mut out, &self.eval(part, scope)?)?;
                }
                self.budget.written(out)
            }
            Expr::List(items) => self.budget.list(self.all(items, scope)?),
            Expr::Tuple(items) => self.budget.tuple(self.all(items, scope)?.finish().0),
            Expr::Dict(pairs) => {
                let mut dict = Dict::builder(self.budget);
                for (key, value) in pairs {
                    dict.insert(self.eval(key, scope)?, self.eval(value, scope)?)?;
                }
                dict.finish()
            }
            Expr::Attr(object, name) => {
                let object = self.eval(object, scope)?;
                self.attribute(&object, name)
            }
            Expr::Item(object, key) => {
                let object = self.eval(object, scope)?;
                let key = self.eval(key, scope)?;
                self.item(&object, &key)
            }
            Expr::Slice(object, parts) => {
                let object = self.eval(object, scope)?;
                let part =
                    |part: &Option<Box<Expr>>| part.as_deref().map(|expr| self.eval(expr, scope)).transpose();
                let parts = [part(&parts[0])?, part(&parts[1])?, part(&parts[2])?];
                ops::sliced(self.budget, &object, parts)
            }
            Expr::Call(callee, arguments) => {
                let callee = self.eval(callee, scope)?;
                let args = self.args(arguments, scope)?;
                self.call(&callee, args)
            }
            Expr::Filter(operand, call) => {
                let value = self.eval(operand, scope)?;
                let args = self.args(&call.arguments, scope)?;
                self.filter(&call.name, value, args)
            }
            Expr::Test(operand, call) => {
                let value = self.eval(operand, scope)?;
                let args = self.args(&call.arguments, scope)?;
                self.check(&call.name, &value, args).map(Value::Bool)
            }
            Expr::Not(operand) => Ok(Value::Bool(!self.is_true(operand, scope)?)),
            Expr::Neg(operand) => self.signed(operand, scope, -1),
            Expr::Pos(operand) => self.signed(operand, scope, 1),
            Expr::And(left, right) => {
                let left = self.eval(left, scope)?;
                if ops::truth(self.budget, &left)? { self.eval(right, scope) } else { Ok(left) }
            }
            Expr::Or(left, right) => {
                let left = self.eval(left, scope)?;
                if ops::truth(self.budget, &left)? { Ok(left) } else { self.eval(right, scope) }
            }
            Expr::Binary(op, left, right) => {
                let (left, right) = (self.eval(left, scope)?, self.eval(right, scope)?);
                ops::binary(self.budget, *op, &left, &right)
            }
            Expr::Compare(first, rest) => {
                let mut left = self.eval(first, scope)?;
                for (op, right) in rest {
                    let right = self.eval(right, scope)?;
                    if !self.compare(*op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::If(condition, then, otherwise) => {
                if self.is_true(condition, scope)? {
                    return self.eval(then, scope);
                }
                match otherwise {
                    Some(otherwise) => self.eval(otherwise, scope),
                    None => Ok(Value::Undefined(
                        "the inline if-expression evaluated to false and no else section was defined.".into(),
                    )),
                }
            }
        }
    }

    fn is_true(&self, expr: &Expr, scope: &Rc<Scope>) -> Res<bool> {
        let value = self.eval(expr, scope)?;
        ops::truth(self.budget, &value)
    }

    fn all(&self, exprs: &[Expr], scope: &Rc<Scope>) -> Res<Items<'_, Value>> {
        let mut items = Items::new(self.budget);
        exprs.iter().try_for_each(|expr| items.push(self.eval(expr, scope)?))?;
        Ok(items)
    }

    fn signed(&self, operand: &Expr, scope: &Rc<Scope>, sign: i128) -> Res<Value> {
        let value = self.eval(operand, scope)?;
        match &value {
            Value::Float(x) => Ok(Value::Float(if sign < 0 { -x } else { *x })),
            Value::Undefined(what) => ops::undefined(what),
            other => match other.as_int() {
                Some(i) => {
                    i.checked_mul(sign).map_or_else(super::super::numbers::too_wide, |i| Ok(Value::Int(i)))
                }
                None => Fault::failed(format!(
                    "bad operand type for unary {}: '{}'",
                    if sign < 0 { "-" } else { "+" },
                    value.type_name()
                )),
            },
        }
    }

    /// `left op right`.
    pub(in super::super) fn compare(&self, op: CompareOp, left: &Value, right: &Value) -> Res<bool> {
        match op {
            CompareOp::Eq => ops::equal(self.budget, left, right),
            CompareOp::Ne => Ok(!ops::equal(self.budget, left, right)?),
            CompareOp::Lt => ops::ordered(self.budget, left, right, "<"),
            CompareOp::Le => ops::ordered(self.budget, left, right, "<="),
            CompareOp::Gt => ops::ordered(self.budget, left, right, ">"),
            CompareOp::Ge => ops::ordered(self.budget, left, right, ">="),
            CompareOp::In => ops::contains(self.budget, right, left),
            CompareOp::NotIn => Ok(!ops::contains(self.budget, right, left)?),
        }
    }

    /// The values of a call's arguments.
    pub(in super::super) fn args(&self, arguments: &Arguments, scope: &Rc<Scope>) -> Res<Args> {
        let mut args = Args::default();
        for expr in &arguments.positional {
            args.positional.push(self.eval(expr, scope)?);
        }
        for (name, expr) in &arguments.named {
            args.named.push((name.clone(), self.eval(expr, scope)?));
        }
        if let Some(star) = &arguments.star {
            let mut items = Iter::over(&self.eval(star, scope)?)?;
            while let Some(item) = items.next(self.budget)? {
                args.positional.push(item);
            }
        }
        if let Some(star_star) = &arguments.star_star {
            let value = self.eval(star_star, scope)?;
            let Value::Dict(dict) = &value else {
                return Fault::failed(format!(
                    "argument after ** must be a mapping, not {}",
                    value.type_name()
                ));
            };
            for (key, value) in dict.iter() {
                self.budget.step()?;
                match key.as_str() {
                    Some(name) if args.named.iter().any(|(n, _)| n == name) => {
                        return Fault::failed(format!("got multiple values for keyword argument '{name}'"));
                    }
                    Some(name) => args.named.push((name.to_owned(), value.clone())),
                    None => return Fault::failed("keywords must be strings"),
                }
            }
        }
        Ok(args)
    }

    /// The value of a call block: the call gets the block as `caller`.
    pub(super) fn call_with_caller(&self, call: &Expr, caller: Value, scope: &Rc<Scope>) -> Res<Value> {
        let Expr::Call(callee, arguments) = call else {
            return Fault::failed("expected call");
        };
        let callee = self.eval(callee, scope)?;
        let mut args = self.args(arguments, scope)?;
        args.named.push(("caller".to_owned(), caller));
        self.call(&callee, args)
    }
}
