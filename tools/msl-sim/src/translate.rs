//! Rewrites preprocessed Metal source into C++ that the shim headers in `shim/` can compile.
//!
//! C++ templates do most of the work. The rewriter changes only what C++ cannot express: kernels get a trampoline that
//! binds their parameters, `threadgroup` variables move into the memory of the group, floating-point literals become
//! `float`, function constants become variables, `constant` implies `const`, and Metal's attributes are removed. Line
//! numbers do not change, so that diagnostics and faults point into the Metal source.

mod kernel;
mod lex;

use std::fmt::Write as _;

pub(crate) use kernel::{BUILT_INS, Binding};
use lex::{Kind, Token, matching, text, tokens};

/// A kernel that can be dispatched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) bindings: Vec<Binding>,
}

/// The translation of one source.
#[derive(Debug)]
pub(crate) struct Translation {
    pub(crate) cpp: String,
    pub(crate) kernels: Vec<Kernel>,
}

/// Why the source cannot be translated.
#[derive(Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) line: u32,
    pub(crate) message: String,
}

fn fail<T>(line: u32, message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { line, message: message.into() })
}

/// Translates `source`, the output of the C preprocessor with line markers.
pub(crate) fn translate(source: &str) -> Result<Translation, Failure> {
    let mut translator = Translator::new(tokens(source));
    translator.run()?;
    Ok(Translation { cpp: translator.out, kernels: translator.kernels })
}

/// A declared kernel. A template becomes a kernel only when it is instantiated.
#[derive(Clone)]
struct Declared {
    name: String,
    bindings: Vec<Binding>,
}

struct Translator {
    tokens: Vec<Token>,
    at: usize,
    out: String,
    declared: Vec<Declared>,
    kernels: Vec<Kernel>,
    /// The kernel whose body is being copied, with the depth at which the body ends. Templates are not recorded here.
    open_kernel: Option<(Declared, usize)>,
    depth: usize,
    /// The depths of the braces of namespaces.
    namespaces: Vec<usize>,
    n_threadgroup_variables: usize,
    /// Whether a statement or declaration can begin here.
    statement_start: bool,
}

impl Translator {
    fn new(tokens: Vec<Token>) -> Self {
        Self {
            tokens,
            at: 0,
            out: String::from("#include <metal_stdlib>\n"),
            declared: Vec::new(),
            kernels: Vec::new(),
            open_kernel: None,
            depth: 0,
            namespaces: Vec::new(),
            n_threadgroup_variables: 0,
            statement_start: true,
        }
    }

    fn run(&mut self) -> Result<(), Failure> {
        while let Some(token) = self.tokens.get(self.at).cloned() {
            match &token.kind {
                Kind::Space | Kind::Directive => {
                    self.out.push_str(&token.text);
                    self.at += 1;
                }
                Kind::Literal => self.copy(&token.text),
                Kind::Number => {
                    let number = float_literal(&token)?;
                    self.copy(&number);
                }
                Kind::Attribute(_) => self.attribute(&token)?,
                Kind::Identifier => self.identifier(&token)?,
                Kind::Punctuation => self.punctuation(&token.text),
            }
        }
        Ok(())
    }

    fn copy(&mut self, text: &str) {
        self.out.push_str(text);
        self.at += 1;
        self.statement_start = false;
    }

    /// Moves to `end`, and counts the lines in between.
    fn skip_to(&mut self, end: usize) {
        let newlines = self.tokens[self.at..end].iter().map(|t| t.text.matches('\n').count()).sum();
        self.out.extend(std::iter::repeat_n('\n', newlines));
        self.at = end;
    }

    /// Whether this is the scope of a file or a namespace, rather than the inside of a function or a type.
    fn at_namespace_scope(&self) -> bool {
        self.depth == self.namespaces.len()
    }

    fn next_meaningful(&self, from: usize) -> Option<&Token> {
        self.tokens[from..].iter().find(|t| !t.is_blank())
    }

    /// The position of the first of `stops` at or after `from`.
    fn find(&self, from: usize, stops: &[&str]) -> Result<usize, Failure> {
        let stop = self.tokens[from..].iter().position(|t| stops.iter().any(|s| t.is_punctuation(s)));
        match stop {
            Some(n) => Ok(from + n),
            None => fail(self.tokens[from].line, format!("expected one of {stops:?} after this")),
        }
    }

