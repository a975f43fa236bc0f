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

/// A tokenizer of bytes (ids 0 to 255) with one added token, changed by `change`.
fn bytes_with(change: impl Fn(&mut serde_json::Value)) -> serde_json::Value {
    let vocab: serde_json::Map<String, serde_json::Value> =
        byte_letters().into_iter().enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let mut json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    });
    change(&mut json);
    json
}

/// GPT-2's letters for the bytes 0 to 255.
fn byte_letters() -> Vec<char> {
    let mut next = 0x100;
    let letter = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap()
        }
    };
    (0..=255).map(letter).collect()
}

fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn hostile_files_are_errors() {
    let replace = |pattern: serde_json::Value, content: &str| serde_json::json!({"type": "Replace", "pattern": pattern, "content": content});
    let doubling: Vec<_> = (0..40).map(|_| replace(serde_json::json!({"String": "a"}), "aa")).collect();
    let hostile = [
        ("normalizer", serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "x"})),
        ("normalizer", serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "////fw=="})),
        ("normalizer", serde_json::json!({"type": "Precompiled"})),
        ("normalizer", replace(serde_json::json!({"String": ""}), "y")),
        ("normalizer", replace(serde_json::json!({"Regex": ""}), "y")),
        ("normalizer", replace(serde_json::json!({"Regex": "("}), "y")),
        ("normalizer", serde_json::json!({"type": "Sequence", "normalizers": doubling})),
        (
            "normalizer",
            serde_json::json!({"type": "Sequence", "normalizers": [replace(serde_json::json!({"String": ""}), "y")]}),
        ),
        ("decoder", replace(serde_json::json!({"String": ""}), "y")),
        ("decoder", serde_json::json!({"type": "Strip", "content": " ", "start": 0, "stop": 1_000_000})),
        ("decoder", serde_json::json!({"type": "Nonsense"})),
        ("decoder", serde_json::json!([])),
        ("pre_tokenizer", serde_json::json!({"type": "FixedLength", "length": 0})),
        (
            "pre_tokenizer",
            serde_json::json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false}),
        ),
        ("model", serde_json::json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]})),
        ("model", serde_json::json!({"type": "Unigram", "unk_id": 5, "vocab": []})),
        ("model", serde_json::json!(null)),
    ];
    for (key, part) in hostile {
        let json = bytes_with(|json| json[key] = part.clone()).to_string();
        match Tokenizer::from_json("folder/tokenizer.json", json.as_bytes()) {
            Err(error) => assert!(error.to_string().starts_with("folder/tokenizer.json: "), "{error}"),
            // Some files are valid after all. Then the tokenizer must work.
            Ok(tokenizer) => {
                let tokens = tokenizer.encode("aaa b\n");
                assert!(tokens.and_then(|t| tokenizer.decode(&t)).is_ok(), "{key}: {part}");
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let good = bytes_with(|json| json["model"]["vocab"] = serde_json::json!({"a": 0})).to_string();
    assert!(Tokenizer::from_json("tokenizer.json", good.as_bytes()).is_ok());
    for n in 0..good.len() {
        assert!(
            matches!(
                Tokenizer::from_json("tokenizer.json", &good.as_bytes()[..n]),
                Err(Error::Tokenizer { .. })
            ),
            "{n}"
        );
    }
}

#[test]
fn tokens_of_all_files_are_recognised() {
    let token = |content: &str, special: bool| {
        serde_json::json!({"content": content, "special": special, "lstrip": false, "rstrip": false, "normalized": false,
            "single_word": false})
    };
    let config = serde_json::json!({
        "eos_token": "<|end|>",
        "added_tokens_decoder": {
            "256": token("<|end|>", true), "257": token("<think>", false), "300": token("</think>", false),
            "65": token("clash", false), "x": token("none", false), "301": 5
        }
    });
    let dir = folder(&[
        ("tokenizer.json", bytes_with(|_| {}).to_string()),
        ("tokenizer_config.json", config.to_string()),
        ("added_tokens.json", r#"{"<tool>": 302, "<think>": 257, "<bad>": -1}"#.to_owned()),
    ]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    assert_eq!(encode("a<think>b</think>c<tool>"), [97, 257, 98, 300, 99, 302]);
    assert_eq!(encode("<thin"), [60, 116, 104, 105, 110]);
    assert_eq!(encode("<|end|>"), [256]);
    assert_eq!(encode("clash").len(), 5);
    assert_eq!(tokenizer.token_to_id("<|end|>"), Some(256));
    assert_eq!(tokenizer.decode(&[97, 257, 98, 300]).unwrap(), "a<think>b</think>");

    // If a file beside it cannot be read, its tokens are missing, but the tokenizer works.
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    std::fs::write(dir.path().join("added_tokens.json"), "[]").unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("a<|end|>").unwrap(), [97, 256]);
    assert_eq!(tokenizer.encode("<think>").unwrap().len(), 7);
}

#[test]
fn tokens_in_the_vocabulary_that_only_the_config_names_as_added() {
    let config = serde_json::json!({"added_tokens_decoder": {"256": {"content": "<a>", "special": false}}});
    let json = bytes_with(|json| {
        json["added_tokens"] = serde_json::json!([]);
        json["model"]["vocab"]["<a>"] = 256.into();
    });
    let dir = folder(&[("tokenizer.json", json.to_string()), ("tokenizer_config.json", config.to_string())]);
    assert_eq!(Tokenizer::open(dir.path()).unwrap().encode("x<a>").unwrap(), [120, 256]);
}

#[test]
fn a_vocabulary_with_merges_is_a_tokenizer() {
    let json = bytes_with(|_| {});
    let mut vocab = json["model"]["vocab"].clone();
    vocab["ab"] = 256.into();
    vocab["Ġab"] = 257.into();
    let config = r#"{"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"258": {"content": "<|im_end|>", "special": true}}}"#;
    let dir = folder(&[
        ("vocab.json", vocab.to_string()),
        ("merges.txt", "#version: 0.2\na b\nĠ ab\n\n".to_owned()),
        ("tokenizer_config.json", config.to_owned()),
    ]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("ab ab12<|im_end|>").unwrap(), [256, 257, 49, 50, 258]);
    assert_eq!(tokenizer.decode(&[256, 257, 258]).unwrap(), "ab ab<|im_end|>");
    std::fs::write(dir.path().join("merges.txt"), "a b c\n").unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("merges.txt: expected two parts"), "{error}");
    std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
    assert!(matches!(Tokenizer::open(dir.path()), Err(Error::MissingFile { .. })));
}
