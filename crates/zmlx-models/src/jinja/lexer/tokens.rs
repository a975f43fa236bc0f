//! The tokens in tags.

use super::super::fault::{Fault, Res};
use super::is_space;

/// A token of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Token {
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    /// An operator or bracket.
    Op(&'static str),
}

/// The longest operators come first.
const OPERATORS: &[&str] = &[
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// The tokens of a tag.
#[derive(Default)]
pub(super) struct Tokens {
    pub(super) list: Vec<(Token, u32)>,
    open: Vec<&'static str>,
}

impl Tokens {
    /// True inside brackets, where a tag does not end.
    pub(super) fn is_within_brackets(&self) -> bool {
        !self.open.is_empty()
    }

    /// Reads white space or a token at the start of `text`; returns its length.
    pub(super) fn next(&mut self, text: &str, line: u32) -> Res<usize> {
        let Some(first) = text.chars().next() else { return Ok(0) };
        if is_space(first) {
            return Ok(text.len() - text.trim_start_matches(is_space).len());
        }
        if first.is_ascii_digit() {
            let after_dot = matches!(self.list.last(), Some((Token::Op("."), _)));
            let (token, n) = number(text, after_dot, line)?;
            self.list.push((token, line));
            return Ok(n);
        }
        if first.is_alphabetic() || first == '_' {
            let n = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
            self.list.push((Token::Name(text[..n].to_owned()), line));
            return Ok(n);
        }
        if matches!(first, '"' | '\'') {
            let (value, n) = string(text, first, line)?;
            self.list.push((Token::Str(value), line));
            return Ok(n);
        }
        let Some(op) = OPERATORS.iter().find(|op| text.starts_with(**op)) else {
            return Fault::syntax(line, format!("unexpected char {first:?}"));
        };
        match *op {
            "(" => self.open.push(")"),
            "[" => self.open.push("]"),
            "{" => self.open.push("}"),
            ")" | "]" | "}" => match self.open.pop() {
                Some(want) if want == *op => {}
                Some(want) => return Fault::syntax(line, format!("unexpected '{op}', expected '{want}'")),
                None => return Fault::syntax(line, format!("unexpected '{op}'")),
            },
            _ => {}
        }
        self.list.push((Token::Op(op), line));
        Ok(op.len())
    }
}

/// The length of digits with single underscores between them.
fn digits(text: &str, is_digit: impl Fn(char) -> bool) -> usize {
    let mut n = 0;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let joins = c == '_' && n > 0 && chars.peek().is_some_and(|c| is_digit(*c));
        if !is_digit(c) && !joins {
            break;
        }
        n += 1;
    }
    n
}

fn number(text: &str, after_dot: bool, line: u32) -> Res<(Token, usize)> {
    let decimal = |c: char| c.is_ascii_digit();
    let whole = digits(text, decimal);
    // `x.0.1` has two indices; it is not the number 0.1.
    let fraction = match text[whole..].strip_prefix('.') {
        Some(rest) if !after_dot => match digits(rest, decimal) {
            0 => 0,
            n => n + 1,
        },
        _ => 0,
    };
    let mut n = whole + fraction;
    let mut is_float = fraction > 0;
    if !after_dot && let Some(rest) = text[n..].strip_prefix(['e', 'E']) {
        let sign = usize::from(rest.starts_with(['+', '-']));
        let exponent = digits(&rest[sign..], decimal);
        if exponent > 0 {
            n += 1 + sign + exponent;
            is_float = true;
        }
    }
    let plain = |t: &str| t.replace('_', "");
    if is_float {
        return match plain(&text[..n]).parse() {
            Ok(x) => Ok((Token::Float(x), n)),
            Err(_) => Fault::syntax(line, "not a number"),
        };
    }
    let radix = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 10,
    };
    let (from, len) = if radix == 10 { (0, n) } else { (2, digits(&text[2..], |c| c.is_digit(radix))) };
    if len > 0 {
        return match i128::from_str_radix(&plain(&text[from..from + len]), radix) {
            Ok(i) => Ok((Token::Int(i), from + len)),
            Err(_) => Fault::syntax(line, "whole numbers beyond 127 bits are not supported"),
        };
    }
    Ok((Token::Int(0), 1))
}

/// A string literal with Python's escapes, and its length.
fn string(text: &str, quote: char, line: u32) -> Res<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return Ok((value, i + 1));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let Some((_, escape)) = chars.next() else { break };
        let mut hex = |n: usize| -> Option<u32> {
            let mut code = 0u32;
            for _ in 0..n {
                let (_, c) = chars.next_if(|(_, c)| c.is_ascii_hexdigit())?;
                code = code.checked_mul(16)? + c.to_digit(16)?;
            }
            Some(code)
        };
        let code = match escape {
            '\n' => continue,
            '\\' | '\'' | '"' => u32::from(escape),
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => 10,
            'r' => 13,
            't' => 9,
            'v' => 11,
            '0'..='7' => {
                let mut code = escape.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some((_, c)) = chars.next_if(|(_, c)| c.is_digit(8)) else { break };
                    code = code * 8 + c.to_digit(8).unwrap_or(0);
                }
                code
            }
            'x' | 'u' | 'U' => {
                let n = match escape {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                match hex(n) {
                    Some(code) => code,
                    None => return Fault::syntax(line, format!("truncated \\{escape} escape")),
                }
            }
            'N' => return Fault::syntax(line, "\\N{…} escapes are not supported"),
            other => {
                value.push('\\');
                value.push(other);
                continue;
            }
        };
        match char::from_u32(code) {
            Some(c) => value.push(c),
            // Half of a pair of surrogates is not a character.
            None => value.push(char::REPLACEMENT_CHARACTER),
        }
    }
    Fault::syntax(line, "unterminated string")
}
