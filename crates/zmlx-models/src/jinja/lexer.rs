//! Splits a template into text and tags: where tags begin and end, which white space they remove, and their tokens.

mod tokens;

use super::fault::{Fault, Res};
pub(super) use tokens::Token;
use tokens::Tokens;

/// A piece of a template.
#[derive(Debug)]
pub(super) enum Piece {
    /// Text as it stands.
    Text(String),
    /// `{{ … }}`.
    Print(Vec<(Token, u32)>),
    /// `{% … %}`.
    Block(Vec<(Token, u32)>),
}

/// The pieces of a template, each with its line.
pub(super) fn pieces(source: &str) -> Res<Vec<(Piece, u32)>> {
    let source = plain_line_ends(source);
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, pieces: Vec::new() };
    while lexer.piece()? {}
    Ok(lexer.pieces)
}

/// Turns every line end into `\n`, and drops the last one.
fn plain_line_ends(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// True for the white space of Python's `\s` and `strip`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    /// True at the start, and if what was read last ended a line.
    line_starting: bool,
    pieces: Vec<(Piece, u32)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Block,
    Print,
    Comment,
}

impl<'s> Lexer<'s> {
    /// Reads text and the tag after it. Returns false at the end.
    fn piece(&mut self) -> Res<bool> {
        let rest = &self.source[self.at..];
        let Some((before, tag)) = next_tag(rest) else {
            self.text(rest);
            return Ok(false);
        };
        let sign = rest[before + 2..].chars().next();
        let sign = sign.filter(|c| matches!(c, '-' | '+'));
        // A plus at the start of a print is an operator.
        let sign = sign.filter(|c| *c == '-' || tag != Tag::Print);
        let mut text = &rest[..before];
        match sign {
            Some('-') => text = text.trim_end_matches(is_space),
            Some(_) => {}
            None if tag != Tag::Print => {
                let start = text.rfind('\n').map_or(0, |i| i + 1);
                if (start > 0 || self.line_starting) && text[start..].chars().all(is_space) {
                    text = &text[..start];
                }
            }
            None => {}
        }
        self.text(text);
        self.skip(before + 2 + usize::from(sign.is_some()));
        let line = self.line;
        match tag {
            Tag::Comment => self.comment()?,
            Tag::Print => {
                let tokens = self.tag(tag)?;
                self.pieces.push((Piece::Print(tokens), line));
            }
            Tag::Block => {
                let tokens = self.tag(tag)?;
                if is_raw(&tokens) {
                    self.raw()?;
                } else {
                    self.pieces.push((Piece::Block(tokens), line));
                }
            }
        }
        Ok(true)
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.pieces.push((Piece::Text(text.to_owned()), self.line));
        }
    }

    /// Moves ahead by `n` bytes.
    fn skip(&mut self, n: usize) {
        let passed = &self.source[self.at..self.at + n];
        self.line += passed.bytes().filter(|&b| b == b'\n').count() as u32;
        self.at += n;
        if let Some(last) = passed.bytes().last() {
            self.line_starting = last == b'\n';
        }
    }

    /// The tokens up to the end of the tag.
    fn tag(&mut self, tag: Tag) -> Res<Vec<(Token, u32)>> {
        let mut tokens = Tokens::default();
        loop {
            let rest = &self.source[self.at..];
            if !tokens.is_within_brackets()
                && let Some(n) = end_of(rest, tag)
            {
                // The newline after `{% raw %}` belongs to the text.
                let is_raw = rest.starts_with("%}") && is_raw(&tokens.list);
                self.skip(if is_raw { 2 } else { n });
                return Ok(tokens.list);
            }
            if rest.is_empty() {
                return Fault::syntax(self.line, "unexpected end of template within a tag");
            }
            let n = tokens.next(rest, self.line)?;
            self.skip(n);
        }
    }

    fn comment(&mut self) -> Res<()> {
        let rest = &self.source[self.at..];
        let Some(end) = rest.find("#}") else {
            return Fault::syntax(self.line, "Missing end of comment tag");
        };
        let from = if end > 0 && matches!(rest.as_bytes()[end - 1], b'-' | b'+') { end - 1 } else { end };
        let n = end_of(&rest[from..], Tag::Comment).unwrap_or(2);
        self.skip(from + n);
        Ok(())
    }

    /// Text up to `{% endraw %}`.
    fn raw(&mut self) -> Res<()> {
        let rest = &self.source[self.at..];
        let mut from = 0;
        while let Some(i) = rest[from..].find("{%") {
            let open = from + i;
            let inner = &rest[open + 2..];
            let sign = inner.chars().next().filter(|c| matches!(c, '-' | '+'));
            let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start_matches(is_space);
            if let Some(tail) = inner.strip_prefix("endraw") {
                let tail = tail.trim_start_matches(is_space);
                if let Some(n) = end_of(tail, Tag::Block) {
                    let mut text = &rest[..open];
                    match sign {
                        Some('-') => text = text.trim_end_matches(is_space),
                        Some(_) => {}
                        None => {
                            let start = text.rfind('\n').map_or(0, |i| i + 1);
                            if (start > 0 || self.line_starting) && text[start..].chars().all(is_space) {
                                text = &text[..start];
                            }
                        }
                    }
                    self.text(text);
                    self.skip(rest.len() - tail.len() + n);
                    return Ok(());
                }
            }
            from = open + 2;
        }
        Fault::syntax(self.line, "Missing end of raw directive")
    }
}

fn is_raw(tokens: &[(Token, u32)]) -> bool {
    matches!(tokens, [(Token::Name(name), _)] if name == "raw")
}

/// The place and the kind of the next tag.
fn next_tag(text: &str) -> Option<(usize, Tag)> {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(i) = bytes[from..].iter().position(|&b| b == b'{') {
        let at = from + i;
        match bytes.get(at + 1) {
            Some(b'%') => return Some((at, Tag::Block)),
            Some(b'{') => return Some((at, Tag::Print)),
            Some(b'#') => return Some((at, Tag::Comment)),
            _ => from = at + 1,
        }
    }
    None
}

/// The length of the end of a tag at the start of `text`, with the white space that it removes.
fn end_of(text: &str, tag: Tag) -> Option<usize> {
    let close = match tag {
        Tag::Block => "%}",
        Tag::Print => "}}",
        Tag::Comment => "#}",
    };
    if let Some(rest) = text.strip_prefix('-').and_then(|t| t.strip_prefix(close)) {
        return Some(text.len() - rest.trim_start_matches(is_space).len());
    }
    if tag != Tag::Print
        && let Some(rest) = text.strip_prefix('+').and_then(|t| t.strip_prefix(close))
    {
        return Some(text.len() - rest.len());
    }
    let rest = text.strip_prefix(close)?;
    let newline = tag != Tag::Print && rest.starts_with('\n');
    Some(2 + usize::from(newline))
}
