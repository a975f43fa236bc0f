//! The syntax tree.

use std::sync::Arc;

/// A statement with its line.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) line: u32,
    pub(super) kind: StmtKind,
}

/// The kinds of statements.
#[derive(Debug)]
pub(super) enum StmtKind {
    /// Literal text.
    Text(String),
    /// `{{ … }}`.
    Print(Expr),
    /// Conditions with their bodies, then `else`.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Arc<ForLoop>),
    /// `{% set target = value %}`.
    Set(Target, Expr),
    /// `{% set target %}…{% endset %}`, with the filters in its tag.
    SetBlock(Target, Vec<Call>, Vec<Stmt>),
    Macro(Arc<MacroDef>),
    /// `{% call(…) callee(…) %}…{% endcall %}`. The body is the macro `caller`.
    CallBlock(Expr, Arc<MacroDef>),
    /// `{% filter … %}…{% endfilter %}`.
    FilterBlock(Vec<Call>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    /// A body with a scope of its own: `block`, `generation`.
    Scoped(Vec<Stmt>),
    Break,
    Continue,
}

/// A loop.
#[derive(Debug)]
pub(super) struct ForLoop {
    pub(super) target: Target,
    pub(super) iter: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
}

/// A macro, or the body of a call block.
#[derive(Debug)]
pub(super) struct MacroDef {
    pub(super) name: Arc<str>,
    pub(super) params: Vec<Arc<str>>,
    /// The defaults of the last parameters.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Vec<Stmt>,
    /// Whether the body names `varargs`, `kwargs` or `caller`. If it does not, such arguments are refused.
    pub(super) takes: Takes,
}

/// What a macro accepts besides its parameters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Takes {
    pub(super) varargs: bool,
    pub(super) kwargs: bool,
    pub(super) caller: bool,
}

/// The target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// `ns.attr`.
    Attr(Arc<str>, String),
    Tuple(Vec<Target>),
}

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    Const(Const),
    Name(String),
    /// Concatenated parts: `a ~ b ~ c`.
    Concat(Vec<Expr>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attr(Box<Expr>, String),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Box<Arguments>),
    /// A filter. In a `filter` statement or a `set` block it has no operand.
    Filter(Box<Expr>, Box<Call>),
    Test(Box<Expr>, Box<Call>),
    Not(Box<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `a < b <= c`.
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// `then if condition else otherwise`.
    If(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// A literal.
#[derive(Clone, Debug)]
pub(super) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
}

/// A filter or test with its arguments.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Arguments,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(String, Expr)>,
    /// `*args`.
    pub(super) star: Option<Expr>,
    /// `**kwargs`.
    pub(super) star_star: Option<Expr>,
}

/// Operators on two numbers, texts or lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// Operators that give true or false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}
