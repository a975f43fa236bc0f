//! A hub on the loopback interface, which behaves or misbehaves as a test needs.
#![allow(dead_code, reason = "two test programs share it, and none needs all of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Digest as _;

/// The commit of every model.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The id of every model.
pub(crate) const ID: &str = "org/tiny";

/// A request to the hub.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The path and the query.
    pub(crate) path: String,
    /// Header names are in lower case.
    headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of the requested range.
    pub(crate) fn start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }

    /// The same request for another path.
    pub(crate) fn at(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// True if it requests the content of the file.
    pub(crate) fn is_for(&self, file: &str) -> bool {
        self.path.ends_with(&format!("/{file}"))
    }
}

/// An answer of the hub.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection breaks after this many bytes of the body.
    pub(crate) breaks_after: Option<usize>,
    /// Nothing more comes for a while after this many bytes of the body.
    pub(crate) stalls_after: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), breaks_after: None, stalls_after: None }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }
}

/// The hub, which ends when it is dropped.
pub(crate) struct LoopbackHub {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
}

impl LoopbackHub {
    /// Starts a hub that answers each request with `answer`. This also gets the number of earlier requests for the same
    /// path.
    pub(crate) fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, is_over) =
            (Arc::new(Mutex::new(Vec::<Request>::new())), Arc::new(AtomicBool::new(false)));
        let (seen, over, answer) = (Arc::clone(&requests), Arc::clone(&is_over), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                let serve = move |mut stream: TcpStream| {
                    let request = read(&stream)?;
                    let n = {
                        let mut seen = seen.lock().unwrap();
                        let n = seen.iter().filter(|r| r.path == request.path).count();
                        seen.push(request.clone());
                        n
                    };
                    write(&mut stream, &answer(&request, n)).ok()
                };
                std::thread::spawn(move || stream.ok().and_then(serve));
            }
        });
        Self { url, requests, is_over }
    }

    /// A hub with one model, which makes no mistakes.
    pub(crate) fn of(model: Model) -> Self {
        Self::start(move |request, _| model.answer(request))
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests for the content of a file.
    pub(crate) fn requests_for(&self, file: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|r| r.is_for(file)).collect()
    }
}

impl Drop for LoopbackHub {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().ok()?.take(1 << 16));
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let pair = |line: &String| line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_owned()));
    Some(Request { path, headers: lines.iter().skip(1).filter_map(pair).collect() })
}

/// Writes one answer for each connection.
fn write(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in reply.headers.iter().filter(|(_, value)| value != "untold") {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    let n = reply.breaks_after.or(reply.stalls_after).unwrap_or(usize::MAX).min(reply.body.len());
    stream.write_all(&reply.body[..n])?;
    stream.flush()?;
    if reply.stalls_after.is_some() {
        std::thread::sleep(Duration::from_secs(5));
    }
    Ok(())
}

/// A model on the hub.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Files whose content is on another store.
    pub(crate) stored: Vec<String>,
    pub(crate) store: String,
    /// Whether the list of files contains hashes and sizes.
    pub(crate) tells_hashes: bool,
}

impl Model {
    /// A small model, which cannot be loaded.
    pub(crate) fn tiny() -> Self {
        let weights: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let header =
            format!(r#"{{"w":{{"dtype":"U8","shape":[300000],"data_offsets":[0,{}]}}}}"#, weights.len());
        let shard = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &weights].concat();
        let files = [
            ("config.json", &b"{\"model_type\": \"qwen3\"}"[..]),
            ("model.safetensors", &shard),
            ("tokenizer.json", b"{}"),
            ("additional_chat_templates/tool use.jinja", b"x"),
            ("special_tokens_map.json", b""),
            ("README.md", b"# not wanted"),
            ("model.gguf", b"not wanted"),
        ];
        let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
        Self { files: files.collect(), stored: Vec::new(), store: String::new(), tells_hashes: true }
    }

    /// The files of a folder.
    pub(crate) fn of_dir(dir: &std::path::Path) -> Self {
        let mut model = Self::tiny();
        model.files.clear();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            model.files.insert(name, std::fs::read(&path).unwrap());
        }
        model
    }

    /// The same model with a file for whose content the hub redirects to a store.
    pub(crate) fn stored_at(mut self, file: &str, store: &str) -> Self {
        self.stored.push(file.to_owned());
        self.store = store.to_owned();
        self
    }

    /// The names of the files from which a model is loaded.
    pub(crate) fn wanted(&self) -> Vec<&str> {
        self.files
            .keys()
            .map(String::as_str)
            .filter(|n| !n.ends_with(".md") && !n.ends_with(".gguf"))
            .collect()
    }

    fn is_large(name: &str) -> bool {
        name.ends_with(".safetensors")
    }

    /// The name of a file's blob.
    pub(crate) fn hash(&self, name: &str) -> String {
        hash(name, &self.files[name])
    }

    /// The answers of the hub and its store.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap();
        if path.starts_with(&format!("/api/models/{ID}/revision/")) {
            return Reply::new(200, self.listing().to_string()).with("content-type", "application/json");
        }
        let prefix = format!("/{ID}/resolve/{COMMIT}/");
        let at_store = path.strip_prefix("/store/");
        let Some(name) = at_store.or_else(|| path.strip_prefix(&prefix)).map(|n| n.replace("%20", " "))
        else {
            return Reply::new(404, "no such path");
        };
        let Some(bytes) = self.files.get(&name) else { return Reply::new(404, "no such file") };
        if at_store.is_none() && self.stored.contains(&name) {
            return Reply::new(302, "")
                .with("location", format!("{}/store/{name}", self.store))
                .with("x-repo-commit", COMMIT)
                .with("x-linked-etag", format!("\"{}\"", self.hash(&name)))
                .with("x-linked-size", bytes.len());
        }
        let etag = if at_store.is_some() {
            "\"of the store\"".to_owned()
        } else {
            format!("\"{}\"", self.hash(&name))
        };
        let reply = match request.start() {
            None => Reply::new(200, bytes.clone()),
            Some(start) if start >= bytes.len() => {
                Reply::new(416, "").with("content-range", format!("bytes */{}", bytes.len()))
            }
            Some(start) => {
                let is_one = request.header("range").is_some_and(|r| r.ends_with("-0"));
                let end = if is_one { start + 1 } else { bytes.len() };
                Reply::new(206, &bytes[start..end])
                    .with("content-range", format!("bytes {start}-{}/{}", end - 1, bytes.len()))
            }
        };
        reply.with("etag", etag).with("x-repo-commit", COMMIT)
    }

    /// The list of files.
    pub(crate) fn listing(&self) -> serde_json::Value {
        let file = |(name, bytes): (&String, &Vec<u8>)| {
            let mut file = serde_json::json!({"rfilename": name});
            if self.tells_hashes {
                file["size"] = bytes.len().into();
                file["blobId"] = hash("x", bytes).into();
                if Self::is_large(name) {
                    file["lfs"] = serde_json::json!({"sha256": self.hash(name), "size": bytes.len(), "pointerSize": 130});
                }
            }
            file
        };
        serde_json::json!({"id": ID, "sha": COMMIT, "siblings": self.files.iter().map(file).collect::<Vec<_>>()})
    }
}

fn hash(name: &str, bytes: &[u8]) -> String {
    let digits = |hash: &[u8]| hash.iter().map(|byte| format!("{byte:02x}")).collect();
    if Model::is_large(name) {
        digits(&sha2::Sha256::digest(bytes))
    } else {
        digits(&sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
    }
}
