//! Chat completions.

use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{QWEN, THINKING_TEMPLATE, start, start_with};

const PATH: &str = "/v1/chat/completions";

fn hello(more: Value) -> Value {
    let mut body =
        json!({"model": QWEN, "max_tokens": 8, "messages": [{"role": "user", "content": "It is a truth"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_whole_answer_has_every_field() {
    let server = start();
    let answer = server.ok(PATH, &hello(json!({})));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], QWEN);
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(answer["system_fingerprint"].is_string());
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert!(choice.as_object().unwrap().contains_key("logprobs"));
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    let usage = &answer["usage"];
    let n_prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        (usage["completion_tokens"].as_u64(), usage["total_tokens"].as_u64()),
        (Some(8), Some(n_prompt + 8))
    );
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
    for key in [
        "cache_n",
        "prompt_n",
        "prompt_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
        "predicted_per_second",
    ] {
        assert!(answer["timings"][key].is_number(), "{key}");
    }
    assert_eq!(server.ok("/chat/completions", &hello(json!({})))["choices"], answer["choices"]);
}

#[test]
fn a_stream_says_the_same() {
    let server = start();
    let whole = server.ok(PATH, &hello(json!({})));
    let events =
        server.stream(PATH, &hello(json!({"stream": true, "stream_options": {"include_usage": true}})));
    assert_eq!(events.last().unwrap().data, "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| e.json()).collect();
    let first = &chunks[0];
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, rest) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(8)));
    let last = rest.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]),
        (&json!({}), &json!("length"))
    );
    let mut text = String::new();
    for chunk in rest {
        assert_eq!((&chunk["id"], &chunk["object"]), (&first["id"], &json!("chat.completion.chunk")));
        assert!(!chunk.as_object().unwrap().contains_key("usage"));
        text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    let plain = server.stream(PATH, &hello(json!({"stream": true})));
    assert!(plain[..plain.len() - 1].iter().all(|e| e.json().get("usage").is_none()));
}

#[rstest]
#[case::no_messages(json!({"messages": null}), "messages")]
#[case::empty(json!({"messages": []}), "messages")]
#[case::role(json!({"messages": [{"role": "wizard", "content": "x"}]}), "messages[0].role")]
#[case::part(json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}), "messages[0].content[0].type")]
#[case::content(json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content")]
#[case::temperature(json!({"temperature": 5.1}), "temperature")]
#[case::temperature_type(json!({"temperature": "hot"}), "temperature")]
#[case::top_p(json!({"top_p": 0}), "top_p")]
#[case::top_k(json!({"top_k": -2}), "top_k")]
#[case::min_p(json!({"min_p": 2}), "min_p")]
#[case::repetition(json!({"repetition_penalty": 0}), "repetition_penalty")]
#[case::presence(json!({"presence_penalty": 3}), "presence_penalty")]
#[case::max_tokens(json!({"max_tokens": 0}), "max_tokens")]
#[case::max_completion(json!({"max_completion_tokens": -1}), "max_completion_tokens")]
#[case::n(json!({"n": 2}), "n")]
#[case::stop(json!({"stop": ""}), "stop")]
#[case::stops(json!({"stop": vec!["x"; 17]}), "stop")]
#[case::stop_type(json!({"stop": [1]}), "stop")]
#[case::logit_bias(json!({"logit_bias": {"99999": 1}}), "logit_bias")]
#[case::bias_value(json!({"logit_bias": {"1": 101}}), "logit_bias.1")]
#[case::top_logprobs(json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs")]
#[case::stream(json!({"stream": "yes"}), "stream")]
#[case::tools(json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name")]
#[case::choice(json!({"tool_choice": "sometimes"}), "tool_choice")]
#[case::required(json!({"tool_choice": "required"}), "tool_choice")]
#[case::format(json!({"response_format": {"type": "xml"}}), "response_format.type")]
#[case::seed(json!({"seed": "x"}), "seed")]
#[case::template(json!({"chat_template": "x"}), "chat_template")]
#[case::continued(json!({"continue_final_message": true}), "continue_final_message")]
fn what_is_wrong_is_named(#[case] wrong: Value, #[case] param: &str) {
    let server = start();
    let (status, answer) = server.post(PATH, &hello(wrong));
    assert_eq!(status, 400, "{answer}");
    let error = &answer["error"];
    assert_eq!(
        (&error["type"], &error["param"]),
        (&json!("invalid_request_error"), &json!(param)),
        "{error}"
    );
    assert!(error["message"].as_str().unwrap().contains(param));
    assert!(error.as_object().unwrap().contains_key("code"));
}

