//! OpenAI's Responses.

use serde_json::{Value, json};

use crate::support::{QWEN, THINKING_TEMPLATE, start, start_with};

const PATH: &str = "/v1/responses";

fn body(more: Value) -> Value {
    let mut body = json!({"model": QWEN, "input": "It is a truth", "max_output_tokens": 8});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn events(server: &crate::support::TestServer, more: Value) -> Vec<Value> {
    let mut body = body(more);
    body["stream"] = json!(true);
    let events = server.stream(PATH, &body);
    for (i, event) in events.iter().enumerate() {
        let json = event.json();
        assert_eq!(
            (event.name.as_deref(), json["sequence_number"].as_u64()),
            (json["type"].as_str(), Some(i as u64))
        );
    }
    events.iter().map(|e| e.json()).collect()
}

#[test]
fn a_whole_response() {
    let server = start();
    let answer = server.ok(PATH, &body(json!({"instructions": "Be brief."})));
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(answer["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!((&answer["instructions"], &answer["max_output_tokens"]), (&json!("Be brief."), &json!(8)));
    let item = &answer["output"][0];
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(
        (&item["content"][0]["type"], &item["content"][0]["annotations"]),
        (&json!("output_text"), &json!([]))
    );
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["output_tokens"], &usage["input_tokens_details"]["cached_tokens"]),
        (&json!(8), &json!(0))
    );
    assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], 0);
    let ended = server.ok(PATH, &body(json!({"logit_bias": {"2": 100}})));
    assert_eq!((&ended["status"], &ended["error"]), (&json!("completed"), &json!(null)));
}

#[test]
fn the_events_of_a_stream() {
    let server = start();
    let whole = server.ok(PATH, &body(json!({})));
    let events = events(&server, json!({}));
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    let n = kinds.len();
    assert!(kinds[4..n - 4].iter().all(|k| *k == "response.output_text.delta"));
    assert_eq!(
        kinds[n - 4..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete"
        ]
    );
    let text: String = events.iter().filter_map(|e| e["delta"].as_str()).collect();
    assert_eq!(json!(text), whole["output"][0]["content"][0]["text"]);
    assert_eq!(events[n - 2]["item"]["content"][0]["text"], json!(text));
    let last = &events[n - 1]["response"];
    assert_eq!((&last["id"], &last["usage"]["output_tokens"]), (&events[0]["response"]["id"], &json!(8)));
    assert_eq!(last["output"][0], events[n - 2]["item"]);
}

#[test]
fn thinking_is_an_item() {
    let server = start_with(|setup| setup.template = Some(THINKING_TEMPLATE));
    let events = events(&server, json!({}));
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert!(
        kinds.contains(&"response.reasoning_text.delta") && kinds.contains(&"response.reasoning_text.done")
    );
    let item = &events[kinds.len() - 2]["item"];
    assert_eq!((&item["type"], &item["summary"]), (&json!("reasoning"), &json!([])));
    assert_eq!(item["content"][0]["type"], "reasoning_text");
    let off = server.ok(PATH, &body(json!({"reasoning": {"effort": "none"}})));
    assert_eq!(off["output"][0]["type"], "message");
}

#[test]
fn items_become_messages() {
    let server = start();
    let input = json!([
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "Go"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": null},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "ok"}]},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"}
    ]);
    let answer = server.ok(PATH, &body(json!({"input": input, "instructions": "Hello."})));
    let same = json!([
        {"role": "system", "content": "Hello."}, {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "I look."}, {"role": "tool", "content": "ok"}, {"role": "assistant", "content": ""},
        {"role": "tool", "content": "done"}
    ]);
    let chat = server.ok("/v1/chat/completions", &json!({"messages": same, "max_tokens": 1}));
    assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
}

#[test]
fn there_is_no_state() {
    let server = start();
    for (more, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
    ] {
        let (status, answer) = server.post(PATH, &body(more));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
}

#[test]
fn the_end_of_the_context_is_a_failure() {
    let server = start_with(|setup| setup.engine.context = Some(48));
    let within = events(&server, json!({"max_output_tokens": null}));
    let last = within.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["error"]["code"]),
        (&json!("response.failed"), &json!("context_length_exceeded"))
    );
    let before = events(&server, json!({"input": "truth ".repeat(100)}));
    let last = before.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["error"]["code"]),
        (&json!("response.failed"), &json!("context_length_exceeded"))
    );
    let (status, answer) = server.post(PATH, &body(json!({"input": "truth ".repeat(100)})));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
}
