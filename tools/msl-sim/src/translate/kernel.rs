//! Kernel declarations: the parameters and how they are bound.

use super::lex::{Kind, Token};
use super::{Failure, fail};

/// The attributes of values that the dispatch provides.
pub(crate) const BUILT_INS: [&str; 20] = [
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "threads_per_grid",
    "threads_per_threadgroup",
    "threadgroups_per_grid",
    "dispatch_threads_per_threadgroup",
    "grid_origin",
    "grid_size",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup",
    "threads_per_simdgroup",
    "thread_execution_width",
    "quadgroup_index_in_threadgroup",
    "thread_index_in_quadgroup",
    "quadgroups_per_threadgroup",
    "dispatch_quadgroups_per_threadgroup",
];

/// The largest buffer index in Metal.
const LAST_BUFFER: u32 = 30;

/// How a parameter of a kernel is bound.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Binding {
    Buffer(u32),
    Threadgroup(u32),
    BuiltIn(String),
}

/// The bindings of a kernel's parameters, from the tokens between its parentheses.
pub(crate) fn bindings(tokens: &[Token], kernel: &str) -> Result<Vec<Binding>, Failure> {
    let mut out = Vec::new();
    // Without attributes, buffers and threadgroup pointers are numbered in order.
    let (mut next_buffer, mut next_threadgroup) = (0, 0);
    for part in split_parameters(tokens) {
        let binding = binding(part, kernel, next_buffer, next_threadgroup)?;
        match &binding {
            Binding::Buffer(n) if *n > LAST_BUFFER => {
                return fail(
                    part[0].line,
                    format!("kernel {kernel}: buffer index {n} is beyond {LAST_BUFFER}"),
                );
            }
            Binding::Buffer(n) => next_buffer = n + 1,
            Binding::Threadgroup(n) => next_threadgroup = n + 1,
            Binding::BuiltIn(_) => {}
        }
        out.push(binding);
    }
    Ok(out)
}

fn split_parameters(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut depth, mut start) = (0i32, 0);
    let mut parts = Vec::new();
    for (i, token) in tokens.iter().enumerate().filter(|(_, t)| t.kind == Kind::Punctuation) {
        match token.text.as_str() {
            "(" | "[" | "{" | "<" => depth += 1,
            ")" | "]" | "}" | ">" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&tokens[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&tokens[start..]);
    parts.retain(|p| p.iter().any(|t| !t.is_blank()));
    parts
}

fn binding(
    part: &[Token],
    kernel: &str,
    next_buffer: u32,
    next_threadgroup: u32,
) -> Result<Binding, Failure> {
    let line = part[0].line;
    let mut explicit = None;
    for token in part {
        let Some(attribute) = token.attribute_name() else { continue };
        let number = token.attribute_argument().and_then(|a| a.parse().ok());
        explicit = match attribute {
            "buffer" => match number {
                Some(n) => Some(Binding::Buffer(n)),
                None => return fail(line, format!("kernel {kernel}: [[buffer(n)]] needs a number")),
            },
            "threadgroup" => Some(Binding::Threadgroup(number.unwrap_or(0))),
            name if BUILT_INS.contains(&name) => Some(Binding::BuiltIn(name.to_owned())),
            _ => explicit,
        };
    }
    let has = |word: &str| part.iter().any(|t| t.is_identifier(word));
    let name = part.iter().rfind(|t| t.kind == Kind::Identifier).map_or("", |t| t.text.as_str());
    let indirect = part.iter().any(|t| ["*", "&", "["].iter().any(|p| t.is_punctuation(p)));
    if indirect && !["device", "constant", "threadgroup"].iter().any(|space| has(space)) {
        return fail(
            line,
            format!("kernel {kernel}: pointer or reference parameter {name} has no address space"),
        );
    }
    match explicit {
        Some(binding) => Ok(binding),
        None if indirect && has("threadgroup") => Ok(Binding::Threadgroup(next_threadgroup)),
        None if indirect => Ok(Binding::Buffer(next_buffer)),
        None => fail(line, format!("kernel {kernel}: parameter {name} has no attribute known here")),
    }
}