#[test]
fn null_is_absent_and_unknown_fields_are_ignored() {
    let server = start();
    let fields = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
        "stop",
        "n",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "structured_outputs",
        "chat_template_kwargs",
        "reasoning_effort",
        "ignore_eos",
        "min_tokens",
        "stop_token_ids",
        "continue_final_message",
        "max_completion_tokens",
        "functions",
        "chat_template",
    ];
    let nulls: serde_json::Map<String, Value> =
        fields.iter().map(|f| ((*f).to_owned(), Value::Null)).collect();
    let want = server.ok(PATH, &hello(json!({})));
    let got = server.ok(PATH, &hello(Value::Object(nulls)));
    assert_eq!(got["choices"], want["choices"]);
    let extra = json!({
        "user": "u", "store": true, "metadata": {"a": 1}, "service_tier": "auto", "prompt_cache_key": "k", "verbosity": "low",
        "modalities": ["text"], "keep_alive": 5, "cache_prompt": true, "id_slot": -1, "no_such_field": {}
    });
    assert_eq!(server.ok(PATH, &hello(extra))["choices"], want["choices"]);
}

#[test]
fn the_model_has_several_names() {
    let server = start_with(|setup| setup.options.aliases = vec!["pretty".into()]);
    for name in [
        json!(null),
        json!(""),
        json!("default"),
        json!("default_model"),
        json!("some/path"),
        json!("pretty"),
    ] {
        server.ok(PATH, &hello(json!({"model": name})));
    }
    let (status, answer) = server.post(PATH, &hello(json!({"model": "another"})));
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    let any = start_with(|setup| setup.options.any_model = true);
    assert_eq!(any.ok(PATH, &hello(json!({"model": "another"})))["model"], "another");
}

#[test]
fn stop_strings_cut_the_text() {
    let server = start();
    let whole = server.ok(PATH, &hello(json!({"max_tokens": 20})));
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let middle: String = text.chars().skip(6).take(5).collect();
    let want = &text[..text.find(&middle).unwrap()];
    let cut = server.ok(PATH, &hello(json!({"max_tokens": 20, "stop": [middle, "@@"]})));
    assert_eq!(
        (&cut["choices"][0]["message"]["content"], &cut["choices"][0]["finish_reason"]),
        (&json!(want), &json!("stop"))
    );
}

