//! Splits preprocessed Metal source into tokens. White space and line markers are also tokens, so that writing all
//! tokens gives the source unchanged.

/// The kind of a token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Identifier,
    Number,
    /// A string or character literal.
    Literal,
    Punctuation,
    /// `[[…]]`, with the tokens inside (without white space).
    Attribute(Vec<Token>),
    /// A line that begins with `#`.
    Directive,
    Space,
}

/// A token, and the line of the kernel's source on which it begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    pub(crate) line: u32,
}

impl Token {
    /// Whether the token has no meaning: it is white space or a line marker.
    pub(crate) fn is_blank(&self) -> bool {
        matches!(self.kind, Kind::Space | Kind::Directive)
    }

    pub(crate) fn is_punctuation(&self, text: &str) -> bool {
        self.kind == Kind::Punctuation && self.text == text
    }

    pub(crate) fn is_identifier(&self, text: &str) -> bool {
        self.kind == Kind::Identifier && self.text == text
    }

    /// The first word of an attribute, such as `buffer` of `[[buffer(0)]]`.
    pub(crate) fn attribute_name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Attribute(body) => body.first().map(|t| t.text.as_str()),
            _ => None,
        }
    }

    /// The argument of an attribute, such as `0` of `[[buffer(0)]]`. Adjacent string literals are joined.
    pub(crate) fn attribute_argument(&self) -> Option<String> {
        match &self.kind {
            Kind::Attribute(body) if body.len() > 3 => {
                let inner = &body[2..body.len() - 1];
                Some(inner.iter().map(|t| t.text.trim_matches('"')).collect())
            }
            _ => None,
        }
    }
}

/// All tokens of `source`. Each attribute is one token.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    fold_attributes(Lexer { rest: source, line: 1, line_start: true }.collect())
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    line_start: bool,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Lexer<'_> {
    /// The kind and the length in bytes of the first token.
    fn front(&self) -> (Kind, usize) {
        let rest = self.rest;
        let run = |keep: fn(char) -> bool| rest.find(|c| !keep(c)).unwrap_or(rest.len());
        let first = rest.chars().next().unwrap_or(' ');
        let second = rest[first.len_utf8()..].chars().next().unwrap_or(' ');
        match first {
            '\n' => (Kind::Space, 1),
            c if c.is_whitespace() => (Kind::Space, run(|c| c.is_whitespace() && c != '\n')),
            '#' if self.line_start => (Kind::Directive, run(|c| c != '\n')),
            '"' | '\'' => (Kind::Literal, literal_length(rest, first)),
            c if c.is_ascii_digit() || (c == '.' && second.is_ascii_digit()) => {
                (Kind::Number, number_length(rest))
            }
            c if is_word(c) => (Kind::Identifier, run(is_word)),
            c => {
                let pair = matches!((c, second), (':', ':') | ('-', '>') | ('&', '&') | ('<', '<'));
                (Kind::Punctuation, c.len_utf8() + usize::from(pair))
            }
        }
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        if self.rest.is_empty() {
            return None;
        }
        let (kind, length) = self.front();
        let (text, rest) = self.rest.split_at(length);
        let token = Token { kind, text: text.to_owned(), line: self.line };
        self.rest = rest;
        if text == "\n" {
            // After a marker for line 0, which g++ writes, `line` is `u32::MAX`.
            self.line = self.line.wrapping_add(1);
            self.line_start = true;
        } else if token.kind != Kind::Space {
            self.line_start = false;
        }
        if token.kind == Kind::Directive {
            // `# 12 "file"` sets the number of the line after it.
            let number = text.trim_start_matches('#').trim_start_matches("line").split_whitespace().next();
            if let Some(n) = number.and_then(|n| n.parse::<u32>().ok()) {
                self.line = n.wrapping_sub(1);
            }
        }
        Some(token)
    }
}

fn literal_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return i + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// The length of a number: digits, letters, points, and signs after an exponent's letter.
fn number_length(rest: &str) -> usize {
    let hex = rest.starts_with("0x") || rest.starts_with("0X");
    let mut previous = ' ';
    for (i, c) in rest.char_indices() {
        let exponent = matches!(previous, 'p' | 'P') || (!hex && matches!(previous, 'e' | 'E'));
        if !(is_word(c) || c == '.' || (matches!(c, '+' | '-') && exponent)) {
            return i;
        }
        previous = c;
    }
    rest.len()
}

fn fold_attributes(tokens: Vec<Token>) -> Vec<Token> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while i < tokens.len() {
        let opens = tokens[i].is_punctuation("[") && tokens.get(i + 1).is_some_and(|t| t.is_punctuation("["));
        let Some(end) = opens.then(|| matching(&tokens, i, "[", "]")).flatten() else {
            out.push(tokens[i].clone());
            i += 1;
            continue;
        };
        let body = tokens[i + 2..end - 1].iter().filter(|t| !t.is_blank()).cloned().collect();
        out.push(Token { kind: Kind::Attribute(body), text: text(&tokens[i..=end]), line: tokens[i].line });
        i = end + 1;
    }
    out
}

/// The position of the bracket that closes the one at `open`.
pub(crate) fn matching(tokens: &[Token], open: usize, opening: &str, closing: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        if token.is_punctuation(opening) {
            depth += 1;
        } else if token.is_punctuation(closing) {
            depth -= 1;
            if depth == 0 {
                return Some(i);
            }
        }
    }
    None
}

/// The source text of `tokens`.
pub(crate) fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|t| t.text.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_the_tokens_out_gives_the_source() {
        let source = "# 3 \"a.metal\"\nkernel void f(device float* x [[buffer(0)]]) { x[0] = 1.e-3f + 0x1p-2 + 'a'; }\n";
        assert_eq!(text(&tokens(source)), source);
    }

    #[test]
    fn line_markers_count() {
        let all = tokens("# 7 \"a\"\nx\ny");
        let lines: Vec<_> = all.iter().filter(|t| t.kind == Kind::Identifier).map(|t| t.line).collect();
        assert_eq!(lines, [7, 8]);
    }

    #[test]
    fn attributes_are_one_token() {
        let all = tokens("a[b[0]] [[ host_name(\"p\" \"q\") ]]");
        let attribute = all.iter().find(|t| matches!(t.kind, Kind::Attribute(_))).unwrap();
        assert_eq!(attribute.attribute_name(), Some("host_name"));
        assert_eq!(attribute.attribute_argument().as_deref(), Some("pq"));
        assert_eq!(all[1].text, "[");
    }

    #[test]
    fn exponents_belong_to_numbers() {
        let numbers = |s: &str| -> Vec<String> {
            tokens(s).into_iter().filter(|t| t.kind == Kind::Number).map(|t| t.text).collect()
        };
        assert_eq!(numbers("1e-3 0xe-1 0x1p+4 .5f"), ["1e-3", "0xe", "1", "0x1p+4", ".5f"]);
    }
}
