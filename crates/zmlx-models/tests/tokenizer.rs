//! Tokenizer files that are missing or broken.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use zmlx_models::{Error, Tokenizer};

fn fixture() -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/austen-qwen3-moe-4bit");
    std::fs::read(dir.join("tokenizer.json")).unwrap()
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::open(dir.path()), Err(Error::MissingFile { file: "tokenizer.json", .. })));
    std::fs::write(dir.path().join("tokenizer.json"), fixture()).unwrap();
    assert_eq!(Tokenizer::open(dir.path()).unwrap().vocab_size(), 3072);
}

#[test]
fn broken_files_are_errors() {
    let good = fixture();
    let n = good.len();
    let cut = [0, 1, 100, n / 2, n - 2].map(|n| good[..n].to_vec());
    for json in cut.into_iter().chain([b"{}".to_vec(), b"null".to_vec(), b"\xff".to_vec()]) {
        match Tokenizer::from_json("tokenizer.json", &json) {
            Err(Error::Tokenizer { file, .. }) => assert_eq!(file, "tokenizer.json"),
            other => panic!("{} bytes: {other:?}", json.len()),
        }
    }
}

#[test]
fn settings_left_over_from_training_do_not_cut_or_fill() {
    let mut json: serde_json::Value = serde_json::from_slice(&fixture()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>"
    });
    let text = "It is a truth universally acknowledged, that";
    let plain = Tokenizer::from_json("plain", &fixture()).unwrap().encode(text).unwrap();
    let set = Tokenizer::from_json("set", json.to_string().as_bytes()).unwrap();
    assert_eq!(plain.len(), 11);
    assert_eq!(set.encode(text).unwrap(), plain);
}

#[test]
fn special_tokens_in_the_text_are_recognised() {
    let tokenizer = Tokenizer::from_json("tokenizer.json", &fixture()).unwrap();
    assert_eq!(tokenizer.encode("<|im_start|><|im_end|>").unwrap(), [1, 2]);
    assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.decode(&[1, 2, 1_000_000]).unwrap(), "<|im_start|><|im_end|>");
}
