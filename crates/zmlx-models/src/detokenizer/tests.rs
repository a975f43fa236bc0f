use rstest::rstest;

use super::*;

/// A byte-level vocabulary of the 256 bytes and some tokens of several bytes.
fn byte_level() -> Tokenizer {
    let alphabet = (0x21..=0x7eu32).chain(0xa1..=0xac).chain(0xae..=0xff).chain(0x100..=0x143);
    let mut vocab = serde_json::Map::new();
    for (id, c) in alphabet.filter_map(char::from_u32).enumerate() {
        vocab.insert(c.to_string(), id.into());
    }
    // " the", the first three bytes of an emoji, and its last byte with a letter.
    for token in ["Ġthe", "ðŁ¦", "Ģa"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    let special = vocab.len();
    from_value(serde_json::json!({
        "version": "1.0",
        "added_tokens": [
            {"id": special, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false},
            {"id": special + 1, "content": "two words", "special": false, "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false}
        ],
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    }))
}

/// Words with `▁` for a space, and bytes spelled out: the layout of sentencepiece vocabularies.
fn sentencepiece() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), byte.into());
    }
    for token in ["▁", "▁the", "▁sea", "s", "▁▁", "é", "\u{fffd}"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    from_value(serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    }))
}

fn from_value(json: serde_json::Value) -> Tokenizer {
    Tokenizer::from_json("test", json.to_string().as_bytes()).unwrap()
}

fn stream(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokenizer);
    let mut pieces: Vec<String> = tokens.iter().map(|&t| detokenizer.push(t).unwrap()).collect();
    pieces.push(detokenizer.flush().unwrap());
    pieces
}

fn ids(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<u32> {
    tokens.iter().map(|t| tokenizer.token_to_id(t).unwrap()).collect()
}

/// A fixed stream of pseudo-random numbers.
fn lcg(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as u32
}

#[rstest]
#[case::byte_level(byte_level())]
#[case::sentencepiece(sentencepiece())]
fn pieces_add_up_to_the_whole(#[case] tokenizer: Tokenizer) {
    // Two ids beyond the vocabulary, which decode to nothing at any place.
    let n = tokenizer.vocab_size() as u32 + 2;
    let mut state = 1;
    let mut n_invalid = 0;
    for len in 0..400 {
        let tokens: Vec<u32> = (0..len % 40).map(|_| lcg(&mut state) % n).collect();
        let whole = tokenizer.decode(&tokens).unwrap();
        n_invalid += usize::from(whole.contains('\u{fffd}'));
        assert_eq!(stream(&tokenizer, &tokens).concat(), whole, "{tokens:?}");
    }
    assert!(n_invalid > 100, "random bytes are rarely UTF-8: {n_invalid}");
}

#[test]
fn byte_level_gives_each_character_when_its_last_byte_comes() {
    let tokenizer = byte_level();
    let bytes: Vec<String> = "aé你🦀".bytes().map(|b| bytes_token(&tokenizer, b)).collect();
    let tokens = ids(&tokenizer, &bytes.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(stream(&tokenizer, &tokens), ["a", "", "é", "", "", "你", "", "", "", "🦀", ""]);
    let tokens = ids(&tokenizer, &["Ġthe", "ðŁ¦", "Ģa", "<|end|>", "two words", "ðŁ¦"]);
    assert_eq!(stream(&tokenizer, &tokens), [" the", "", "🦀a", "<|end|>", "two words", "", "\u{fffd}"]);
}

#[test]
fn byte_level_gives_every_two_bytes_as_the_whole() {
    let tokenizer = byte_level();
    let table: Vec<u32> =
        (0..=255).map(|b| tokenizer.token_to_id(&bytes_token(&tokenizer, b)).unwrap()).collect();
    for a in 0..256 {
        for b in 0..256 {
            let tokens = [table[0xf0], table[a], table[b], table[0x80], table[0x41]];
            assert_eq!(stream(&tokenizer, &tokens).concat(), tokenizer.decode(&tokens).unwrap(), "{a} {b}");
        }
    }
}

#[test]
fn sentencepiece_strips_only_the_first_space() {
    let tokenizer = sentencepiece();
    let tokens = ids(&tokenizer, &["▁the", "▁sea", "s", "▁", "▁", "▁the", "é"]);
    assert_eq!(stream(&tokenizer, &tokens), ["the", " sea", "s", " ", " ", " the", "é", ""]);
    let tokens = ids(&tokenizer, &["▁", "▁sea", "<0xF0>", "<0x9F>", "<0xA6>", "<0x80>", "s", "<0xC3>"]);
    assert_eq!(stream(&tokenizer, &tokens), ["", " sea", "", "", "", "", "🦀s", "", "\u{fffd}"]);
}

#[test]
fn a_flushed_detokenizer_starts_anew() {
    for tokenizer in [byte_level(), sentencepiece()] {
        let word = ids(&tokenizer, &["s"])[0];
        let mut detokenizer = Detokenizer::new(&tokenizer);
        for _ in 0..2 {
            let text = detokenizer.push(word).unwrap() + &detokenizer.flush().unwrap();
            assert_eq!(text, "s");
        }
    }
}

/// The vocabulary's spelling of a byte. It is found through the decoder and not through the code under test.
fn bytes_token(tokenizer: &Tokenizer, byte: u8) -> String {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let c = if printable(byte) {
        char::from(byte)
    } else {
        let nth = (0..byte).filter(|&b| !printable(b)).count() as u32;
        char::from_u32(0x100 + nth).unwrap()
    };
    assert!(tokenizer.token_to_id(&c.to_string()).is_some());
    c.to_string()
}
