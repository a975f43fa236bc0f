//! Keys, origins, queues, disconnections, and the shutdown.

use std::io::{Read, Write};
use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{TestServer, start, start_with};

const PATH: &str = "/v1/chat/completions";

fn long(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "It is"}], "ignore_eos": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn send(server: &TestServer, method: &str, path: &str, headers: &str) -> crate::support::Reply {
    let host = if headers.contains("host:") { "" } else { "host: localhost\r\n" };
    server.raw(&format!(
        "{method} {path} HTTP/1.1\r\n{host}{headers}connection: close\r\ncontent-length: 0\r\n\r\n"
    ))
}

#[rstest]
#[case("", 401)]
#[case("authorization: Bearer right\r\n", 200)]
#[case("authorization: bearer other\r\n", 200)]
#[case("AUTHORIZATION: BEARER right\r\n", 200)]
#[case("x-api-key: right\r\n", 200)]
#[case("x-api-key: wrong\r\n", 401)]
#[case("authorization: Bearer righ\r\n", 401)]
#[case("authorization: Bearer \r\n", 401)]
#[case("authorization: Basic right\r\n", 401)]
fn a_key_is_needed(#[case] headers: &str, #[case] status: u16) {
    let server = start_with(|setup| setup.options.api_keys = vec!["right".into(), "other".into()]);
    for path in ["/v1/models", "/props", "/metrics", "/slots"] {
        assert_eq!(send(&server, "GET", path, headers).status, status, "{path}");
    }
    for path in ["/health", "/"] {
        assert_eq!(send(&server, "GET", path, headers).status, 200, "{path}");
    }
    if status == 401 {
        assert_eq!(send(&server, "POST", PATH, headers).json()["error"]["code"], "invalid_api_key");
        let error = send(&server, "POST", "/v1/messages", headers).json();
        assert_eq!(error["error"]["type"], "authentication_error");
    }
}

