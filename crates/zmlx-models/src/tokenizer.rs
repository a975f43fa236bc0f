//! Turns text into tokens and back.
//!
//! The tokenizer of a checkpoint consists of all its files: `tokenizer.json`, or `vocab.json` with `merges.txt`, and
//! the tokens that only `tokenizer_config.json` (`added_tokens_decoder`) or `added_tokens.json` name.

mod added;
mod byte_level_bpe;
mod guard;
mod pieces;
mod structure;

use std::path::Path;

use crate::detokenizer::bytes_of;
use crate::{Error, Result};
use added::AddedTokens;
use guard::guarded;

/// The size of the largest file, in bytes. The file of a tokenizer with 150 thousand tokens has 11 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    file: String,
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
}

impl Tokenizer {
    /// The tokenizer in the files of the folder `dir`.
    ///
    /// # Errors
    /// If there is none, or if the files are not a tokenizer. If a file other than `tokenizer.json` cannot be read,
    /// there is only a warning.
    pub fn open(dir: &Path) -> Result<Self> {
        const FILE: &str = "tokenizer.json";
        let path = dir.join(FILE);
        let file = path.display().to_string();
        let json = match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_FILE_BYTES => {
                return Err(error(&file, format!("{} bytes are too many for a tokenizer", meta.len())));
            }
            Ok(_) => {
                zmlx_kernels::read_bytes(&path).map_err(|source| Error::Io { file: file.clone(), source })?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => match byte_level_bpe::read(dir)? {
                Some(json) => json,
                None => return Err(Error::MissingFile { dir: dir.display().to_string(), file: FILE }),
            },
            Err(source) => return Err(Error::Io { file, source }),
        };
        Self::build(&file, &json, &AddedTokens::read(dir))
    }

    /// The tokenizer in the bytes of a `tokenizer.json`, which errors call `file`.
    ///
    /// # Errors
    /// If the bytes are not a tokenizer.
    pub fn from_json(file: &str, json: &[u8]) -> Result<Self> {
        Self::build(file, json, &AddedTokens::default())
    }

    fn build(file: &str, json: &[u8], added: &AddedTokens) -> Result<Self> {
        structure::check(json).map_err(|why| error(file, why))?;
        guarded(file, || {
            let failed = |source| Error::Tokenizer { file: file.into(), source };
            let parse = |json: &[u8]| tokenizers::Tokenizer::from_bytes(json).map_err(failed);
            let mut inner = parse(json)?;
            if added.are_missing(&inner) {
                if let Some(with_ids) = added.with_ids(file, json, &inner)? {
                    inner = parse(&with_ids)?;
                }
                added.add_to(file, &mut inner)?;
            }
            // These settings are left over from training. A prompt is never cut or padded.
            inner.with_truncation(None).map_err(failed)?;
            inner.with_padding(None);
            let vocab_size = inner.get_vocab_size(true);
            // A tokenizer that cannot work at all fails here, and not at the first request.
            let probe = inner.encode_fast("It is 1 é 🦀,\n", false).map_err(failed)?;
            inner.decode(probe.get_ids(), false).map_err(failed)?;
            Ok(Self { file: file.into(), inner, vocab_size })
        })
    }

    /// The tokens of `text`. Special tokens that are written in the text, such as `<|im_start|>`, are recognised; none
    /// are added.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        guarded(&self.file, || {
            let encoding = self.inner.encode_fast(text, false).map_err(|source| self.error(source))?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// The text of `tokens`, including special tokens. Bytes that are not UTF-8 become U+FFFD. Ids that the vocabulary
    /// lacks are skipped (a model's logits may have more entries).
    ///
    /// # Errors
    /// If the tokenizer refuses the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        guarded(&self.file, || self.inner.decode(tokens, false).map_err(|source| self.error(source)))
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of the token with this spelling.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes of a token within a text, and whether it is a special token, which no plain text contains. `None` if
    /// the vocabulary lacks the id.
    pub fn token_bytes(&self, id: u32) -> Option<(Vec<u8>, bool)> {
        let written = self.inner.id_to_token(id)?;
        if let Some(added) = self.inner.get_added_tokens_decoder().get(&id) {
            return Some((added.content.clone().into_bytes(), added.special));
        }
        let bytes = if self.is_byte_level() { bytes_of(&written) } else { pieces::bytes_of(&written) };
        Some((bytes, false))
    }

    /// The spelling of the token in the vocabulary, which is not its text.
    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// True if a text is the concatenation of its tokens' bytes.
    pub(crate) fn is_byte_level(&self) -> bool {
        matches!(self.inner.get_decoder(), Some(tokenizers::DecoderWrapper::ByteLevel(_)))
    }

    fn error(&self, source: tokenizers::Error) -> Error {
        Error::Tokenizer { file: self.file.clone(), source }
    }
}

fn error(file: &str, why: String) -> Error {
    Error::Tokenizer { file: file.into(), source: why.into() }
}