    fn attribute(&mut self, token: &Token) -> Result<(), Failure> {
        const DROPPED: [&str; 7] = [
            "host_name",
            "buffer",
            "threadgroup",
            "function_constant",
            "max_total_threads_per_threadgroup",
            "user_annotation",
            "clang",
        ];
        let name = token.attribute_name().unwrap_or("");
        if name == "kernel" {
            return self.kernel();
        }
        if !DROPPED.contains(&name) && !BUILT_INS.contains(&name) {
            self.out.push_str(&token.text);
        }
        self.at += 1;
        Ok(())
    }

    fn identifier(&mut self, token: &Token) -> Result<(), Failure> {
        let word = token.text.as_str();
        let inside_function = !self.at_namespace_scope();
        match word {
            "double" => return fail(token.line, "Metal has no double"),
            "kernel" if self.statement_start => return self.kernel(),
            "template"
                if self.next_meaningful(self.at + 1).is_some_and(|t| t.text != "<")
                    && self.instantiation()? =>
            {
                return Ok(());
            }
            "threadgroup" if self.statement_start && inside_function && self.threadgroup_variable()? => {
                return Ok(());
            }
            "constant" if !inside_function && self.function_constant()? => return Ok(()),
            "constant" => {
                let qualifiers = constant_qualifiers(&self.tokens, self.at);
                self.copy(qualifiers);
                return Ok(());
            }
            "namespace" if self.next_meaningful(self.at + 1).is_some_and(|t| t.kind == Kind::Identifier) => {
                let stop = self.find(self.at, &["{", ";", "="])?;
                if self.tokens[stop].text == "{" {
                    self.out.push_str(&text(&self.tokens[self.at..=stop]));
                    self.namespaces.push(self.depth);
                    self.depth += 1;
                    self.at = stop + 1;
                    self.statement_start = true;
                    return Ok(());
                }
            }
            _ => {}
        }
        let starts =
            matches!(word, "else" | "do") || (self.statement_start && matches!(word, "static" | "const"));
        self.copy(word);
        self.statement_start = starts;
        Ok(())
    }

    fn punctuation(&mut self, mark: &str) {
        self.copy(mark);
        match mark {
            "{" => {
                self.depth += 1;
                self.statement_start = true;
            }
            "}" => {
                self.depth = self.depth.saturating_sub(1);
                self.statement_start = true;
                if self.namespaces.last() == Some(&self.depth) {
                    self.namespaces.pop();
                }
                if let Some((kernel, _)) = self.open_kernel.take_if(|(_, depth)| *depth == self.depth) {
                    let name = kernel.name.clone();
                    self.trampoline(&name, &name, kernel.bindings);
                }
            }
            // A kernel can follow `template <…>`.
            ";" | ":" | ">" => self.statement_start = true,
            _ => {}
        }
    }

    /// `kernel void NAME(PARAMETERS) {`: records the bindings and removes the attributes.
    fn kernel(&mut self) -> Result<(), Failure> {
        let start = self.at;
        let line = self.tokens[start].line;
        let open = self.find(start, &["("])?;
        let Some(close) = matching(&self.tokens, open, "(", ")") else {
            return fail(line, "the kernel's parameter list does not end");
        };
        let Some(name) = self.tokens[start..open].iter().rfind(|t| t.kind == Kind::Identifier) else {
            return fail(line, "the kernel has no name");
        };
        let name = name.text.clone();
        let kernel = Declared { bindings: kernel::bindings(&self.tokens[open + 1..close], &name)?, name };
        let before =
            self.tokens[..start].iter().rfind(|t| !t.is_blank() && !matches!(t.kind, Kind::Attribute(_)));
        let is_template = before.is_some_and(|t| t.is_punctuation(">"));
        if !is_template {
            self.open_kernel = Some((kernel.clone(), self.depth));
        }
        self.declared.push(kernel);
        self.out.push_str("MSL_KERNEL ");
        for i in start + 1..=close {
            let token = &self.tokens[i];
            match &token.kind {
                Kind::Attribute(_) => {}
                _ if token.is_identifier("constant") => {
                    self.out.push_str(constant_qualifiers(&self.tokens, i))
                }
                _ => self.out.push_str(&token.text),
            }
        }
        self.at = close + 1;
        self.statement_start = false;
        Ok(())
    }

