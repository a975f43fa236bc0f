//! The tokenizer's vocabulary in the form that grammars need: the bytes of each token.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use zmlx_models::Tokenizer;

/// Tags that grammars write as text, although they are special tokens of vocabularies.
const TAGS: [&str; 14] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<tool_response>",
    "</tool_response>",
    "<function>",
    "</function>",
    "<parameter>",
    "</parameter>",
];

/// A factory of parsers for a vocabulary of `n` token ids.
pub(super) fn factory(tokenizer: &Tokenizer, eos: &[u32], n: usize) -> Result<ParserFactory, String> {
    let word = |id: u32| match tokenizer.token_bytes(id) {
        None => Vec::new(),
        Some((bytes, is_special)) => {
            let is_tag = TAGS.iter().any(|tag| tag.as_bytes() == bytes);
            if (is_special && !is_tag) || eos.contains(&id) { special(bytes) } else { bytes }
        }
    };
    let mut words: Vec<Vec<u8>> = (0..n as u32).map(word).collect();
    // If a model has no end token, an id without a logit takes its place.
    let first = eos.first().copied().unwrap_or(n as u32);
    if first as usize >= n {
        words.push(special(b"<end>".to_vec()));
    }
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, first), &words);
    let trie = if eos.len() > 1 { trie.with_eos_tokens(eos) } else { trie };
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|why| why.to_string())?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

/// A token that no text contains.
fn special(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
    bytes
}
