//! Log-probabilities of tokens.

use serde_json::{Map, Value, json};
use zmlx_models::{TokenLogprob, Tokenizer};

use crate::generation::TokenInfo;

/// The value for minus infinity, which JSON lacks.
const LOWEST: f64 = -9999.0;

fn bytes(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    tokenizer.token_bytes(token).map(|(bytes, _)| bytes).unwrap_or_default()
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(&bytes(tokenizer, token)).into_owned()
}

/// The entry of a chat's `logprobs.content`.
pub(super) fn chat_entry(tokenizer: &Tokenizer, info: &TokenInfo) -> Value {
    let entry = |t: &TokenLogprob| {
        let bytes = bytes(tokenizer, t.token);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": t.logprob.max(LOWEST), "bytes": bytes})
    };
    let mut of_token = entry(&info.chosen);
    of_token["top_logprobs"] = info.top.iter().map(entry).collect();
    of_token
}

/// The `logprobs` of a text completion's tokens. `offset` is the position of their text in characters. It is moved to
/// the end of the text.
pub(super) fn completion(tokenizer: &Tokenizer, infos: &[TokenInfo], offset: &mut usize) -> Value {
    let mut offsets = Vec::with_capacity(infos.len());
    for info in infos {
        offsets.push(*offset);
        *offset += text(tokenizer, info.chosen.token).chars().count();
    }
    let top = |info: &TokenInfo| -> Value {
        let pairs = info.top.iter().map(|t| (text(tokenizer, t.token), t.logprob.max(LOWEST).into()));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    json!({
        "tokens": infos.iter().map(|i| text(tokenizer, i.chosen.token)).collect::<Vec<_>>(),
        "token_logprobs": infos.iter().map(|i| i.chosen.logprob.max(LOWEST)).collect::<Vec<_>>(),
        "top_logprobs": infos.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets
    })
}
