//! The recorded prompts and texts of the tiny checkpoints, through every step between text and tokens.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use rstest::rstest;
use serde::Deserialize;
use zmlx_models::{ChatMessage, ChatRequest, ChatTemplate, Detokenizer, Tokenizer};

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    messages: Option<Vec<ChatMessage>>,
    text: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    output_text: String,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn load(model: &str) -> (PathBuf, Vec<Prompt>) {
    let json = std::fs::read(fixtures().join(format!("golden/{model}.json"))).unwrap();
    let golden: Golden = serde_json::from_slice(&json).unwrap();
    assert_eq!(golden.prompts.len(), 7);
    (fixtures().join("models").join(model), golden.prompts)
}

#[rstest]
fn text_and_tokens(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] model: &str) {
    let (dir, prompts) = load(model);
    let tokenizer = Tokenizer::open(&dir).unwrap();
    assert_eq!(tokenizer.vocab_size(), 3072);
    for p in prompts {
        assert_eq!(tokenizer.encode(&p.text).unwrap(), p.prompt_tokens, "{}", p.name);
        assert_eq!(tokenizer.decode(&p.prompt_tokens).unwrap(), p.text, "{}", p.name);
        assert_eq!(tokenizer.decode(&p.tokens).unwrap(), p.output_text, "{}", p.name);

        let mut detokenizer = Detokenizer::new(&tokenizer);
        for (tokens, text) in [(&p.prompt_tokens, &p.text), (&p.tokens, &p.output_text)] {
            let pieces: Vec<String> = tokens.iter().map(|&t| detokenizer.push(t).unwrap()).collect();
            assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{}", p.name);
            assert_eq!(&(pieces.concat() + &detokenizer.flush().unwrap()), text, "{}", p.name);
        }
    }
}

#[rstest]
fn the_chat_prompt(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] model: &str) {
    let (dir, prompts) = load(model);
    let template = ChatTemplate::open(&dir).unwrap();
    let mut n_chats = 0;
    for p in prompts {
        let Some(messages) = &p.messages else { continue };
        n_chats += 1;
        let request = ChatRequest::new(messages);
        assert_eq!(template.render(&request).unwrap(), p.text);
    }
    assert_eq!(n_chats, 1);
}