    /// `template [[host_name("x")]] [[kernel]] decltype(f<T>) f<T>;`. Returns false if it does not instantiate a
    /// kernel.
    fn instantiation(&mut self) -> Result<bool, Failure> {
        let start = self.at;
        let line = self.tokens[start].line;
        let end = self.find(start, &[";"])?;
        let declaration = &self.tokens[start..end];
        let is_kernel =
            declaration.iter().any(|t| t.attribute_name() == Some("kernel") || t.is_identifier("kernel"));
        if !is_kernel {
            return Ok(false);
        }
        let host_name = declaration
            .iter()
            .find(|t| t.attribute_name() == Some("host_name"))
            .and_then(Token::attribute_argument);
        let Some(close) = declaration.iter().rposition(|t| t.is_punctuation(">")) else {
            return fail(line, "a kernel is instantiated without template arguments");
        };
        let Some(name_at) = template_name(declaration, close) else {
            return fail(line, "a kernel is instantiated without a name");
        };
        let name = declaration[name_at].text.clone();
        let expression = text(&declaration[name_at..=close]).replace('\n', " ");
        let Some(kernel) = self.declared.iter().find(|k| k.name == name) else {
            return fail(line, format!("there is no kernel template {name}"));
        };
        let bindings = kernel.bindings.clone();
        self.trampoline(&expression, &host_name.unwrap_or_else(|| expression.clone()), bindings);
        self.skip_to(end + 1);
        self.statement_start = true;
        Ok(true)
    }

    fn trampoline(&mut self, function: &str, host_name: &str, bindings: Vec<Binding>) {
        let id = self.kernels.len();
        let arguments: Vec<String> = bindings
            .iter()
            .enumerate()
            .map(|(i, binding)| match binding {
                Binding::Buffer(n) => format!("MSL_BUFFER(F, {i}, {n})"),
                Binding::Threadgroup(n) => format!("MSL_THREADGROUP_POINTER(F, {i}, {n})"),
                Binding::BuiltIn(name) => format!("MSL_BUILT_IN(F, {i}, {name})"),
            })
            .collect();
        let _ = write!(
            self.out,
            " MSL_TRAMPOLINE_BEGIN({id}) using F = ::msl::Signature<decltype(&{function})>; {function}({}); \
             MSL_TRAMPOLINE_END({id}, \"{host_name}\") ",
            arguments.join(", ")
        );
        self.kernels.push(Kernel { name: host_name.to_owned(), bindings });
    }

    /// A `threadgroup` variable. Returns false if it is a pointer or reference to threadgroup memory.
    fn threadgroup_variable(&mut self) -> Result<bool, Failure> {
        let Some(declaration) = declarators(&self.tokens[self.at + 1..])? else { return Ok(false) };
        let end = self.at + 1 + declaration.length;
        let body = text(&self.tokens[self.at + 1..end]).replace('\n', " ");
        let id = self.n_threadgroup_variables;
        self.n_threadgroup_variables += 1;
        let _ = write!(self.out, "MSL_TG_BEGIN({id}) {body}; MSL_TG_END({id})");
        for name in declaration.names {
            let _ = write!(self.out, " MSL_TG_NAME({id}, {name})");
        }
        self.out.push(' ');
        self.skip_to(end + 1);
        self.statement_start = true;
        Ok(true)
    }

    /// `constant T name [[function_constant(id)]];`. Returns false if it is another declaration.
    fn function_constant(&mut self) -> Result<bool, Failure> {
        let stop = self.find(self.at, &[";", "{", "=", "("])?;
        let declaration = &self.tokens[self.at + 1..stop];
        let attribute = declaration.iter().find(|t| t.attribute_name() == Some("function_constant"));
        let Some(id) = attribute.and_then(Token::attribute_argument) else { return Ok(false) };
        let words: Vec<&str> =
            declaration.iter().filter(|t| t.kind == Kind::Identifier).map(|t| t.text.as_str()).collect();
        let Some((name, ty)) = words.split_last() else {
            return fail(self.tokens[self.at].line, "a function constant needs a type and a name");
        };
        let _ = write!(self.out, "MSL_FUNCTION_CONSTANT({id}, {}, {name})", ty.join(" "));
        self.skip_to(stop + 1);
        self.statement_start = true;
        Ok(true)
    }
}

