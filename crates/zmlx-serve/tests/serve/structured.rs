//! Structured output.

use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{THINKING_TEMPLATE, TestServer, start, start_with};

fn ask(server: &TestServer, more: Value) -> (u16, Value) {
    let mut body = json!({"messages": [{"role": "user", "content": "It is"}], "max_tokens": 200});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.post("/v1/chat/completions", &body)
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "enum": ["Elizabeth", "Jane"]}, "age": {"type": "integer", "minimum": 10, "maximum": 99}},
        "required": ["name", "age"], "additionalProperties": false
    })
}

#[track_caller]
fn check(content: &Value) {
    let value: Value =
        serde_json::from_str(content.as_str().unwrap()).unwrap_or_else(|e| panic!("{e}: {content}"));
    assert!(["Elizabeth", "Jane"].contains(&value["name"].as_str().unwrap()), "{value}");
    assert!((10..=99).contains(&value["age"].as_i64().unwrap()), "{value}");
}

#[test]
fn a_schema() {
    let server = start();
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema()}});
    for more in [
        json!({"response_format": format}),
        json!({"structured_outputs": {"json": schema()}}),
        json!({"response_format": format, "temperature": 2.0}),
    ] {
        let (status, answer) = ask(&server, more);
        assert_eq!(status, 200, "{answer}");
        check(&answer["choices"][0]["message"]["content"]);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let anthropic = server.ok(
        "/v1/messages",
        &json!({
            "model": "", "max_tokens": 200, "messages": [{"role": "user", "content": "It is"}],
            "output_config": {"format": {"type": "json_schema", "schema": schema()}}
        }),
    );
    check(&anthropic["content"][0]["text"]);
    let response = server.ok(
        "/v1/responses",
        &json!({
            "input": "It is", "text": {"format": {"type": "json_schema", "name": "x", "schema": schema()}}
        }),
    );
    check(&response["output"][0]["content"][0]["text"]);
}

#[test]
fn a_schema_behind_thinking() {
    let server = start_with(|setup| setup.template = Some(THINKING_TEMPLATE));
    let format = json!({"type": "json_schema", "json_schema": {"schema": schema()}});
    let off = json!({"enable_thinking": false});
    let (_, answer) = ask(&server, json!({"response_format": format, "chat_template_kwargs": off}));
    check(&answer["choices"][0]["message"]["content"]);
    // Thinking is not constrained. The tiny model does not know how to end it, so a bias makes it end.
    let (_, answer) = ask(&server, json!({"response_format": format, "max_tokens": 30}));
    assert!(!answer["choices"][0]["message"]["reasoning_content"].as_str().unwrap().is_empty());
}

#[rstest]
#[case::choice(json!({"choice": ["truth", "universally"]}), &["truth", "universally"])]
#[case::regex(json!({"regex": "(a/b|c\\.d)"}), &["a/b", "c.d"])]
#[case::anchored(json!({"regex": "^(ab|cd)$"}), &["ab", "cd"])]
#[case::grammar_with_start(json!({"grammar": "start: \"start\" | \"restart\""}), &["start", "restart"])]
#[case::grammar(json!({"grammar": "start: \"x\" restart\nrestart: \"y\" | \"z\""}), &["xy", "xz"])]
fn other_structures(#[case] structured: Value, #[case] admitted: &[&str]) {
    let server = start();
    let (status, answer) = ask(&server, json!({"structured_outputs": structured}));
    assert_eq!(status, 200, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(admitted.contains(&text), "{text:?}");
    let text = server
        .ok("/v1/completions", &json!({"prompt": "It", "structured_outputs": structured, "max_tokens": 50}));
    assert!(admitted.contains(&text["choices"][0]["text"].as_str().unwrap()));
}

#[test]
fn any_object() {
    let server = start();
    let (_, answer) = ask(&server, json!({"response_format": {"type": "json_object"}, "max_tokens": 40}));
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().starts_with('{'));
}

#[rstest]
#[case(json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wizard"}}}}))]
#[case(json!({"response_format": {"type": "json_schema", "json_schema": {}}}))]
#[case(json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}))]
#[case(json!({"structured_outputs": {"regex": "("}}))]
#[case(json!({"structured_outputs": {"grammar": "nonsense :::"}}))]
#[case(json!({"structured_outputs": {"choice": []}}))]
#[case(json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "https://example.com/x"}}}}))]
fn what_cannot_be_had_is_refused(#[case] more: Value) {
    let server = start();
    let (status, answer) = ask(&server, more);
    assert_eq!((status, &answer["error"]["type"]), (400, &json!("invalid_request_error")), "{answer}");
}

#[test]
fn a_schema_beside_tools() {
    let server = start_with(|setup| setup.template = Some(crate::support::QWEN_TEMPLATE));
    let format = json!({"type": "json_schema", "json_schema": {"schema": schema()}});
    let tool = json!({"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}});
    let (status, answer) = ask(&server, json!({"response_format": format, "tools": [tool]}));
    assert_eq!(status, 200, "{answer}");
    let message = &answer["choices"][0]["message"];
    match message["tool_calls"].as_array() {
        Some(calls) => assert_eq!(calls[0]["function"]["name"], "get_time"),
        None => check(&message["content"]),
    }
}