#[test]
fn equal_seeds_give_equal_texts() {
    let server = start();
    let ask = |seed: Value| {
        let answer = server.ok(PATH, &hello(json!({"temperature": 1.5, "seed": seed, "max_tokens": 24})));
        answer["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(ask(json!(7)), ask(json!(7)));
    assert_ne!(ask(json!(7)), ask(json!(8)));
    assert_ne!(ask(json!(null)), ask(json!(null)));
}

#[test]
fn logprobs_come_one_per_token() {
    let server = start();
    let body = json!({"logprobs": true, "top_logprobs": 3});
    let answer = server.ok(PATH, &hello(body.clone()));
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 8);
    for entry in &content {
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(entry["top_logprobs"][0]["token"], entry["token"], "greedy takes the best");
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0 && entry["bytes"].is_array());
    }
    let text: String = content.iter().map(|e| e["token"].as_str().unwrap()).collect();
    assert_eq!(text, answer["choices"][0]["message"]["content"].as_str().unwrap());
    let mut streaming = body;
    streaming["stream"] = json!(true);
    let events = server.stream(PATH, &hello(streaming));
    let streamed: Vec<Value> = events[..events.len() - 1]
        .iter()
        .flat_map(|e| e.json()["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(streamed, content);
}

#[test]
fn a_bias_decides() {
    let server = start();
    let answer = server.ok(PATH, &hello(json!({"logit_bias": {"300": 100}, "max_tokens": 3})));
    let token = server.ok("/detokenize", &json!({"tokens": [300]}))["content"].as_str().unwrap().to_owned();
    assert_eq!(answer["choices"][0]["message"]["content"], json!(token.repeat(3)));
}

#[test]
fn end_tokens() {
    let server = start();
    let end = json!({"logit_bias": {"2": 100}, "max_tokens": 4});
    let answer = server.ok(PATH, &hello(end.clone()));
    assert_eq!(
        (&answer["choices"][0]["message"]["content"], &answer["choices"][0]["finish_reason"]),
        (&json!(""), &json!("stop"))
    );
    assert_eq!(answer["usage"]["completion_tokens"], 1, "the end token counts");
    let mut ignored = end;
    ignored["ignore_eos"] = json!(true);
    let answer = server.ok(PATH, &hello(ignored));
    assert_eq!(
        (&answer["choices"][0]["message"]["content"], &answer["usage"]["completion_tokens"]),
        (&json!(""), &json!(4))
    );
    let stopped = server.ok(PATH, &hello(json!({"logit_bias": {"300": 100}, "stop_token_ids": [300]})));
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[test]
fn thinking_is_told_apart() {
    let server = start_with(|setup| setup.template = Some(THINKING_TEMPLATE));
    let answer = server.ok(PATH, &hello(json!({})));
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "");
    assert!(!message["reasoning_content"].as_str().unwrap().is_empty());
    assert_eq!(message["reasoning_content"], message["reasoning"]);
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 8);
    for off in
        [json!({"reasoning_effort": "none"}), json!({"chat_template_kwargs": {"enable_thinking": false}})]
    {
        let message = server.ok(PATH, &hello(off))["choices"][0]["message"].clone();
        assert!(
            message.get("reasoning_content").is_none() && !message["content"].as_str().unwrap().is_empty()
        );
    }
    let events = server.stream(PATH, &hello(json!({"stream": true})));
    let deltas: Vec<Value> =
        events[1..events.len() - 2].iter().map(|e| e.json()["choices"][0]["delta"].clone()).collect();
    assert!(!deltas.is_empty());
    assert!(
        deltas.iter().all(|d| d["reasoning_content"].is_string() && d["reasoning"] == d["reasoning_content"])
    );
}

#[test]
fn a_second_turn_goes_on_from_the_cache() {
    let server = start();
    let long = "It is a truth universally acknowledged. ".repeat(12);
    let first = json!([{"role": "user", "content": long}]);
    let answer = server.ok(PATH, &hello(json!({"messages": first})));
    let said = answer["choices"][0]["message"].clone();
    let second = json!([first[0], said, {"role": "user", "content": "And then?"}]);
    let answer = server.ok(PATH, &hello(json!({"messages": second})));
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 32, "{cached}");
    assert_eq!(answer["timings"]["cache_n"].as_u64(), Some(cached));
    server.wait_until_idle();
    assert!(server.metric("zmlx_prompt_cached_tokens_total") >= cached as f64);
}

#[test]
fn the_context_bounds_prompt_and_answer() {
    let server = start_with(|setup| setup.engine.context = Some(64));
    let answer = server.ok(PATH, &hello(json!({"max_tokens": 32000})));
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["total_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(64), &json!("length"))
    );
    let long = json!([{"role": "user", "content": "truth ".repeat(100)}]);
    let (status, answer) = server.post(PATH, &hello(json!({"messages": long})));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[test]
fn messages_of_all_kinds() {
    let server = start();
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "developer", "content": "Be briefer."},
        {"role": "user"}
    ]);
    let prompt = server.ok("/apply-template", &json!({"messages": messages}))["prompt"].clone();
    assert_eq!(
        prompt,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n\
         <|im_start|>tool\n1<|im_end|>\n<|im_start|>system\nBe briefer.<|im_end|>\n<|im_start|>user\n<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    server.ok(PATH, &hello(json!({"messages": messages})));
    let begun = json!({
        "messages": [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "It is a truth"}],
        "continue_final_message": true
    });
    let prompt = server.ok("/apply-template", &begun)["prompt"].clone();
    assert!(prompt.as_str().unwrap().ends_with("<|im_start|>assistant\nIt is a truth"));
}
