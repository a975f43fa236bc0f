//! A server on a free port, and a client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use zmlx_kernels::Fusion;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::{ChatTemplate, Checkpoint, Engine, EngineOptions, Model, Tokenizer};
use zmlx_serve::{SamplingDefaults, ServedModel, Server, ServerOptions, StopHandle};

pub(crate) const QWEN: &str = "austen-qwen3-moe-4bit";

/// Text that the tiny models can continue.
pub(crate) const NOVEL: &str =
    "It is a truth universally acknowledged, that a single man in possession of a good fortune";

/// The syntaxes of calls of GLM, Qwen3 and Qwen3-Coder, each with thinking.
pub(crate) const GLM_TEMPLATE: &str = "{% for t in tools or [] %}{{ t | tojson }}<arg_key></arg_key><tool_call>{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>{% endfor %}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
pub(crate) const QWEN_TEMPLATE: &str = "{% for t in tools or [] %}{{ t | tojson }}<tool_call>{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
pub(crate) const CODER_TEMPLATE: &str = "{% for t in tools or [] %}{{ t | tojson }}<tool_call>\n<function=x>{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
pub(crate) const THINKING_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}";

/// The settings of a test's server.
pub(crate) struct Setup {
    pub(crate) options: ServerOptions,
    pub(crate) engine: EngineOptions,
    pub(crate) template: Option<&'static str>,
    pub(crate) sampling: SamplingDefaults,
}

/// A server, which ends with its test.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) stop: StopHandle,
    thread: Option<JoinHandle<()>>,
}

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(QWEN)
}

pub(crate) fn start() -> TestServer {
    start_with(|_| ())
}

pub(crate) fn start_with(change: impl FnOnce(&mut Setup)) -> TestServer {
    let mut setup = Setup {
        options: ServerOptions { port: 0, ..ServerOptions::default() },
        engine: EngineOptions::new(Fusion::FUSED),
        template: None,
        sampling: SamplingDefaults::default(),
    };
    change(&mut setup);
    setup.engine.max_sequences = setup.options.n_slots;
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let Setup { options, engine, template, sampling } = setup;
        let server = Server::bind(options).unwrap();
        let (address, stop) = (server.address(), server.stop_handle());
        let checkpoint = Checkpoint::open(&dir()).unwrap();
        let model = Model::load(CpuBackend::new(Some(1)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap();
        let tokenizer = Arc::new(Tokenizer::open(&dir()).unwrap());
        let own = ChatTemplate::open(&dir()).unwrap();
        let served = ServedModel {
            id: QWEN.into(),
            path: Some("some/path".into()),
            tokenizer: Arc::clone(&tokenizer),
            template: Some(match template {
                Some(text) => own.with_source(text.into()).unwrap(),
                None => own,
            }),
            eos_token_ids: checkpoint.eos_token_ids().to_vec(),
            vocab_size: model.architecture().vocab_size,
            sampling,
        };
        let mut engine = Engine::new(&model, Some(&tokenizer), engine).unwrap();
        sender.send((address, stop)).unwrap();
        server.run(served, &mut engine).unwrap();
    });
    let (address, stop) = receiver.recv().unwrap();
    let server = TestServer { address, stop, thread: Some(thread) };
    while server.get("/health").0 != 200 {
        std::thread::sleep(Duration::from_millis(5));
    }
    server
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: Option<String>,
    pub(crate) data: String,
}

impl Event {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {}", self.data))
    }
}

/// An answer: its status, its headers with lower-case names, and its body.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let start = format!("{name}: ");
        self.headers.lines().find_map(|line| line.strip_prefix(start.as_str()))
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).max_idle_connections(0);
    config.timeout_global(Some(Duration::from_secs(120))).build().into()
}

impl TestServer {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let mut response = agent().get(self.url(path)).call().unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = self.post_text(path, &body.to_string());
        (reply.status, reply.json())
    }

    /// The answer of a request that must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, value) = self.post(path, body);
        assert_eq!(status, 200, "{value}");
        value
    }

    pub(crate) fn post_text(&self, path: &str, body: &str) -> Reply {
        // This is what curl sends.
        let kind = "application/x-www-form-urlencoded";
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// The events of a stream, and its raw text.
    pub(crate) fn stream_text(&self, path: &str, body: &Value) -> String {
        let mut response = agent().post(self.url(path)).send(body.to_string()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        assert_eq!(response.status(), 200, "{text}");
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        text
    }

    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Event> {
        events(&self.stream_text(path, body))
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        stream
    }

    /// Sends bytes, and reads until the server closes the connection.
    pub(crate) fn raw(&self, request: &str) -> Reply {
        self.raw_bytes(request.as_bytes())
    }

    pub(crate) fn raw_bytes(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        // The server may answer and close the connection before it has read everything.
        let _ = stream.write_all(request);
        read_reply(&mut stream)
    }

    /// Waits until no request runs or waits.
    pub(crate) fn wait_until_idle(&self) {
        for _ in 0..1000 {
            let (_, slots) = self.get("/slots");
            if slots.as_array().unwrap().iter().all(|slot| slot["is_processing"] == false) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("requests still run");
    }

    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let start = format!("{name} ");
        let line = text
            .as_str()
            .unwrap()
            .lines()
            .find_map(|line| line.strip_prefix(start.as_str()).map(str::to_owned));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).trim().parse().unwrap()
    }
}

pub(crate) fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n");
    let at = at.unwrap_or_else(|| panic!("no headers: {}", String::from_utf8_lossy(&bytes)));
    let headers = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
    let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = bytes[at + 4..].to_vec();
    if headers.contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Reply { status, headers, body }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..at]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let Some(size) = size.filter(|n| *n > 0 && at + 2 + n <= bytes.len()) else { break };
        body.extend_from_slice(&bytes[at + 2..at + 2 + size]);
        bytes = bytes.get(at + size + 4..).unwrap_or_default();
    }
    body
}

pub(crate) fn events(text: &str) -> Vec<Event> {
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some(Event { name: field("event: "), data: field("data: ")? })
    };
    text.split("\n\n")
        .filter(|block| !block.is_empty() && !block.starts_with(':'))
        .filter_map(event)
        .collect()
}
