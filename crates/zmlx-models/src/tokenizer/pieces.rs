//! Tokens of vocabularies that write a blank as `▁` and single bytes as `<0xE2>`.

/// The bytes of a token within a text.
pub(super) fn bytes_of(written: &str) -> Vec<u8> {
    let byte =
        written.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    if let Some(byte) = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        return vec![byte];
    }
    written.replace('\u{2581}', " ").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_bytes() {
        assert_eq!(bytes_of("\u{2581}It"), b" It");
        assert_eq!(bytes_of("<0xE2>"), [0xe2]);
        for plain in ["<0xE>", "<0x+2>x", "<0xGG>", "é"] {
            assert_eq!(bytes_of(plain), plain.as_bytes(), "{plain}");
        }
    }
}
