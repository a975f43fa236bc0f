//! The small paths, methods, and errors in the form of each interface.

use rstest::rstest;
use serde_json::json;

use crate::support::{QWEN, start, start_with};

#[test]
fn health_models_and_helpers() {
    let server = start();
    assert_eq!(server.get("/health"), (200, json!({"status": "ok"})));
    let (_, list) = server.get("/v1/models");
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["owned_by"]),
        (&json!(QWEN), &json!("model"), &json!("zmlx"))
    );
    assert_eq!((&model["context_length"], &model["max_model_len"]), (&json!(2048), &json!(2048)));
    assert!(list.get("models").is_none());
    assert_eq!(server.get(&format!("/v1/models/{QWEN}")).1["id"], QWEN);
    assert_eq!(server.get("/v1/models/some/path").0, 200);
    assert_eq!(server.get("/v1/models/some%2Fpath").0, 200);
    let (status, missing) = server.get("/v1/models/a/b");
    assert_eq!((status, &missing["error"]["code"]), (404, &json!("model_not_found")));
    let tokens = server.ok("/tokenize", &json!({"content": "It is é"}))["tokens"].clone();
    assert_eq!(server.ok("/detokenize", &json!({"tokens": tokens}))["content"], "It is é");
    let pieces = server.ok("/tokenize", &json!({"content": "It is", "with_pieces": true}));
    let text: String =
        pieces["tokens"].as_array().unwrap().iter().map(|t| t["piece"].as_str().unwrap()).collect();
    assert_eq!(text, "It is");
    let (_, props) = server.get("/props");
    assert_eq!(
        (&props["total_slots"], &props["default_generation_settings"]["n_ctx"]),
        (&json!(32), &json!(2048))
    );
    assert!(props["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    let (_, slots) = server.get("/slots");
    assert_eq!(slots.as_array().unwrap().len(), 32);
    assert_eq!(slots[0], json!({"id": 0, "is_processing": false, "n_ctx": 2048, "n_tokens": 0}));
    assert_eq!(server.get("/api/hello").0, 200);
}

#[rstest]
#[case("GET", "/v1/chat/completions", 405, Some("post"))]
#[case("DELETE", "/health", 405, Some("get,head"))]
#[case("POST", "/v1/models", 405, Some("get,head"))]
#[case("GET", "/no/such/path", 404, None)]
#[case("POST", "/v1/embeddings", 404, None)]
#[case("HEAD", "/health", 200, None)]
#[case("HEAD", "/", 200, None)]
#[case("HEAD", "/api/hello", 200, None)]
#[case("HEAD", "/v1/models", 200, None)]
#[case("HEAD", "/nothing", 404, None)]
fn methods(#[case] method: &str, #[case] path: &str, #[case] status: u16, #[case] allow: Option<&str>) {
    let server = start();
    let reply = server.raw(&format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    ));
    assert_eq!(reply.status, status);
    assert_eq!(reply.header("allow"), allow);
    if method == "HEAD" {
        assert!(reply.body.is_empty());
    } else if status != 200 {
        assert!(reply.json()["error"]["message"].is_string());
    }
}

#[test]
fn errors_of_anthropic() {
    let server = start();
    let reply = server.post_text("/v1/messages?beta=true", "{}");
    let error = reply.json();
    assert_eq!(
        (reply.status, &error["type"], &error["error"]["type"]),
        (400, &json!("error"), &json!("invalid_request_error"))
    );
    assert_eq!(reply.header("request-id"), error["request_id"].as_str().map(str::to_lowercase).as_deref());
}

#[test]
fn the_page() {
    let server = start();
    let reply = server.raw("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
    let page = String::from_utf8(reply.body.clone()).unwrap();
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("innerHTML"));
    let none = start_with(|setup| setup.options.page = zmlx_serve::Feature::Off);
    assert_eq!(none.get("/").1, json!({"message": "zmlx"}));
}

#[test]
fn metrics() {
    let server = start_with(|setup| setup.engine.max_kv_bytes = Some(100 << 20));
    let body = json!({"messages": [{"role": "user", "content": "It is"}], "max_tokens": 5});
    server.ok("/v1/chat/completions", &body);
    server.wait_until_idle();
    assert_eq!(server.metric("zmlx_generated_tokens_total"), 5.0);
    assert_eq!(server.metric("zmlx_kv_cache_budget_bytes"), f64::from(100 << 20));
    assert_eq!(server.metric("zmlx_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(server.metric("zmlx_inter_token_seconds_count"), 4.0);
    assert_eq!(server.metric("zmlx_requests_running"), 0.0);
    let (_, text) = server.get("/metrics");
    let text = text.as_str().unwrap();
    for part in [
        "zmlx_requests_total{path=\"/chat/completions\",status=\"200\"} 1",
        "zmlx_kv_cache_bytes{state=\"running\"}",
        "zmlx_kv_cache_bytes{state=\"idle\"}",
        "zmlx_prompt_tokens_total",
        "zmlx_preemptions_total",
        "zmlx_requests_cancelled_total",
        "zmlx_prefix_cache_entries",
        "zmlx_batch_size_count",
        "zmlx_queue_seconds_count",
        "zmlx_request_seconds_count",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let none = start_with(|setup| setup.options.metrics = zmlx_serve::Feature::Off);
    assert_eq!(none.get("/metrics").0, 404);
}