/// The name before the template arguments that end at `close`.
fn template_name(tokens: &[Token], close: usize) -> Option<usize> {
    let mut depth = 0usize;
    for i in (0..=close).rev() {
        if tokens[i].is_punctuation(">") {
            depth += 1;
        } else if tokens[i].is_punctuation("<") {
            depth -= 1;
            if depth == 0 {
                return tokens[..i].iter().rposition(|t| t.kind == Kind::Identifier);
            }
        }
    }
    None
}

struct Declarators {
    names: Vec<String>,
    /// The number of tokens up to the semicolon.
    length: usize,
}

/// The names in a variable declaration; `None` if it declares pointers or references.
fn declarators(tokens: &[Token]) -> Result<Option<Declarators>, Failure> {
    let (mut depth, mut angle) = (0i32, 0i32);
    let (mut names, mut last, mut named) = (Vec::new(), String::new(), false);
    for (length, token) in tokens.iter().enumerate() {
        if token.kind == Kind::Identifier && depth == 0 && angle == 0 && !named {
            last.clone_from(&token.text);
        }
        if token.kind != Kind::Punctuation {
            continue;
        }
        let outside = depth == 0 && angle == 0;
        match token.text.as_str() {
            "*" | "&" if outside => return Ok(None),
            "=" if outside => return fail(token.line, "a threadgroup variable cannot have an initialiser"),
            ";" if depth == 0 => {
                if !named {
                    names.push(last);
                }
                return Ok(Some(Declarators { names, length }));
            }
            "," if outside => {
                if !named {
                    names.push(std::mem::take(&mut last));
                }
                named = false;
            }
            "<" if depth == 0 && !named => angle += 1,
            ">" if depth == 0 && !named => angle -= 1,
            "(" | "{" => depth += 1,
            "[" => {
                if outside && !named {
                    names.push(last.clone());
                    named = true;
                }
                depth += 1;
            }
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
    }
    fail(tokens.first().map_or(0, |t| t.line), "the declaration of a threadgroup variable does not end")
}

/// `constant` implies `const`, which C++ accepts only once.
fn constant_qualifiers(tokens: &[Token], at: usize) -> &'static str {
    const QUALIFIERS: [&str; 7] = ["const", "static", "constexpr", "inline", "extern", "typedef", "device"];
    let is_const = |neighbours: &mut dyn Iterator<Item = &Token>| {
        neighbours
            .filter(|t| !t.is_blank())
            .take_while(|t| QUALIFIERS.contains(&t.text.as_str()))
            .any(|t| t.text == "const")
    };
    if is_const(&mut tokens[..at].iter().rev()) || is_const(&mut tokens[at + 1..].iter()) {
        "constant"
    } else {
        "constant const"
    }
}

/// In Metal a floating-point literal is a float. The suffix `h` makes it a half and `bf` a bfloat.
fn float_literal(token: &Token) -> Result<String, Failure> {
    let lower = token.text.to_lowercase();
    let hex = lower.starts_with("0x");
    let is_float = lower.contains('.')
        || (hex && lower.contains('p'))
        || (!hex && (lower.contains('e') || lower.ends_with('f') || lower.ends_with('h')));
    if !is_float {
        return Ok(token.text.clone());
    }
    let with_point = |digits: &str| {
        let point = if digits.contains(['.', 'e', 'p']) { "" } else { "." };
        format!("{digits}{point}f")
    };
    if let Some(digits) = lower.strip_suffix("bf").filter(|_| !hex) {
        Ok(format!("bfloat({})", with_point(digits)))
    } else if let Some(digits) = lower.strip_suffix('h') {
        Ok(format!("half({})", with_point(digits)))
    } else if lower.ends_with('f') {
        Ok(token.text.clone())
    } else if lower.ends_with('l') {
        fail(token.line, "Metal has no long double")
    } else {
        Ok(format!("{}f", token.text))
    }
}
