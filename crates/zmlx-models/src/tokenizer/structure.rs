//! Refuses dangerous parts of a `tokenizer.json` before anything is built from it.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// How many times longer all replacements together may make a text. A blank that becomes `▁` makes it 3 times as long.
const MAX_GROWTH: f64 = 256.0;

/// The parts of the file that act as programs. The vocabulary is skipped.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(rename = "model")]
    _model: IgnoredAny,
}

/// Checks that the bytes are JSON to their end, and that no part is known to hang, to panic or to make texts explode in
/// size.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let parts: Parts = serde_json::from_slice(json).map_err(|e| format!("not a tokenizer: {e}"))?;
    for (name, part) in [
        ("normalizer", &parts.normalizer),
        ("pre_tokenizer", &parts.pre_tokenizer),
        ("decoder", &parts.decoder),
    ] {
        let mut growth = 1.0;
        check_part(part, &mut growth).map_err(|why| format!("{name}: {why}"))?;
        if growth > MAX_GROWTH {
            return Err(format!(
                "{name}: it makes a text up to {growth} times as long; at most {MAX_GROWTH} times is allowed"
            ));
        }
    }
    Ok(())
}

fn check_part(part: &Value, growth: &mut f64) -> Result<(), String> {
    match part {
        Value::Array(list) => list.iter().try_for_each(|inner| check_part(inner, growth)),
        Value::Object(map) => {
            match map.get("type").and_then(Value::as_str) {
                Some("Precompiled") => check_charsmap(map.get("precompiled_charsmap"))?,
                Some("Replace" | "Split") => {
                    let pattern = map.get("pattern");
                    let text =
                        pattern.and_then(|p| p.get("String").or(p.get("Regex"))).and_then(Value::as_str);
                    let Some(text) = text else { return Err("pattern: expected a String or a Regex".into()) };
                    if text.is_empty() {
                        return Err("pattern: expected a text, got an empty one".into());
                    }
                    if let Some(content) = map.get("content").and_then(Value::as_str) {
                        // A regular expression may match a single byte.
                        let is_plain = pattern.is_some_and(|p| p.get("String").is_some());
                        let least = if is_plain { text.len() } else { 1 };
                        *growth *= (content.len() as f64 / least as f64).max(1.0);
                    }
                }
                Some("Prepend") => {
                    let n = map.get("prepend").and_then(Value::as_str).map_or(0, str::len);
                    *growth *= n.max(1) as f64;
                }
                Some("FixedLength") if map.get("length").and_then(Value::as_u64) == Some(0) => {
                    return Err("length: expected at least 1, got 0".into());
                }
                _ => {}
            }
            map.values().try_for_each(|inner| check_part(inner, growth))
        }
        _ => Ok(()),
    }
}

/// A table of replacements in base 64: the size of its index, the index in words of 4 bytes, then the texts.
fn check_charsmap(map: Option<&Value>) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("precompiled_charsmap: {why}"));
    let Some(text) = map.and_then(Value::as_str) else { return wrong("expected a text in base 64") };
    let Some(bytes) = base64(text) else { return wrong("not base 64") };
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return wrong("too short") };
    let n_index = u32::from_le_bytes(*head) as usize;
    if n_index > rest.len() || !n_index.is_multiple_of(4) || n_index == 0 {
        return wrong("its index does not fit");
    }
    match std::str::from_utf8(&rest[n_index..]) {
        Ok(_) => Ok(()),
        Err(_) => wrong("its texts are not UTF-8"),
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut held, mut n_bits) = (0u32, 0);
    for c in digits.bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(digit);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((held >> n_bits) as u8);
            held &= (1 << n_bits) - 1;
        }
    }
    Some(bytes)
}
