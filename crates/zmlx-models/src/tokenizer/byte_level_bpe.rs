//! Tokenizers of GPT-2's kind in `vocab.json` and `merges.txt`, which older checkpoints have.

use std::path::Path;

use serde_json::{Value, json};

use crate::checkpoint::read_optional;
use crate::config::parse_json;
use crate::{Error, Result};

/// How Qwen's tokenizers split a text before they merge: contractions, words, single digits, punctuation, white space.
const QWEN_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The files of `dir` as a `tokenizer.json`; `None` if they do not exist.
pub(super) fn read(dir: &Path) -> Result<Option<Vec<u8>>> {
    let (vocab_path, merges_path) = (dir.join("vocab.json"), dir.join("merges.txt"));
    let (Some(vocab), Some(merges)) = (read_optional(&vocab_path)?, read_optional(&merges_path)?) else {
        return Ok(None);
    };
    let vocab_file = vocab_path.display().to_string();
    let vocab = parse_json(&vocab_file, &vocab)?;
    // A comment gives the version, and a blank line ends the file.
    let lines = merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
    let mut pairs = Vec::new();
    for line in lines {
        let pair: Vec<&str> = line.split(' ').collect();
        let [left, right] = pair.as_slice() else {
            let short: String = line.chars().take(40).collect();
            let file = merges_path.display().to_string();
            return Err(super::error(&file, format!("expected two parts in each line, got {short:?}")));
        };
        pairs.push(json!([left, right]));
    }
    let is_gpt2 = tokenizer_class(dir).is_some_and(|class| class.starts_with("GPT2"));
    let (normalizer, pre_tokenizer) = if is_gpt2 {
        (
            Value::Null,
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        )
    } else {
        let split = json!({"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, bytes]}))
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": pairs
        }
    });
    serde_json::to_vec(&tokenizer).map(Some).map_err(|source| Error::Json { file: vocab_file, source })
}

fn tokenizer_class(dir: &Path) -> Option<String> {
    let text = read_optional(&dir.join("tokenizer_config.json")).ok()??;
    let config = parse_json("tokenizer_config.json", &text).ok()?;
    config.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned)
}
