//! Byte-level tokens: each token is a string of bytes.

/// Bytes that do not form a whole character yet; at most three.
#[derive(Debug, Default)]
pub(super) struct ByteStream {
    held: Vec<u8>,
}

impl ByteStream {
    /// Adds a token as the vocabulary writes it, and returns the completed characters.
    pub(super) fn push(&mut self, token: &str) -> String {
        self.held.append(&mut bytes_of(token));
        let n_open = incomplete_suffix(&self.held);
        let whole = self.held.len() - n_open;
        let text = String::from_utf8_lossy(&self.held[..whole]).into_owned();
        self.held.drain(..whole);
        text
    }

    pub(super) fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

/// The bytes of a token as the vocabulary writes it. A token with a character outside the alphabet is plain text, as
/// added tokens may be.
pub(crate) fn bytes_of(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte that GPT-2's alphabet writes as `c`: printable Latin-1 characters stand for themselves, and the other
/// 68 bytes, in order, are the characters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        n @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(n as u8),
        n @ 0x100..=0x120 => Some((n - 0x100) as u8),
        n @ 0x121..=0x142 => Some((n - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Length of the unfinished character at the end of `bytes` that more bytes could still complete.
fn incomplete_suffix(bytes: &[u8]) -> usize {
    let longest = bytes.len().min(3);
    let open = |n: &usize| match std::str::from_utf8(&bytes[bytes.len() - n..]) {
        Err(e) => e.valid_up_to() == 0 && e.error_len().is_none(),
        Ok(_) => false,
    };
    (1..=longest).rev().find(open).unwrap_or(0)
}
