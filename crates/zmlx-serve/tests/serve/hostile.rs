//! Requests that are hostile or broken.

use std::io::{Read, Write};

use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{TestServer, start, start_with};

const PATH: &str = "/v1/chat/completions";

fn post(server: &TestServer, headers: &str, body: &[u8]) -> crate::support::Reply {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    server.raw_bytes(&[head.as_bytes(), body].concat())
}

#[rstest]
#[case::nothing(b"".to_vec())]
#[case::text(b"hello".to_vec())]
#[case::cut(br#"{"messages": ["#.to_vec())]
#[case::list(b"[]".to_vec())]
#[case::number(b"5".to_vec())]
#[case::bytes(vec![0xff; 100])]
#[case::utf8(b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}".to_vec())]
#[case::surrogate(br#"{"messages": [{"role": "user", "content": "\ud800"}]}"#.to_vec())]
#[case::deep([vec![b'['; 100_000], vec![b']'; 100_000]].concat())]
#[case::deep_objects(b"{\"a\":".repeat(50_000))]
#[case::number_too_large(br#"{"max_tokens": 1e400, "messages": [{"role": "user", "content": "x"}]}"#.to_vec())]
fn bodies_that_are_no_request(#[case] body: Vec<u8>) {
    let server = start();
    let reply = post(&server, "", &body);
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
}

#[test]
fn a_body_that_is_too_large() {
    let server = start_with(|setup| setup.options.max_body_bytes = 10_000);
    let reply = post(&server, "", &vec![b' '; 10_001]);
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")));
    let mut chunked =
        b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(b"400\r\n");
        chunked.extend_from_slice(&[b' '; 1024]);
        chunked.extend_from_slice(b"\r\n");
    }
    let reply = server.raw_bytes(&chunked);
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (413, &json!("request_too_large")));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn encoded_bodies() {
    let server = start_with(|setup| setup.options.max_body_bytes = 100_000);
    let body = json!({"messages": [{"role": "user", "content": "It is"}], "max_tokens": 1}).to_string();
    let body = body.as_bytes();
    for (name, bytes) in
        [("gzip", gzip(body)), ("deflate", zlib(body)), ("zstd", zstd(body)), ("identity", body.to_vec())]
    {
        let reply = post(&server, &format!("content-encoding: {name}\r\n"), &bytes);
        assert_eq!(reply.status, 200, "{name}: {}", String::from_utf8_lossy(&reply.body));
    }
    // `{}` in Brotli, stored without compression, as short texts are.
    let reply = post(&server, "content-encoding: br\r\n", b"\x8b\x00\x80{}\x03");
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("messages")));
    for name in ["compress", "gzip, gzip, gzip", "x"] {
        assert_eq!(post(&server, &format!("content-encoding: {name}\r\n"), b"{}").status, 415, "{name}");
    }
    let bomb = vec![b' '; 50 << 20];
    for (name, bytes) in [("gzip", gzip(&bomb)), ("deflate", zlib(&bomb)), ("zstd", zstd(&bomb))] {
        assert!(bytes.len() < 100_000);
        assert_eq!(post(&server, &format!("content-encoding: {name}\r\n"), &bytes).status, 413, "{name}");
    }
    for name in ["gzip", "deflate", "br", "zstd"] {
        assert_eq!(
            post(&server, &format!("content-encoding: {name}\r\n"), b"nonsense").status,
            400,
            "{name}"
        );
    }
}

#[test]
fn headers_that_are_too_large() {
    let server = start();
    let reply =
        server.raw(&format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(100_000)));
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    let many = "a: b\r\n".repeat(2000);
    let reply = server.raw(&format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"));
    assert!((400..500).contains(&reply.status), "{}", reply.status);
}

#[test]
fn nonsense_is_no_request() {
    let server = start();
    for text in ["hello\r\n\r\n", "\x16\x03\x01\x02\x00", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = server.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{answer}"
        );
    }
    assert_eq!(server.get("/health").0, 200);
}

#[test]
fn old_and_careful_clients() {
    let server = start();
    let body = json!({"messages": [{"role": "user", "content": "It is"}], "max_tokens": 2, "stream": true})
        .to_string();
    let reply = server.raw(&format!("POST {PATH} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!((reply.status, reply.header("transfer-encoding")), (200, None));
    assert!(String::from_utf8(reply.body).unwrap().ends_with("data: [DONE]\n\n"));
    let mut stream = server.connect();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut go = [0; 25];
    stream.read_exact(&mut go).unwrap();
    assert!(go.starts_with(b"HTTP/1.1 100"));
    stream.write_all(body.as_bytes()).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("200 OK") && rest.contains("[DONE]"));
}

/// Every field with values of every kind: the result is an answer or an error of the client, never of the server.
#[test]
fn fields_of_every_kind() {
    // With a small context, answers without a limit of their own end soon.
    let server = start_with(|setup| setup.engine.context = Some(64));
    let fields = [
        "model",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "n",
        "seed",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "stream_options",
        "tools",
        "tool_choice",
        "response_format",
        "structured_outputs",
        "chat_template_kwargs",
        "reasoning_effort",
        "stop_token_ids",
        "min_tokens",
        "input",
        "instructions",
        "text",
        "reasoning",
        "system",
        "thinking",
        "output_config",
        "stop_sequences",
        "prompt",
        "max_output_tokens",
    ];
    let values = [
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(1e308),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{202e}"),
        json!([]),
        json!([null]),
        json!([[]]),
        json!({}),
        json!({"": null}),
        json!([{"role": "user", "content": [{}]}]),
        json!({"type": "function"}),
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": [], "properties": []}}}]),
    ];
    for path in [PATH, "/v1/completions", "/v1/messages", "/v1/responses", "/v1/messages/count_tokens"] {
        for field in fields {
            for value in &values {
                let mut body = json!({
                    "model": "", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "prompt": "x", "input": "x",
                    "max_output_tokens": 1
                });
                body[field] = value.clone();
                let (status, answer) = server.post(path, &body);
                assert!(
                    status == 200 || status == 400 || status == 404,
                    "{path} {field} {value}: {status} {answer}"
                );
            }
        }
    }
}

#[test]
fn templates_and_grammars_that_take_too_long() {
    let server = start_with(|setup| {
        setup.template = Some(
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages[0].content }}{% endfor %}{% endfor %}",
        );
    });
    let (status, _) =
        server.post(PATH, &json!({"messages": [{"role": "user", "content": "x".repeat(100_000)}]}));
    assert_eq!(status, 400);
    let server = start();
    for structured in [
        json!({"regex": "((a{1,1000}){1,1000}){1,1000}"}),
        json!({"regex": "(a|aa)+$(?=b)"}),
        json!({"choice": vec!["x"; 100_000]}),
        json!({"grammar": "start: start start | \"a\""}),
        json!({"json": {"type": "array", "minItems": 1_000_000_000, "items": {"type": "object", "properties": {"a": {"$ref": "#"}}}}}),
    ] {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "structured_outputs": structured});
        let (status, answer) = server.post(PATH, &body);
        assert!(status == 200 || status == 400, "{structured}: {status} {answer}");
        let _: Value = answer;
    }
    assert_eq!(server.get("/health").0, 200);
}

#[test]
fn connections_that_say_nothing_do_not_keep_others_out() {
    let server = start();
    let mut silent: Vec<_> = (0..200).map(|_| server.connect()).collect();
    for stream in &mut silent[100..] {
        stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc").unwrap();
    }
    assert_eq!(server.get("/health").0, 200);
    server.ok(PATH, &json!({"messages": [{"role": "user", "content": "It is"}], "max_tokens": 1}));
}
