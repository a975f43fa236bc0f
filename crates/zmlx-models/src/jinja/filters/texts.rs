//! Filters for texts.

use super::super::budget::Out;
use super::super::calls::{Args, count_of, str_of};
use super::super::fault::{Fault, Res};
use super::super::format;
use super::super::iter::Iter;
use super::super::lexer::is_space;
use super::super::methods::strings;
use super::super::run::Run;
use super::super::text::{to_text, write_escaped};
use super::super::value::Value;

impl Run<'_> {
    pub(super) fn text_filter(&self, name: &str, value: Value, args: Args) -> Res<Value> {
        let budget = self.budget;
        let text = self.text_of(&value)?;
        let text = text.as_str();
        budget.pass(text.len())?;
        budget.room(text.len() * 3)?;
        match name {
            "upper" | "lower" | "capitalize" | "title" | "e" | "escape" | "forceescape" | "striptags"
            | "wordcount" => {
                let [] = args.bind(name, [])?;
                match name {
                    "upper" => budget.string(text.to_uppercase()),
                    "lower" => budget.string(text.to_lowercase()),
                    "capitalize" => budget.string(strings::capitalize(text)),
                    "title" => self.titled(text),
                    "wordcount" => {
                        let is_word = |c: char| c.is_alphanumeric() || c == '_';
                        let n = text.split(|c| !is_word(c)).filter(|w| !w.is_empty()).count();
                        Ok(Value::Int(n as i128))
                    }
                    "striptags" => self.without_tags(text),
                    _ => {
                        let value = if name == "forceescape" { budget.str(text)? } else { value };
                        let mut out = Out::new(budget);
                        write_escaped(&mut out, &value)?;
                        Ok(budget.written(out)?.into_markup())
                    }
                }
            }
            "trim" => {
                let [chars] = args.bind(name, ["chars"])?;
                let chars = chars.unwrap_or(Value::None);
                budget.str(strings::strip(budget, text, &chars, true, true)?)
            }
            "replace" => {
                let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
                let old = self.text_of(&old.unwrap_or(Value::None))?;
                let new = self.text_of(&new.unwrap_or(Value::None))?;
                let count = match count {
                    None | Some(Value::None) => None,
                    Some(count) => Some(super::super::calls::int_of(name, &count)?),
                };
                strings::replace(budget, text, old.as_str(), new.as_str(), count)
            }
            "format" => {
                let Args { positional, named } = args;
                if !positional.is_empty() && !named.is_empty() {
                    return Fault::failed("can't handle positional and keyword arguments at the same time");
                }
                let values = if named.is_empty() {
                    budget.tuple(positional)?
                } else {
                    let mut dict = super::super::value::Dict::builder(budget);
                    for (name, value) in named {
                        dict.insert(budget.string(name)?, value)?;
                    }
                    dict.finish()?
                };
                format::percent(budget, text, &values)
            }
            "center" => {
                let [width] = args.bind(name, ["width"])?;
                let width = width.map_or(Ok(80), |width| count_of(name, &width))?;
                strings::justify(budget, text, width, ' ', strings::Side::Center)
            }
            "indent" => self.indented(text, args),
            "truncate" => self.truncated(text, args),
            "wordwrap" => self.wrapped(text, args),
            "urlencode" => self.url_encoded(&value, args),
            _ => Fault::failed(format!("No filter named '{name}'.")),
        }
    }

    /// Capitalises each word. Words end at white space and at `-({[<`.
    fn titled(&self, text: &str) -> Res<Value> {
        let mut out = Out::new(self.budget);
        let mut begins = true;
        for c in text.chars() {
            let ends = c == '-' || is_space(c) || "({[<".contains(c);
            match begins && !ends {
                true => out.push(&c.to_uppercase().collect::<String>())?,
                false => out.push(&c.to_lowercase().collect::<String>())?,
            }
            begins = ends;
        }
        self.budget.written(out)
    }

    fn without_tags(&self, text: &str) -> Res<Value> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("<!--") {
            let Some(len) = rest[start..].find("-->") else { break };
            out.push_str(&rest[..start]);
            rest = &rest[start + len + 3..];
        }
        out.push_str(rest);
        let mut plain = String::new();
        let mut rest = out.as_str();
        while let Some(start) = rest.find('<') {
            let Some(len) = rest[start..].find('>') else { break };
            plain.push_str(&rest[..start]);
            rest = &rest[start + len + 1..];
        }
        plain.push_str(rest);
        let plain = super::lists::words(&plain).collect::<Vec<_>>().join(" ");
        let entities = [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&quot;", "\"")];
        let plain = entities.iter().fold(plain, |text, (entity, c)| text.replace(entity, c));
        self.budget.string(plain.replace("&amp;", "&"))
    }

    fn indented(&self, text: &str, args: Args) -> Res<Value> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let (first, blank) = (self.flag(first)?, self.flag(blank)?);
        let mut indention = Out::new(self.budget);
        match &width {
            None => indention.push("    ")?,
            Some(Value::Str(text)) => indention.push(text.as_str())?,
            Some(width) => indention.repeat(" ", count_of("indent", width)?)?,
        }
        let indention = indention.as_str();
        let mut out = Out::new(self.budget);
        if first {
            out.push(indention)?;
        }
        let ended = format!("{text}\n");
        for (i, line) in strings::lines(&ended, false).enumerate() {
            if i > 0 {
                out.push("\n")?;
                if blank || !line.is_empty() {
                    out.push(indention)?;
                }
            }
            out.push(line)?;
        }
        self.budget.written(out)
    }

    fn truncated(&self, text: &str, args: Args) -> Res<Value> {
        let [length, kill_words, end, leeway] =
            args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
        let length = length.map_or(Ok(255), |n| count_of("truncate", &n))?;
        let end = end.map(|end| self.text_of(&end)).transpose()?;
        let end = end.as_ref().map_or("...", |end| end.as_str());
        let leeway = match leeway {
            None | Some(Value::None) => 5,
            Some(n) => count_of("truncate", &n)?,
        };
        let end_len = end.chars().count();
        if length < end_len {
            return Fault::failed(format!("expected length >= {end_len}, got {length}"));
        }
        if text.chars().count() <= length.saturating_add(leeway) {
            return self.budget.str(text);
        }
        let cut = text.char_indices().nth(length - end_len).map_or(text.len(), |(i, _)| i);
        let mut kept = &text[..cut];
        if !self.flag(kill_words)?
            && let Some((before, _)) = kept.rsplit_once(' ')
        {
            kept = before;
        }
        let mut out = Out::new(self.budget);
        out.push(kept)?;
        out.push(end)?;
        self.budget.written(out)
    }

    fn wrapped(&self, text: &str, args: Args) -> Res<Value> {
        let [width, break_long, wrap, _hyphens] =
            args.bind("wordwrap", ["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
        let width = width.map_or(Ok(79), |n| count_of("wordwrap", &n))?.max(1);
        let break_long = break_long.map_or(Ok(true), |b| self.flag(Some(b)))?;
        let wrap = wrap.as_ref().map_or(Ok("\n"), |wrap| str_of("wordwrap", wrap))?;
        let mut out = Out::new(self.budget);
        for (i, line) in strings::lines(text, false).enumerate() {
            if i > 0 {
                out.push(wrap)?;
            }
            let mut at = 0;
            for word in super::lists::words(line) {
                let mut word = word;
                let mut n = word.chars().count();
                if at > 0 && at + 1 + n <= width {
                    out.push(" ")?;
                    at += 1;
                } else if at > 0 {
                    out.push(wrap)?;
                    at = 0;
                }
                while break_long && n > width {
                    let cut = word.char_indices().nth(width).map_or(word.len(), |(i, _)| i);
                    out.push(&word[..cut])?;
                    out.push(wrap)?;
                    word = &word[cut..];
                    n -= width;
                }
                out.push(word)?;
                at += n;
            }
        }
        self.budget.written(out)
    }

    fn url_encoded(&self, value: &Value, args: Args) -> Res<Value> {
        let [] = args.bind("urlencode", [])?;
        let mut out = Out::new(self.budget);
        let pairs = match value {
            Value::Dict(dict) => Some(Value::View(super::super::value::View::Items, dict.clone())),
            Value::List(_) | Value::Tuple(_) => Some(value.clone()),
            _ => None,
        };
        let Some(pairs) = pairs else {
            quoted(&mut out, to_text(self.budget, value)?.as_str(), false)?;
            return self.budget.written(out);
        };
        let mut pairs = Iter::over(&pairs)?;
        let mut first = true;
        while let Some(pair) = pairs.next(self.budget)? {
            let pair = super::super::iter::vec_of(self.budget, &pair)?;
            let [key, value] = pair.as_slice() else {
                return Fault::failed("urlencode: expected pairs");
            };
            if !first {
                out.push("&")?;
            }
            first = false;
            quoted(&mut out, to_text(self.budget, key)?.as_str(), true)?;
            out.push("=")?;
            quoted(&mut out, to_text(self.budget, value)?.as_str(), true)?;
        }
        self.budget.written(out)
    }
}

/// Percent-encodes a text. In a query a blank becomes a plus, and a slash is encoded.
fn quoted(out: &mut Out<'_>, text: &str, in_query: bool) -> Res<()> {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push_char(char::from(byte))?;
            }
            b'/' if !in_query => out.push("/")?,
            b' ' if in_query => out.push("+")?,
            _ => {
                let digit = |n: u8| char::from(b"0123456789ABCDEF"[usize::from(n)]);
                out.push("%")?;
                out.push_char(digit(byte >> 4))?;
                out.push_char(digit(byte & 15))?;
            }
        }
    }
    Ok(())
}
