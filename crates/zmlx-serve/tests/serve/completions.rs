//! Text completions.

use serde_json::{Value, json};

use crate::support::{NOVEL, start};

const PATH: &str = "/v1/completions";

#[test]
fn a_text_goes_on() {
    let server = start();
    let body = json!({"prompt": NOVEL, "max_tokens": 12});
    let answer = server.ok(PATH, &body);
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(", must be in want of a wife"), "{text:?}");
    assert_eq!(
        (&answer["choices"][0]["finish_reason"], &answer["choices"][0]["logprobs"]),
        (&json!("length"), &json!(null))
    );
    let tokens = server.ok("/tokenize", &json!({"content": NOVEL}))["tokens"].clone();
    for prompt in [json!([NOVEL]), tokens.clone(), json!([tokens])] {
        let same = server.ok(PATH, &json!({"prompt": prompt, "max_tokens": 12}));
        assert_eq!(same["choices"], answer["choices"]);
    }
    let events = server.stream(PATH, &json!({"prompt": NOVEL, "max_tokens": 12, "stream": true}));
    assert_eq!(events.last().unwrap().data, "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| e.json()).collect();
    let streamed: String = chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, text);
    assert!(chunks.iter().all(|c| c["object"] == "text_completion"));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn the_leading_space_is_kept() {
    let server = start();
    let answer = server.ok(PATH, &json!({"prompt": "It is a truth universally", "max_tokens": 1}));
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with(' '), "{answer}");
}

#[test]
fn logprobs() {
    let server = start();
    let answer = server.ok(PATH, &json!({"prompt": NOVEL, "max_tokens": 5, "logprobs": 2}));
    let logprobs = &answer["choices"][0]["logprobs"];
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[key].as_array().unwrap().len(), 5, "{key}");
    }
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
    assert_eq!(logprobs["text_offset"][0], 0);
}

#[test]
fn prompts_that_are_none() {
    let server = start();
    for prompt in [
        json!(null),
        json!(""),
        json!([]),
        json!(["a", "b"]),
        json!([99999]),
        json!([-1]),
        json!(5),
        json!([[]]),
    ] {
        let (status, answer) = server.post(PATH, &json!({"prompt": prompt}));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("prompt")), "{prompt}");
    }
    let (status, answer) = server.post(PATH, &json!({"prompt": "x", "echo": true}));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("echo")));
}
