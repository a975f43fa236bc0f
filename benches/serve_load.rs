//! Loads a running `zmlx serve` and measures what its clients see: tokens per second, time to the first token, time between
//! tokens, against the number of streams; with and without a cached beginning; beside a long prompt.
//!
//! `cargo run -p zmlx-benches --release --bin serve-load -- http://127.0.0.1:8080`. Every part is bounded by a number of tokens
//! and by a time. With `--text` the prompts are words instead of token ids, and the requests have only the fields that every server
//! of OpenAI's completions knows: for measuring another server on the same machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What is asked on the command line.
struct Args {
    /// Host and port.
    address: String,
    streams: Vec<usize>,
    n_tokens: usize,
    n_prompt: usize,
    n_prefix: usize,
    n_long: usize,
    /// No part begins another request after so long.
    seconds: Duration,
    /// Words instead of token ids.
    is_text: bool,
    /// The `model` of requests, for servers that load what it names.
    model: Option<String>,
}

const USAGE: &str = "usage: serve-load URL [--streams 1,2,4,8,16,32,64] [--tokens 64] [--prompt 32] [--prefix 2000] \
                     [--long 4000] [--seconds 20] [--text] [--model NAME]";

impl Args {
    fn read() -> Result<Self> {
        let mut args = std::env::args().skip(1);
        let url = args.next().ok_or(USAGE)?;
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let mut read = Self {
            address,
            streams: vec![1, 2, 4, 8, 16, 32, 64],
            n_tokens: 64,
            n_prompt: 32,
            n_prefix: 2000,
            n_long: 4000,
            seconds: Duration::from_secs(20),
            is_text: false,
            model: None,
        };
        while let Some(flag) = args.next() {
            if flag == "--text" {
                read.is_text = true;
                continue;
            }
            let value = args.next().ok_or(USAGE)?;
            match flag.as_str() {
                "--streams" => {
                    read.streams = value.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?
                }
                "--tokens" => read.n_tokens = value.parse()?,
                "--prompt" => read.n_prompt = value.parse()?,
                "--prefix" => read.n_prefix = value.parse()?,
                "--long" => read.n_long = value.parse()?,
                "--model" => read.model = Some(value),
                "--seconds" => read.seconds = Duration::from_secs_f64(value.parse()?),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(read)
    }
}

/// What a client saw of a request, in seconds.
#[derive(Default)]
struct Seen {
    first: f64,
    /// The time of each token after the first, and since the one before.
    between: Vec<(Instant, f64)>,
    n_tokens: usize,
    n_cached: u64,
}

/// `n` token ids that are the same on every machine, of the first 256 so that every vocabulary has them.
fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        16 + (state % 240) as u32
    };
    (0..n).map(|_| next()).collect()
}

/// Words for token ids: about a token each.
fn words(tokens: &[u32]) -> String {
    const WORDS: [&str; 16] = [
        "the", "of", "a", "to", "in", "he", "was", "and", "it", "her", "not", "be", "so", "all", "they", "on",
    ];
    tokens.iter().map(|t| WORDS[*t as usize % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

fn request(args: &Args, prompt: &[u32], n_tokens: usize) -> Result<Seen> {
    let mut body = json!({
        "prompt": prompt, "max_tokens": n_tokens, "stream": true, "stream_options": {"include_usage": true}
    });
    if args.is_text {
        body["prompt"] = words(prompt).into();
    } else {
        body["ignore_eos"] = true.into();
        body["logprobs"] = 0.into();
    }
    if let Some(model) = &args.model {
        body["model"] = model.as_str().into();
    }
    let body = body.to_string();
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&args.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.contains(" 200 ") {
        let mut rest = String::new();
        reader.read_to_string(&mut rest)?;
        return Err(format!("{line}{rest}").into());
    }
    let mut seen = Seen::default();
    let mut last = begun;
    let mut is_done = false;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            break;
        }
        let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            is_done = true;
            continue;
        }
        let event: Value = serde_json::from_str(data)?;
        if let Some(error) = event.get("error") {
            return Err(error.to_string().into());
        }
        if let Some(cached) = event.pointer("/usage/prompt_tokens_details/cached_tokens") {
            seen.n_cached = cached.as_u64().unwrap_or(0);
        }
        // A chunk has the log-probabilities of its tokens, however few characters they make.
        let n = match event.pointer("/choices/0/logprobs/tokens").and_then(Value::as_array) {
            Some(tokens) => tokens.len(),
            None => usize::from(event.pointer("/choices/0/text").is_some_and(|text| text != "")),
        };
        if n > 0 {
            let now = Instant::now();
            let took = (now - last).as_secs_f64();
            if seen.n_tokens == 0 {
                seen.first = took
            } else {
                seen.between.push((now, took))
            }
            seen.n_tokens += n;
            last = now;
        }
    }
    if is_done { Ok(seen) } else { Err("the stream ended early".into()) }
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = (sorted.len() as f64 * q) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN) * 1e3
}

