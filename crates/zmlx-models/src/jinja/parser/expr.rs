//! Parses expressions by Jinja2's precedence.

use super::super::ast::{Arguments, BinaryOp, Call, CompareOp, Const, Expr};
use super::super::fault::{Fault, Res};
use super::super::lexer::Token;
use super::Parser;

impl Parser {
    /// An expression.
    pub(super) fn expression(&mut self) -> Res<Expr> {
        self.nested(Self::conditional)
    }

    /// An expression, or a tuple of several with commas.
    pub(super) fn tuple(&mut self, with_condition: bool) -> Res<Expr> {
        self.tuple_of(with_condition, false)
    }

    /// The expression that a loop iterates over. An `if` after it belongs to the loop.
    pub(super) fn tuple_without_condition(&mut self) -> Res<Expr> {
        self.tuple_of(false, false)
    }

    fn tuple_of(&mut self, with_condition: bool, in_parentheses: bool) -> Res<Expr> {
        let mut list = Vec::new();
        let mut is_tuple = false;
        loop {
            let ends = self.peek().is_none() || self.is_op(")") || self.is_name("recursive");
            if ends && (is_tuple || in_parentheses) {
                break;
            }
            list.push(if with_condition { self.expression()? } else { self.nested(Self::or)? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple || list.is_empty() {
            return Ok(Expr::Tuple(list));
        }
        list.pop().map_or_else(|| self.unexpected("an expression"), Ok)
    }

    fn conditional(&mut self) -> Res<Expr> {
        let mut expr = self.or()?;
        let mut n_levels = 0;
        while self.skip_name("if") {
            self.level(&mut n_levels)?;
            let condition = self.or()?;
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            expr = Expr::If(Box::new(condition), Box::new(expr), otherwise);
        }
        self.depth -= n_levels;
        Ok(expr)
    }

    /// Adds one level of a tree that grows to the left. All levels are subtracted at the end of the loop.
    fn level(&mut self, n_levels: &mut u32) -> Res<()> {
        self.node()?;
        *n_levels += 1;
        self.depth += 1;
        if self.depth > super::MAX_DEPTH {
            return Fault::too_large("levels of nested expressions and blocks", super::MAX_DEPTH.into());
        }
        Ok(())
    }

    fn or(&mut self) -> Res<Expr> {
        let mut left = self.and()?;
        let mut n_levels = 0;
        while self.skip_name("or") {
            self.level(&mut n_levels)?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        self.depth -= n_levels;
        Ok(left)
    }

    fn and(&mut self) -> Res<Expr> {
        let mut left = self.not()?;
        let mut n_levels = 0;
        while self.skip_name("and") {
            self.level(&mut n_levels)?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        self.depth -= n_levels;
        Ok(left)
    }

    fn not(&mut self) -> Res<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Res<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Some(Token::Op("==")) => CompareOp::Eq,
                Some(Token::Op("!=")) => CompareOp::Ne,
                Some(Token::Op("<")) => CompareOp::Lt,
                Some(Token::Op("<=")) => CompareOp::Le,
                Some(Token::Op(">")) => CompareOp::Gt,
                Some(Token::Op(">=")) => CompareOp::Ge,
                Some(Token::Name(n)) if n == "in" => CompareOp::In,
                Some(Token::Name(n)) if n == "not" => match self.peek_second() {
                    Some(Token::Name(n)) if n == "in" => {
                        self.at += 1;
                        CompareOp::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.at += 1;
            self.node()?;
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    /// Operators of one precedence, from the left.
    fn binary(&mut self, ops: &[(&str, BinaryOp)], operand: fn(&mut Self) -> Res<Expr>) -> Res<Expr> {
        let mut left = operand(self)?;
        let mut n_levels = 0;
        while let Some((_, op)) = ops.iter().find(|(text, _)| self.is_op(text)) {
            self.level(&mut n_levels)?;
            self.at += 1;
            left = Expr::Binary(*op, Box::new(left), Box::new(operand(self)?));
        }
        self.depth -= n_levels;
        Ok(left)
    }

    fn sum(&mut self) -> Res<Expr> {
        self.binary(&[("+", BinaryOp::Add), ("-", BinaryOp::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Res<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            self.node()?;
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Res<Expr> {
        let ops =
            [("*", BinaryOp::Mul), ("/", BinaryOp::Div), ("//", BinaryOp::FloorDiv), ("%", BinaryOp::Mod)];
        self.binary(&ops, |p| p.binary(&[("**", BinaryOp::Pow)], Self::unary))
    }

    fn unary(&mut self) -> Res<Expr> {
        self.signed(true)
    }

    fn signed(&mut self, with_filter: bool) -> Res<Expr> {
        self.node()?;
        let expr = if self.skip_op("-") {
            Expr::Neg(Box::new(self.nested(|p| p.signed(false))?))
        } else if self.skip_op("+") {
            Expr::Pos(Box::new(self.nested(|p| p.signed(false))?))
        } else {
            self.primary()?
        };
        let mut n_levels = 0;
        let mut expr = self.postfix(expr, &mut n_levels)?;
        if with_filter {
            expr = self.filters_and_tests(expr, &mut n_levels)?;
        }
        self.depth -= n_levels;
        Ok(expr)
    }

    /// What follows an operand: filters, tests, and calls of their results.
    fn filters_and_tests(&mut self, mut expr: Expr, n_levels: &mut u32) -> Res<Expr> {
        loop {
            if self.skip_op("|") {
                self.level(n_levels)?;
                let call = self.filter_call()?;
                expr = Expr::Filter(Box::new(expr), Box::new(call));
            } else if self.skip_name("is") {
                self.level(n_levels)?;
                expr = self.test(expr)?;
            } else if self.is_op("(") {
                self.level(n_levels)?;
                expr = Expr::Call(Box::new(expr), Box::new(self.arguments()?));
            } else {
                return Ok(expr);
            }
        }
    }

    fn primary(&mut self) -> Res<Expr> {
        match self.peek() {
            Some(Token::Op("(")) => {
                self.at += 1;
                self.nested(|p| {
                    let inner = p.tuple_of(true, true)?;
                    p.expect_op(")")?;
                    Ok(inner)
                })
            }
            Some(Token::Op("[")) => {
                self.at += 1;
                Ok(Expr::List(self.list("]")?))
            }
            Some(Token::Op("{")) => self.dict(),
            Some(Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_)) => self.atom(),
            _ => self.unexpected("an expression"),
        }
    }

    fn atom(&mut self) -> Res<Expr> {
        Ok(match self.next() {
            Some(Token::Str(mut text)) => {
                // Adjacent literals are one text.
                while let Some(Token::Str(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Expr::Const(Const::Str(text))
            }
            Some(Token::Int(i)) => Expr::Const(Const::Int(i)),
            Some(Token::Float(x)) => Expr::Const(Const::Float(x)),
            Some(Token::Name(name)) => match name.as_str() {
                "true" | "True" => Expr::Const(Const::Bool(true)),
                "false" | "False" => Expr::Const(Const::Bool(false)),
                "none" | "None" => Expr::Const(Const::None),
                _ => {
                    self.note_name(&name);
                    Expr::Name(name)
                }
            },
            _ => return self.unexpected("an expression"),
        })
    }

    fn list(&mut self, close: &str) -> Res<Vec<Expr>> {
        let mut items = Vec::new();
        while !self.is_op(close) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op(close) {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.expect_op(close)?;
        Ok(items)
    }

    fn dict(&mut self) -> Res<Expr> {
        self.expect_op("{")?;
        let mut items = Vec::new();
        while !self.is_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_op(":")?;
            items.push((key, self.expression()?));
        }
        self.expect_op("}")?;
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, mut expr: Expr, n_levels: &mut u32) -> Res<Expr> {
        loop {
            if self.skip_op(".") {
                self.level(n_levels)?;
                expr = match self.next() {
                    Some(Token::Name(name)) => Expr::Attr(Box::new(expr), name),
                    Some(Token::Int(i)) => Expr::Item(Box::new(expr), Box::new(Expr::Const(Const::Int(i)))),
                    _ => return Fault::syntax(self.line, "expected name or number"),
                };
            } else if self.skip_op("[") {
                self.level(n_levels)?;
                expr = self.subscript(expr)?;
            } else if self.is_op("(") {
                self.level(n_levels)?;
                expr = Expr::Call(Box::new(expr), Box::new(self.arguments()?));
            } else {
                return Ok(expr);
            }
        }
    }

    fn subscript(&mut self, expr: Expr) -> Res<Expr> {
        let mut parts = [None, None, None];
        let (mut i, mut is_slice) = (0, false);
        while !self.is_op("]") {
            if self.skip_op(":") {
                is_slice = true;
                i += 1;
                if i > 2 {
                    return self.unexpected("']'");
                }
            } else {
                if parts[i].is_some() {
                    return self.unexpected("']' or ':'");
                }
                let part = self.expression()?;
                if self.skip_op(",") {
                    let mut items = vec![part];
                    items.append(&mut self.list("]")?);
                    return Ok(Expr::Item(Box::new(expr), Box::new(Expr::Tuple(items))));
                }
                parts[i] = Some(Box::new(part));
            }
        }
        self.expect_op("]")?;
        if is_slice {
            return Ok(Expr::Slice(Box::new(expr), parts));
        }
        match parts {
            [Some(index), _, _] => Ok(Expr::Item(Box::new(expr), index)),
            _ => Fault::syntax(self.line, "expected subscript expression"),
        }
    }

    fn arguments(&mut self) -> Res<Arguments> {
        self.expect_op("(")?;
        let mut args = Arguments::default();
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            if self.skip_op("**") {
                args.star_star = Some(self.expression()?);
            } else if self.skip_op("*") {
                args.star = Some(self.expression()?);
            } else if let (Some(Token::Name(name)), Some(Token::Op("="))) = (self.peek(), self.peek_second())
            {
                let name = name.clone();
                self.at += 2;
                let value = self.expression()?;
                if args.named.iter().any(|(n, _)| *n == name) {
                    return Fault::syntax(self.line, format!("keyword argument repeated: {name}"));
                }
                args.named.push((name, value));
            } else if !args.named.is_empty() || args.star.is_some() || args.star_star.is_some() {
                return Fault::syntax(self.line, "invalid syntax for function call expression");
            } else {
                args.positional.push(self.expression()?);
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }

    /// A filter's name and arguments.
    pub(super) fn filter_call(&mut self) -> Res<Call> {
        let name = self.dotted_name()?;
        let arguments = if self.is_op("(") { self.arguments()? } else { Arguments::default() };
        Ok(Call { name, arguments })
    }

    fn dotted_name(&mut self) -> Res<String> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name)
    }

    /// The test after `is`.
    fn test(&mut self, operand: Expr) -> Res<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let arguments = match self.peek() {
            Some(Token::Op("(")) => self.arguments()?,
            Some(Token::Name(n)) if matches!(n.as_str(), "else" | "or" | "and") => Arguments::default(),
            Some(Token::Name(n)) if n == "is" => {
                return Fault::syntax(self.line, "You cannot chain multiple tests with is");
            }
            Some(Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{"))
                if !matches!(self.peek(), Some(Token::Name(n)) if matches!(n.as_str(), "if" | "in" | "not" | "recursive")) =>
            {
                let argument = self.primary()?;
                let mut n_levels = 0;
                let argument = self.postfix(argument, &mut n_levels)?;
                self.depth -= n_levels;
                Arguments { positional: vec![argument], ..Arguments::default() }
            }
            _ => Arguments::default(),
        };
        let test = Expr::Test(Box::new(operand), Box::new(Call { name, arguments }));
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }
}
