//! Turns tokens into text as they come, one token at a time.
//!
//! There are two methods, and the tokenizer's decoder determines which one is used. Both give pieces whose
//! concatenation, including [`Detokenizer::flush`], equals the text of all tokens decoded at once. Both look at a
//! bounded number of tokens per step.
//!
//! - **Byte level** (GPT-2's alphabet, used by GLM and Qwen): a token is a string of bytes. Bytes are returned once
//!   they form whole characters.
//! - **Any other decoder**: the text of a token depends on its neighbours. For example, only the first word loses its
//!   leading space, and some tokens spell single bytes (`<0xE2>`). A short window of tokens is decoded with and without
//!   the new ones, and the difference is the new text.

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

    /// Adds a token and returns the text that is now certain. The text is empty while a character is incomplete.
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

    /// Returns the text that was held back. Afterwards the detokeniser is at the start of a text again.
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
