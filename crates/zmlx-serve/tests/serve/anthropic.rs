//! Anthropic's messages.

use serde_json::{Value, json};

use crate::support::{GLM_TEMPLATE, QWEN, THINKING_TEMPLATE, start, start_with};

const PATH: &str = "/v1/messages";

fn body(more: Value) -> Value {
    let mut body =
        json!({"model": QWEN, "max_tokens": 8, "messages": [{"role": "user", "content": "It is a truth"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_whole_message() {
    let server = start();
    let answer = server.ok("/v1/messages?beta=true", &body(json!({})));
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        (&answer["type"], &answer["role"], &answer["model"]),
        (&json!("message"), &json!("assistant"), &json!(QWEN))
    );
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("max_tokens"), &json!(null)));
    assert_eq!(answer["content"][0]["type"], "text");
    let usage = &answer["usage"];
    let sum: u64 = ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"]
        .iter()
        .map(|k| usage[k].as_u64().unwrap())
        .sum();
    assert_eq!(usage["output_tokens"], 8);
    let counted = server.ok(
        "/v1/messages/count_tokens",
        &json!({"model": QWEN, "messages": [{"role": "user", "content": "It is a truth"}]}),
    );
    assert_eq!(counted, json!({"input_tokens": sum}));
}

#[test]
fn cached_tokens_are_no_input() {
    let server = start();
    let long = json!([{"role": "user", "content": "It is a truth universally acknowledged. ".repeat(12)}]);
    let first = server.ok(PATH, &body(json!({"messages": long})))["usage"].clone();
    let second = server.ok(PATH, &body(json!({"messages": long})))["usage"].clone();
    let cached = second["cache_read_input_tokens"].as_u64().unwrap();
    assert!(cached > 32);
    assert_eq!(second["input_tokens"].as_u64().unwrap() + cached, first["input_tokens"].as_u64().unwrap());
}

#[test]
fn the_events_of_a_stream() {
    let server = start();
    let whole = server.ok(PATH, &body(json!({})));
    let events = server.stream(PATH, &body(json!({"stream": true})));
    for event in &events {
        assert_eq!(event.name.as_deref(), event.json()["type"].as_str());
    }
    let names: Vec<&str> = events.iter().map(|e| e.name.as_deref().unwrap()).collect();
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert!(names[2..names.len() - 3].iter().all(|n| *n == "content_block_delta"));
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let start = &events[0].json()["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &json!(null)));
    assert!(start["usage"]["input_tokens"].as_u64().unwrap() > 0);
    let text: String =
        events.iter().filter_map(|e| e.json()["delta"]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(json!(text), whole["content"][0]["text"]);
    let delta = events[events.len() - 2].json();
    assert_eq!(delta["delta"], json!({"stop_reason": "max_tokens", "stop_sequence": null}));
    assert_eq!(delta["usage"]["output_tokens"], 8);
}

#[test]
fn a_stop_sequence_is_told() {
    let server = start();
    let whole = server.ok(PATH, &body(json!({"max_tokens": 20})));
    let text = whole["content"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(6).take(5).collect();
    let cut = server.ok(PATH, &body(json!({"max_tokens": 20, "stop_sequences": ["@@", stop]})));
    assert_eq!((&cut["stop_reason"], &cut["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let end = server.ok(PATH, &body(json!({"logit_bias": {"2": 100}})));
    assert_eq!(
        (&end["stop_reason"], &end["content"]),
        (&json!("end_turn"), &json!([{"type": "text", "text": ""}]))
    );
    let events = server.stream(PATH, &body(json!({"logit_bias": {"2": 100}, "stream": true})));
    let names: Vec<&str> = events.iter().map(|e| e.name.as_deref().unwrap()).collect();
    assert_eq!(
        names,
        ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    );
}

#[test]
fn thinking_has_a_block_of_its_own() {
    let server = start_with(|setup| setup.template = Some(THINKING_TEMPLATE));
    let answer = server.ok(PATH, &body(json!({"thinking": {"type": "adaptive"}})));
    let block = &answer["content"][0];
    assert_eq!(block["type"], "thinking");
    assert!(!block["thinking"].as_str().unwrap().is_empty() && block["signature"].is_string());
    let off = server.ok(PATH, &body(json!({"thinking": {"type": "disabled"}})));
    assert_eq!(off["content"][0]["type"], "text");
    let events = server.stream(PATH, &body(json!({"stream": true})));
    let kinds: Vec<String> =
        events.iter().filter_map(|e| e.json()["delta"]["type"].as_str().map(str::to_owned)).collect();
    let (last, rest) = kinds.split_last().unwrap();
    assert_eq!(last, "signature_delta");
    assert!(rest.iter().all(|kind| kind == "thinking_delta"));
}

#[test]
fn blocks_become_messages() {
    let server = start_with(|setup| setup.template = Some(GLM_TEMPLATE));
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "Go", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [
            {"type": "text", "text": "and"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "ok"}], "is_error": false}]},
        {"role": "system", "content": "Hurry."},
        {"role": "user", "content": "Well?"}
    ]);
    let system = json!([{"type": "text", "text": "x-anthropic-billing-header: cc_version=1"}, {"type": "text", "text": "Be brief."}]);
    let counted = server
        .ok("/v1/messages/count_tokens", &json!({"model": QWEN, "messages": messages, "system": system}));
    let same = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "I look.", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "content": "ok"}, {"role": "user", "content": "and"},
        {"role": "system", "content": "Hurry."}, {"role": "user", "content": "Well?"}
    ]);
    let prompt = server.ok("/apply-template", &json!({"messages": same}))["prompt"].clone();
    assert!(
        prompt
            .as_str()
            .unwrap()
            .contains("<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>")
    );
    let n = server.ok("/tokenize", &json!({"content": prompt}))["tokens"].as_array().unwrap().len();
    assert_eq!(counted["input_tokens"], json!(n));
}

#[test]
fn a_system_message_in_the_middle_where_the_template_wants_none() {
    const STRICT: &str = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let server = start_with(|setup| setup.template = Some(STRICT));
    let messages = json!([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}]);
    let prompt = server.ok("/apply-template", &json!({"messages": messages}))["prompt"].clone();
    assert_eq!(
        prompt,
        "<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    );
    server.ok(PATH, &body(json!({"messages": messages})));
}

#[test]
fn what_is_wrong_is_refused() {
    let server = start();
    for more in [
        json!({"model": null}),
        json!({"max_tokens": null}),
        json!({"max_tokens": 0}),
        json!({"messages": []}),
        json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "document"}]}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "tool", "content": "x"}]}),
        json!({"tool_choice": {"type": "any"}}),
        json!({"thinking": {"type": "maybe"}}),
    ] {
        let (status, answer) = server.post(PATH, &body(more.clone()));
        assert_eq!(
            (status, &answer["error"]["type"]),
            (400, &json!("invalid_request_error")),
            "{more}: {answer}"
        );
    }
    let (status, answer) = server.post(PATH, &body(json!({"model": "claude"})));
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found_error")));
}
