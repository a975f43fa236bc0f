//! Parses statements: from pieces to the syntax tree.

mod expr;

use std::sync::Arc;

use super::MAX_DEPTH;
use super::ast::{Call, Expr, ForLoop, MacroDef, Stmt, StmtKind, Takes, Target};
use super::fault::{Fault, Res};
use super::lexer::{Piece, Token, pieces};

/// The largest number of nodes in a template's tree. Each takes about a hundred bytes.
const MAX_NODES: u32 = 500_000;

/// Parses a template.
pub(super) fn parse(source: &str) -> Res<Vec<Stmt>> {
    let mut parser = Parser::new(pieces(source)?);
    let body = parser.body(&[])?;
    Ok(body)
}

/// Goes through the pieces and, within a tag, through its tokens.
pub(super) struct Parser {
    pieces: std::vec::IntoIter<(Piece, u32)>,
    tokens: Vec<(Token, u32)>,
    at: usize,
    line: u32,
    depth: u32,
    n_nodes: u32,
    /// The special names that the bodies of unfinished macros have used.
    takes: Vec<Takes>,
}

impl Parser {
    fn new(pieces: Vec<(Piece, u32)>) -> Self {
        let pieces = pieces.into_iter();
        Self { pieces, tokens: Vec::new(), at: 0, line: 1, depth: 0, n_nodes: 0, takes: Vec::new() }
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Fault::too_large("levels of nested expressions and blocks", MAX_DEPTH.into());
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Counts a node of the tree.
    fn node(&mut self) -> Res<()> {
        self.n_nodes += 1;
        if self.n_nodes > MAX_NODES {
            return Fault::too_large("expressions and statements", MAX_NODES.into());
        }
        Ok(())
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn peek_second(&self) -> Option<&Token> {
        self.tokens.get(self.at + 1).map(|(token, _)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let (token, line) = self.tokens.get(self.at)?;
        (self.at, self.line) = (self.at + 1, *line);
        Some(token.clone())
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(o)) if *o == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(n)) if n == name)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn expect_op(&mut self, op: &str) -> Res<()> {
        if self.skip_op(op) { Ok(()) } else { self.unexpected(&format!("'{op}'")) }
    }

    fn expect_name(&mut self) -> Res<String> {
        match self.peek() {
            Some(Token::Name(_)) => match self.next() {
                Some(Token::Name(name)) => Ok(name),
                _ => self.unexpected("a name"),
            },
            _ => self.unexpected("a name"),
        }
    }

    fn unexpected<T>(&self, want: &str) -> Res<T> {
        let line = self.tokens.get(self.at).map_or(self.line, |(_, line)| *line);
        let got = match self.peek() {
            None => "the end of the tag".to_owned(),
            Some(Token::Op(op)) => format!("'{op}'"),
            Some(Token::Name(name)) => format!("'{name}'"),
            Some(Token::Str(_)) => "a string".to_owned(),
            Some(Token::Int(_) | Token::Float(_)) => "a number".to_owned(),
        };
        Fault::syntax(line, format!("expected {want}, got {got}"))
    }

    fn end_of_tag(&self) -> Res<()> {
        if self.at == self.tokens.len() { Ok(()) } else { self.unexpected("the end of the tag") }
    }

    /// Statements up to a tag that begins with one of `ends`; the next token is that name. Without ends, up to the end
    /// of the template.
    fn body(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        self.nested(|p| {
            let mut body = Vec::new();
            while let Some((piece, line)) = p.pieces.next() {
                p.node()?;
                p.line = line;
                match piece {
                    Piece::Text(text) => body.push(Stmt { line, kind: StmtKind::Text(text) }),
                    Piece::Print(tokens) => {
                        (p.tokens, p.at) = (tokens, 0);
                        let expr = p.tuple(true)?;
                        p.end_of_tag()?;
                        body.push(Stmt { line, kind: StmtKind::Print(expr) });
                    }
                    Piece::Block(tokens) => {
                        (p.tokens, p.at) = (tokens, 0);
                        if ends.iter().any(|end| p.is_name(end)) {
                            return Ok(body);
                        }
                        let kind = p.statement()?;
                        p.end_of_tag()?;
                        body.push(Stmt { line, kind });
                    }
                }
            }
            match ends {
                [] => Ok(body),
                _ => Fault::syntax(p.line, format!("the template ends without {}", ends.join(" or "))),
            }
        })
    }

    /// A body up to its only end, which is skipped.
    fn closed(&mut self, end: &str) -> Res<Vec<Stmt>> {
        self.end_of_tag()?;
        let body = self.body(&[end])?;
        self.at += 1;
        Ok(body)
    }

    fn statement(&mut self) -> Res<StmtKind> {
        let name = self.expect_name()?;
        match name.as_str() {
            "if" => self.conditions(),
            "for" => self.for_loop(),
            "set" => self.set(),
            "macro" => {
                let name = self.expect_name()?;
                let (params, defaults) = self.signature()?;
                Ok(StmtKind::Macro(Arc::new(self.macro_body(name.into(), params, defaults, "endmacro")?)))
            }
            "call" => {
                let (params, defaults) =
                    if self.is_op("(") { self.signature()? } else { (Vec::new(), Vec::new()) };
                let callee = self.expression()?;
                if !matches!(callee, Expr::Call(..)) {
                    return Fault::syntax(self.line, "expected call");
                }
                let body = self.macro_body("caller".into(), params, defaults, "endcall")?;
                Ok(StmtKind::CallBlock(callee, Arc::new(body)))
            }
            "filter" => {
                let mut filters = vec![self.filter_call()?];
                filters.append(&mut self.filters()?);
                Ok(StmtKind::FilterBlock(filters, self.closed("endfilter")?))
            }
            "with" => {
                let mut values = Vec::new();
                while self.peek().is_some() {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = Target::Name(self.expect_name()?.into());
                    self.expect_op("=")?;
                    values.push((target, self.expression()?));
                }
                Ok(StmtKind::With(values, self.closed("endwith")?))
            }
            "block" => {
                let name = self.expect_name()?;
                while self.skip_name("scoped") || self.skip_name("required") {}
                let body = self.closed("endblock")?;
                self.skip_name(&name);
                Ok(StmtKind::Scoped(body))
            }
            "generation" => Ok(StmtKind::Scoped(self.closed("endgeneration")?)),
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            "autoescape" => {
                if !(self.skip_name("false") || self.skip_name("False")) {
                    return Fault::syntax(self.line, "autoescape is not supported in chat templates");
                }
                Ok(StmtKind::Scoped(self.closed("endautoescape")?))
            }
            "include" | "import" | "from" | "extends" => {
                Fault::syntax(self.line, format!("'{name}': a chat template has no other templates"))
            }
            _ => Fault::syntax(self.line, format!("Encountered unknown tag '{name}'.")),
        }
    }

    fn conditions(&mut self) -> Res<StmtKind> {
        let mut arms = Vec::new();
        loop {
            let condition = self.tuple(false)?;
            self.end_of_tag()?;
            let body = self.body(&["elif", "else", "endif"])?;
            arms.push((condition, body));
            if self.skip_name("elif") {
                continue;
            }
            let otherwise = if self.skip_name("else") { self.closed("endif")? } else { Vec::new() };
            self.skip_name("endif");
            return Ok(StmtKind::If(arms, otherwise));
        }
    }

    fn for_loop(&mut self) -> Res<StmtKind> {
        let target = self.targets(&["in"])?;
        if !self.skip_name("in") {
            return self.unexpected("'in'");
        }
        let iter = self.tuple_without_condition()?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.end_of_tag()?;
        let body = self.body(&["else", "endfor"])?;
        let otherwise = if self.skip_name("else") { self.closed("endfor")? } else { Vec::new() };
        self.skip_name("endfor");
        Ok(StmtKind::For(Arc::new(ForLoop { target, iter, filter, recursive, body, otherwise })))
    }

    fn set(&mut self) -> Res<StmtKind> {
        let target = self.targets(&[])?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true)?));
        }
        let filters = self.filters()?;
        Ok(StmtKind::SetBlock(target, filters, self.closed("endset")?))
    }

    /// One target, or several with commas, up to one of `ends`.
    fn targets(&mut self, ends: &[&str]) -> Res<Target> {
        let mut list = Vec::new();
        let mut is_tuple = false;
        loop {
            list.push(self.target()?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
            if self.is_op("=") || self.peek().is_none() || ends.iter().any(|end| self.is_name(end)) {
                break;
            }
        }
        match (list.pop(), is_tuple) {
            (Some(one), false) => Ok(one),
            (Some(last), true) => {
                list.push(last);
                Ok(Target::Tuple(list))
            }
            (None, _) => self.unexpected("a name"),
        }
    }

    fn target(&mut self) -> Res<Target> {
        self.node()?;
        if self.skip_op("(") {
            return self.nested(|p| {
                let inner = p.targets(&[])?;
                p.expect_op(")")?;
                Ok(inner)
            });
        }
        let name = self.expect_name()?;
        if self.skip_op(".") {
            return Ok(Target::Attr(name.into(), self.expect_name()?));
        }
        if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
            return Fault::syntax(self.line, format!("can't assign to '{name}'"));
        }
        Ok(Target::Name(name.into()))
    }

    /// The parameters of a macro: their names, and the defaults of the last ones.
    fn signature(&mut self) -> Res<(Vec<Arc<str>>, Vec<Expr>)> {
        self.expect_op("(")?;
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            params.push(self.expect_name()?.into());
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return Fault::syntax(self.line, "non-default argument follows default argument");
            }
        }
        self.expect_op(")")?;
        Ok((params, defaults))
    }

    fn macro_body(
        &mut self,
        name: Arc<str>,
        params: Vec<Arc<str>>,
        defaults: Vec<Expr>,
        end: &str,
    ) -> Res<MacroDef> {
        self.takes.push(Takes::default());
        let body = self.closed(end)?;
        let takes = self.takes.pop().unwrap_or_default();
        Ok(MacroDef { name, params, defaults, body, takes })
    }

    /// `| filter | filter`.
    fn filters(&mut self) -> Res<Vec<Call>> {
        let mut filters = Vec::new();
        while self.skip_op("|") {
            filters.push(self.filter_call()?);
        }
        Ok(filters)
    }

    /// A name that an expression reads.
    fn note_name(&mut self, name: &str) {
        if let Some(takes) = self.takes.last_mut() {
            match name {
                "varargs" => takes.varargs = true,
                "kwargs" => takes.kwargs = true,
                "caller" => takes.caller = true,
                _ => {}
            }
        }
    }
}