fn gaps(seen: &[Seen]) -> Vec<f64> {
    sorted(seen.iter().flat_map(|s| s.between.iter().map(|(_, gap)| *gap)).collect())
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// `n` clients at once, each with requests of its own until the time is over, two at least.
fn level(args: &Args, n: usize) -> Result<()> {
    let begun = Instant::now();
    let client = |i: usize| -> Result<Vec<Seen>> {
        let mut all = Vec::new();
        for round in 0.. {
            if round >= 2 && begun.elapsed() >= args.seconds {
                break;
            }
            let prompt = tokens((n * 1000 + i * 100_000 + round) as u64, args.n_prompt);
            all.push(request(args, &prompt, args.n_tokens)?);
        }
        Ok(all)
    };
    let results: Vec<Result<Vec<Seen>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n).map(|i| scope.spawn(move || client(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a client failed".into()))).collect()
    });
    let wall = begun.elapsed().as_secs_f64();
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    let n_tokens: usize = all.iter().map(|s| s.n_tokens).sum();
    let first = sorted(all.iter().map(|s| s.first).collect());
    let between = gaps(&all);
    print(&json!({
        "streams": n, "requests": all.len(), "tokens_per_second": n_tokens as f64 / wall,
        "ttft_ms": {"p50": quantile(&first, 0.5), "p95": quantile(&first, 0.95)},
        "inter_token_ms": {
            "p50": quantile(&between, 0.5), "p95": quantile(&between, 0.95), "p99": quantile(&between, 0.99)
        }
    }))
}

/// The time to the first token of a prompt, and of others with the same beginning.
fn prefix(args: &Args) -> Result<()> {
    let begin = tokens(1, args.n_prefix);
    let with = |seed: u64| [begin.clone(), tokens(seed, 8)].concat();
    let first = request(args, &with(2), 4)?;
    let mut others = Vec::new();
    let mut n_cached = u64::MAX;
    for seed in 3..8 {
        let seen = request(args, &with(seed), 4)?;
        n_cached = n_cached.min(seen.n_cached);
        others.push(seen.first);
    }
    print(&json!({
        "prefix": args.n_prefix, "cached_tokens": n_cached, "ttft_ms_first": first.first * 1e3,
        "ttft_ms_cached": quantile(&sorted(others), 0.5)
    }))
}

/// How eight streams fare while a long prompt is computed.
fn beside_long(args: &Args) -> Result<()> {
    let run = |long: Option<&[u32]>| -> Result<f64> {
        std::thread::scope(|scope| {
            let n_tokens = args.n_tokens * 8;
            let threads: Vec<_> = (0..8)
                .map(|i| scope.spawn(move || request(args, &tokens(50 + i, args.n_prompt), n_tokens)))
                .collect();
            std::thread::sleep(Duration::from_millis(200));
            let begun = Instant::now();
            let took = long.map(|prompt| request(args, prompt, 2)).transpose()?.map(|seen| seen.first);
            let mut all = Vec::new();
            for thread in threads {
                all.push(thread.join().unwrap_or_else(|_| Err("a client failed".into()))?);
            }
            let until = took.map(|seconds| begun + Duration::from_secs_f64(seconds));
            let is_beside = |at: Instant| until.is_none_or(|until| at >= begun && at <= until);
            for seen in &mut all {
                seen.between.retain(|(at, _)| is_beside(*at));
            }
            Ok(quantile(&gaps(&all), 0.95))
        })
    };
    let alone = run(None)?;
    let beside = run(Some(&tokens(99, args.n_long)))?;
    print(&json!({
        "streams": 8, "long_prompt": args.n_long, "inter_token_ms_p95_alone": alone, "inter_token_ms_p95_beside": beside
    }))
}

fn print(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(())
}

fn main() -> Result<()> {
    let args = Args::read()?;
    for &n in &args.streams {
        level(&args, n)?;
    }
    if args.n_prefix > 0 {
        prefix(&args)?;
    }
    if args.n_long > 0 {
        beside_long(&args)?;
    }
    Ok(())
}