#[rstest]
#[case("host: localhost:1\r\n", 200)]
#[case("host: 127.0.0.1\r\n", 200)]
#[case("host: [::1]:8080\r\n", 200)]
#[case("host: evil.example\r\n", 403)]
#[case("host: localhost.evil.example\r\n", 403)]
#[case("origin: http://localhost:3000\r\n", 200)]
#[case("origin: https://listed.example\r\n", 200)]
#[case("origin: https://evil.example\r\n", 403)]
#[case("origin: null\r\n", 403)]
fn hosts_and_origins(#[case] headers: &str, #[case] status: u16) {
    let server = start_with(|setup| setup.options.allowed_origins = vec!["https://listed.example".into()]);
    let reply = send(&server, "GET", "/v1/models", headers);
    assert_eq!(reply.status, status);
    let origin = headers.strip_prefix("origin: ").map(str::trim_end);
    if status == 200 {
        assert_eq!(reply.header("access-control-allow-origin"), origin);
    } else {
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
}

#[test]
fn a_browser_asks_first() {
    let server = start_with(|setup| setup.options.api_keys = vec!["right".into()]);
    let headers = "origin: http://localhost:3000\r\naccess-control-request-method: POST\r\naccess-control-request-headers: authorization,x-a\r\n";
    let reply = send(&server, "OPTIONS", PATH, headers);
    assert_eq!(
        (reply.status, reply.header("access-control-allow-headers")),
        (204, Some("authorization,x-a"))
    );
    assert!(reply.header("access-control-allow-methods").unwrap().contains("post"));
    let foreign = "origin: https://evil.example\r\naccess-control-request-method: POST\r\n";
    assert_eq!(send(&server, "OPTIONS", PATH, foreign).status, 403);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let server = start_with(|setup| {
        setup.options.n_slots = 1;
        setup.options.max_queue = 1;
    });
    let mut clients: Vec<_> =
        (0..2).map(|_| begin_stream(&server, &long(json!({"max_tokens": 1500})))).collect();
    std::thread::sleep(Duration::from_millis(100));
    let body = long(json!({"max_tokens": 1}));
    let reply = server.post_text(PATH, &body.to_string());
    assert_eq!(reply.status, 503, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.json()["error"]["code"], "overloaded");
    assert!((1..=60).contains(&reply.header("retry-after").unwrap().parse::<u64>().unwrap()));
    let reply = server.post_text(
        "/v1/messages",
        &json!({"model": "", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}).to_string(),
    );
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (503, &json!("overloaded_error")));
    clients.clear();
    for _ in 0..200 {
        if server.post(PATH, &body).0 == 200 {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the places of those that have gone are not free");
}

/// Sends a streaming request and leaves its answer unread.
fn begin_stream(server: &TestServer, body: &Value) -> std::net::TcpStream {
    let mut body = body.clone();
    body["stream"] = json!(true);
    begin(server, &body)
}

fn begin(server: &TestServer, body: &Value) -> std::net::TcpStream {
    let text = body.to_string();
    let mut stream = server.connect();
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", text.len());
    stream.write_all((head + &text).as_bytes()).unwrap();
    stream
}

#[test]
fn one_that_waits_too_long_is_refused() {
    let server = start_with(|setup| {
        setup.options.n_slots = 1;
        setup.options.queue_timeout = Duration::from_millis(50);
    });
    let first = begin_stream(&server, &long(json!({"max_tokens": 2000})));
    std::thread::sleep(Duration::from_millis(50));
    let (status, answer) = server.post(PATH, &long(json!({"max_tokens": 1})));
    assert_eq!(status, 503, "{answer}");
    drop(first);
}

#[rstest]
#[case::stream(true)]
#[case::whole(false)]
fn a_client_that_goes_ends_its_request(#[case] stream: bool) {
    let server = start();
    let mut client = begin(&server, &long(json!({"max_tokens": 2000, "stream": stream})));
    if stream {
        let mut some = [0; 64];
        client.read_exact(&mut some).unwrap();
    } else {
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(client);
    for _ in 0..500 {
        if server.metric("zmlx_requests_cancelled_total") == 1.0 {
            server.wait_until_idle();
            assert!(server.metric("zmlx_generated_tokens_total") < 1990.0);
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the request goes on");
}

#[test]
fn many_at_once_get_what_each_gets_alone() {
    let server = start();
    let texts =
        ["It is a truth", "Mr. Darcy", "Elizabeth was", "The carriage", "In the morning", "She could not"];
    let ask = |text: &str| {
        let body = json!({"prompt": text, "max_tokens": 24});
        server.ok("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    let alone: Vec<Value> = texts.iter().map(|t| ask(t)).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = texts.iter().map(|t| scope.spawn(move || ask(t))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // Near ties may change when several sequences are computed at once. The tiny model has none in these texts.
    assert_eq!(alone, together);
}

#[test]
fn what_does_not_fit_the_memory_is_refused() {
    // Memory for about 100 tokens.
    let server = start_with(|setup| setup.engine.max_kv_bytes = Some(400_000));
    let text = "truth ".repeat(600);
    let (status, answer) =
        server.post(PATH, &json!({"messages": [{"role": "user", "content": text}], "max_tokens": 1}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{answer}");
    let (status, answer) = server.post(PATH, &long(json!({"max_tokens": 5})));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn keys_and_values_of_fewer_bits() {
    use zmlx_models::KvFormat;
    for format in [KvFormat::Int8 { group_size: 32 }, KvFormat::Int4 { group_size: 32 }] {
        let server = start_with(|setup| setup.engine.kv_format = format);
        let answer = server.ok(PATH, &long(json!({"max_tokens": 8})));
        assert_eq!(answer["usage"]["completion_tokens"], 8);
    }
}

#[test]
fn a_request_that_takes_too_long_is_cut() {
    let server = start_with(|setup| setup.options.request_timeout = Some(Duration::from_millis(200)));
    let answer = server.ok(PATH, &long(json!({"max_tokens": 100_000})));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn the_end_lets_answers_end() {
    let server = start_with(|setup| {
        setup.options.n_slots = 1;
        setup.options.shutdown_timeout = Duration::from_millis(300);
    });
    let mut running = begin_stream(&server, &long(json!({"max_tokens": 2000})));
    std::thread::sleep(Duration::from_millis(60));
    let waiting = begin(&server, &long(json!({"max_tokens": 1})));
    let mut watching = server.connect();
    std::thread::sleep(Duration::from_millis(60));
    server.stop.stop();
    watching.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let health = crate::support::read_reply(&mut watching);
    assert_eq!((health.status, health.json()), (503, json!({"status": "stopping"})));
    let mut waiting = waiting;
    assert_eq!(crate::support::read_reply(&mut waiting).status, 503);
    let mut text = String::new();
    running.read_to_string(&mut text).unwrap();
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("[DONE]"), "{text}");
    assert!(
        std::net::TcpStream::connect(server.address).is_err()
            || server.connect().read(&mut [0]).is_ok_and(|n| n == 0)
    );
}

/// The model fails while the engine's thread is stuck: a request that waits hears of it, and so does a new one.
#[test]
fn a_failed_model_answers_503() {
    let server = start();
    let body = long(json!({"max_tokens": 1500}));
    let (status, error) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.post(PATH, &body));
        while server.get("/slots").1[0]["is_processing"] != true {
            std::thread::sleep(Duration::from_millis(5));
        }
        server.stop.fail("rank 1 has died");
        waiting.join().unwrap()
    });
    assert_eq!((status, &error["error"]["message"]), (503, &json!("the model has failed: rank 1 has died")));
    assert_eq!(server.get("/health"), (503, json!({"status": "failed"})));
    let refused = server.post(PATH, &long(json!({"max_tokens": 2})));
    assert_eq!((refused.0, &refused.1["error"]["code"]), (503, &json!("overloaded")));
    assert_eq!(server.get("/v1/models").0, 503);
}
