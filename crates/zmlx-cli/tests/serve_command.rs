//! `zmlx serve` as a process: its first lines, how it ends, and what it refuses.
#![cfg(all(unix, feature = "serve", feature = "embedded-model"))]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

fn zmlx(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmlx"));
    command.arg("serve").args(args).args(["--backend", "cpu", "--threads", "1"]);
    command.env_remove("ZMLX_API_KEY").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn error_of(args: &[&str]) -> String {
    let output = zmlx(args).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A running server, its address, and a function that returns the rest of its output.
fn start(args: &[&str]) -> (Child, String, impl FnOnce() -> String) {
    let mut child = zmlx(args).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let address =
        line.trim().strip_prefix("Listening on http://").unwrap_or_else(|| panic!("{line}")).to_owned();
    let rest = move || {
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        rest
    };
    (child, address, rest)
}

fn get(address: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn from_the_first_word_to_the_last() {
    let args = [
        "--port",
        "0",
        "--api-key",
        "secret",
        "--alias",
        "pretty",
        "--max-kv-size",
        "1000",
        "--kv-cache-bytes",
        "64M",
    ];
    let (mut child, address, rest) = start(&args);
    while !get(&address, "/health", "").contains("\"ok\"") {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(get(&address, "/v1/models", "").starts_with("HTTP/1.1 401"));
    let models = get(&address, "/v1/models", "authorization: Bearer secret\r\n");
    assert!(models.contains("\"pretty\"") && models.contains("\"context_length\":1000"), "{models}");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let said = rest();
    assert!(said.contains("context 1000 tokens") && !said.contains("secret"), "{said}");
}

#[test]
fn what_it_refuses() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert!(error_of(&["--port", &port]).contains("cannot listen on 127.0.0.1"));
    assert!(error_of(&["--draft-model", "x"]).contains("--draft-model"));
    assert!(error_of(&["--adapter-path", "x"]).contains("--adapter-path"));
    assert!(error_of(&["--trust-remote-code"]).contains("--trust-remote-code"));
    assert!(error_of(&["--temp=-1"]).contains("temperature"));
    assert!(error_of(&["--port", "0", "--kv-cache-bytes", "100K"]).contains("--kv-cache-bytes"));
    assert!(error_of(&["--port", "0", "--chat-template", "{% if %}"]).contains("--chat-template"));
    assert!(error_of(&["--port", "0", "--api-key", ""]).contains("--api-key"));
    assert!(error_of(&["--chat-template-args", "[]"]).contains("--chat-template-args"));
    assert!(error_of(&["--kv-bits", "3"]).contains("--kv-bits"));
}

#[test]
fn the_flag_of_two_letters() {
    let error = error_of(&["-np", "0"]);
    assert!(error.contains("--decode-concurrency"), "{error}");
}
