//! Tokens to text as they come, one token at a time.
//!
//! Two ways, chosen by the tokenizer's decoder. Both give pieces whose concatenation, with [`Detokenizer::flush`],
//! is exactly what decoding all tokens at once gives, and both look at a bounded number of tokens per step.
//!
//! - **Byte level** (GPT-2's alphabet; GLM and Qwen): a token is a string of bytes. Bytes are given out as soon as
//!   they are whole characters.
//! - **Any other decoder**: a token's text depends on its neighbours (a leading space that only the first word
//!   loses, bytes spelled `<0xE2>`). A short window of tokens is decoded with and without the new ones; the
//!   difference is the new text.

mod bytes;
mod window;

pub(crate) use bytes::bytes_of;

use crate::{Result, Tokenizer};

/// The text of a growing list of tokens.
#[derive(Debug)]
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Bytes(bytes::ByteStream),
    Window(window::Window),
}

impl<'t> Detokenizer<'t> {
    /// A detokeniser at the start of a text.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        let way = if tokenizer.is_byte_level() {
            Way::Bytes(bytes::ByteStream::default())
        } else {
            Way::Window(window::Window::default())
        };
        Self { tokenizer, way }
    }

    /// Adds a token and returns the text that is now certain; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the tokenizer refuses the token.
    pub fn push(&mut self, token: u32) -> Result<String> {
        match &mut self.way {
            Way::Bytes(stream) => {
                Ok(self.tokenizer.id_to_token(token).map(|t| stream.push(&t)).unwrap_or_default())
            }
            Way::Window(window) => window.push(self.tokenizer, token),
        }
    }

    /// The text that was held back; the detokeniser is at the start of a text again.
    ///
    /// # Errors
    /// If the tokenizer refuses the tokens.
    pub fn flush(&mut self) -> Result<String> {
        match &mut self.way {
            Way::Bytes(stream) => Ok(stream.flush()),
            Way::Window(window) => window.flush(self.tokenizer),
        }
    }
}

#[cfg(test)]
mod tests;
