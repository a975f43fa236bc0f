//! Tool calls that a grammar forces, in every syntax and interface: the tiny model cannot do anything else.

use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{CODER_TEMPLATE, GLM_TEMPLATE, QWEN_TEMPLATE, TestServer, start_with};

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "warm": {"type": "boolean"}
            },
            "required": ["city", "days", "warm"], "additionalProperties": false
        }}},
        {"type": "function", "function": {"name": "get_time", "parameters": {
            "type": "object", "properties": {}, "additionalProperties": false
        }}}
    ])
}

fn server(template: &'static str) -> TestServer {
    start_with(|setup| setup.template = Some(template))
}

fn body(choice: Value) -> Value {
    json!({
        "messages": [{"role": "user", "content": "The weather?"}],
        "tools": tools(), "tool_choice": choice, "max_tokens": 200, "parallel_tool_calls": false
    })
}

fn named() -> Value {
    json!({"type": "function", "function": {"name": "get_weather"}})
}

#[track_caller]
fn check_arguments(text: &str) {
    let arguments: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
    assert!(arguments["warm"].is_boolean(), "{arguments}");
}

#[rstest]
#[case::glm(GLM_TEMPLATE)]
#[case::qwen(QWEN_TEMPLATE)]
#[case::coder(CODER_TEMPLATE)]
fn a_forced_call(#[case] template: &'static str) {
    let server = server(template);
    let answer = server.ok("/v1/chat/completions", &body(named()));
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!(null)),
        "{answer}"
    );
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("get_weather")));
    let id = call["id"].as_str().unwrap();
    assert!(id.starts_with("call_") && id.len() == 29);
    check_arguments(call["function"]["arguments"].as_str().unwrap());
    let required = server.ok("/v1/chat/completions", &body(json!("required")));
    assert_eq!(required["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

#[rstest]
#[case::glm(GLM_TEMPLATE)]
#[case::qwen(QWEN_TEMPLATE)]
#[case::coder(CODER_TEMPLATE)]
fn a_streamed_call(#[case] template: &'static str) {
    let server = server(template);
    let mut body = body(named());
    body["stream"] = json!(true);
    let events = server.stream("/v1/chat/completions", &body);
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| e.json()).collect();
    let deltas: Vec<Value> = chunks
        .iter()
        .flat_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(
        (&deltas[0]["function"]["name"], &deltas[0]["function"]["arguments"]),
        (&json!("get_weather"), &json!(""))
    );
    assert!(deltas[0]["id"].is_string() && deltas[0]["type"] == "function");
    assert!(deltas[1..].iter().all(|d| d.get("id").is_none() && d["index"] == 0));
    let arguments: String = deltas.iter().map(|d| d["function"]["arguments"].as_str().unwrap()).collect();
    check_arguments(&arguments);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn a_call_in_anthropics_words() {
    let server = server(GLM_TEMPLATE);
    let tool = &tools()[0]["function"];
    let mut body = json!({
        "model": "", "max_tokens": 200,
        "messages": [{"role": "user", "content": "The weather?"}],
        "tools": [
            {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]},
            {"type": "web_search_20250305", "name": "web_search"}
        ],
        "tool_choice": {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": true}
    });
    let answer = server.ok("/v1/messages", &body);
    assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
    let block = &answer["content"][0];
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("get_weather")));
    assert!(block["id"].as_str().unwrap().starts_with("toolu_"));
    check_arguments(&block["input"].to_string());
    body["stream"] = json!(true);
    let events = server.stream("/v1/messages", &body);
    let names: Vec<String> = events.iter().filter_map(|e| e.name.clone()).collect();
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let start = events[1].json();
    assert_eq!(
        (&start["content_block"]["type"], &start["content_block"]["input"]),
        (&json!("tool_use"), &json!({}))
    );
    let partial: String = events
        .iter()
        .map(|e| e.json())
        .filter(|e| e["type"] == "content_block_delta")
        .map(|e| e["delta"]["partial_json"].as_str().unwrap().to_owned())
        .collect();
    check_arguments(&partial);
}

#[test]
fn a_call_in_the_words_of_responses() {
    let server = server(QWEN_TEMPLATE);
    let mut tool = tools()[0]["function"].clone();
    tool["type"] = json!("function");
    let body = json!({
        "input": "The weather?", "tools": [tool, {"type": "web_search"}], "max_output_tokens": 200,
        "tool_choice": {"type": "function", "name": "get_weather"}, "stream": true
    });
    let events: Vec<Value> = server.stream("/v1/responses", &body).iter().map(|e| e.json()).collect();
    let of = |kind: &str| events.iter().filter(|e| e["type"] == kind).cloned().collect::<Vec<_>>();
    let added = &of("response.output_item.added")[0]["item"];
    assert_eq!(
        (&added["type"], &added["name"], &added["arguments"]),
        (&json!("function_call"), &json!("get_weather"), &json!(""))
    );
    let deltas: String = of("response.function_call_arguments.delta")
        .iter()
        .map(|e| e["delta"].as_str().unwrap().to_owned())
        .collect();
    let done = &of("response.output_item.done")[0]["item"];
    assert_eq!(done["arguments"], json!(deltas));
    check_arguments(&deltas);
    assert_eq!(of("response.completed")[0]["response"]["output"][0], *done);
}

#[test]
fn a_tool_that_takes_plain_text() {
    let server = server(QWEN_TEMPLATE);
    let tools = json!([
        {"type": "custom", "name": "apply_patch", "description": "Patches", "format": {"type": "grammar"}},
        {"type": "namespace", "name": "mcp__files", "tools": [{"type": "function", "name": "read", "parameters": {
            "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false}}]}
    ]);
    let ask = |name: &str| {
        let choice = json!({"type": "function", "name": name});
        let body = json!({"input": "Go", "tools": tools, "tool_choice": choice, "max_output_tokens": 100});
        server.ok("/v1/responses", &body)["output"].clone()
    };
    let read = &ask("mcp__files__read")[0];
    assert_eq!(
        (&read["type"], &read["name"], &read["namespace"]),
        (&json!("function_call"), &json!("read"), &json!("mcp__files"))
    );
    // Its text may be too long for the answer, but what comes has the right form.
    let patch = ask("apply_patch");
    for item in patch.as_array().unwrap() {
        assert!(["custom_tool_call", "message"].contains(&item["type"].as_str().unwrap()), "{item}");
    }
}

#[test]
fn strict_tools_and_none() {
    let server = server(QWEN_TEMPLATE);
    let mut strict = body(json!("auto"));
    strict["tools"][0]["function"]["strict"] = json!(true);
    strict["max_tokens"] = json!(12);
    let answer = server.ok("/v1/chat/completions", &strict);
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    let mut none = body(json!("none"));
    none["max_tokens"] = json!(4);
    let with = server.ok("/v1/chat/completions", &none)["usage"]["prompt_tokens"].clone();
    let without = json!({"messages": none["messages"], "max_tokens": 4});
    assert_eq!(with, server.ok("/v1/chat/completions", &without)["usage"]["prompt_tokens"]);
}

#[test]
fn a_forced_call_where_the_template_shows_no_syntax() {
    let server = start_with(|_| ());
    let mut body = body(json!("required"));
    body.as_object_mut().unwrap().remove("parallel_tool_calls");
    body["tools"].as_array_mut().unwrap().truncate(1);
    let answer = server.ok("/v1/chat/completions", &body);
    check_arguments(
        answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap(),
    );
    let none = start_with(|setup| setup.options.tool_parser = zmlx_serve::ToolParser::Off);
    let (status, answer) = none.post("/v1/chat/completions", &body);
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("tool_choice")));
}
