//! Text to tokens and back.

use std::path::Path;

use crate::{Error, Result};

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    file: String,
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
}

impl Tokenizer {
    /// The `tokenizer.json` in the folder `dir`.
    ///
    /// # Errors
    /// If there is none, or it is not a tokenizer.
    pub fn open(dir: &Path) -> Result<Self> {
        const FILE: &str = "tokenizer.json";
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(json) => Self::from_json(&path.display().to_string(), &json),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::MissingFile { dir: dir.display().to_string(), file: FILE })
            }
            Err(source) => Err(Error::Io { file: path.display().to_string(), source }),
        }
    }

    /// The tokenizer in the bytes of a `tokenizer.json`, called `file` in errors.
    ///
    /// # Errors
    /// If the bytes are not a tokenizer.
    pub fn from_json(file: &str, json: &[u8]) -> Result<Self> {
        let failed = |source| Error::Tokenizer { file: file.into(), source };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        // Settings left over from training: a prompt is never cut or filled up.
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let vocab_size = inner.get_vocab_size(true);
        Ok(Self { file: file.into(), inner, vocab_size })
    }

    /// The tokens of `text`. Special tokens written in the text, as `<|im_start|>`, are recognised; none are added.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|source| self.error(source))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`, special tokens included. Bytes that are not UTF-8 become U+FFFD; ids that the
    /// vocabulary lacks (a model's logits may be wider) become nothing.
    ///
    /// # Errors
    /// If the tokenizer refuses the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|source| self.error(source))
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of the token that is written so.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How the token is written in the vocabulary: not its text.
    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// True if a text is the tokens' bytes, one after the other.
    pub(crate) fn is_byte_level(&self) -> bool {
        matches!(self.inner.get_decoder(), Some(tokenizers::DecoderWrapper::ByteLevel(_)))
    }

    fn error(&self, source: tokenizers::Error) -> Error {
        Error::Tokenizer { file: self.file.clone(), source }
    }
}
