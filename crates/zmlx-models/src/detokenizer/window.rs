//! Decoders that need context: a short window is decoded with and without the new tokens.

use crate::{Result, Tokenizer};

/// No character is spelled with more tokens than this. So a replacement character at the end of a longer undecided run
/// is final.
const MAX_OPEN: usize = 8;

/// The last tokens. Those in `[..given]` have been returned and serve only as context; the others are undecided.
#[derive(Debug, Default)]
pub(super) struct Window {
    tokens: Vec<u32>,
    given: usize,
}

impl Window {
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        // An id beyond the vocabulary decodes to nothing. It does not even end a run of bytes.
        let Some(written) = tokenizer.id_to_token(token) else { return Ok(String::new()) };
        self.tokens.push(token);
        // A run of byte tokens is decoded as a whole. A byte that is not UTF-8 changes how the bytes before it decode,
        // so nothing is certain until the run ends. Decoding only at the end keeps the cost of long runs linear.
        if is_byte_token(&written) {
            return Ok(String::new());
        }
        let (context, all) = self.decode(tokenizer)?;
        let open = all.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() - self.given < MAX_OPEN;
        match all.strip_prefix(&context) {
            Some(text) if !text.is_empty() && !open => {
                self.tokens.drain(..self.given);
                self.given = self.tokens.len();
                Ok(text.to_owned())
            }
            _ => Ok(String::new()),
        }
    }

    pub(super) fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let (context, all) = self.decode(tokenizer)?;
        *self = Self::default();
        Ok(all.strip_prefix(&context).unwrap_or_default().to_owned())
    }

    fn decode(&self, tokenizer: &Tokenizer) -> Result<(String, String)> {
        Ok((tokenizer.decode(&self.tokens[..self.given])?, tokenizer.decode(&self.tokens)?))
    }
}

/// True for a token that spells one byte, for example `<0xE2>`.
fn is_byte_token(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}
