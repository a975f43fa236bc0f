//! Runs `zmlx bench` and llama.cpp alternately, on random models of the same shapes on the same machine, and writes one
//! capsule.
//!
//! zmlx reads MLX's affine 4-bit weights in groups of 64, llama.cpp reads its own `Q4_0`. Both take 4.5 bits per
//! weight.

mod gguf;
mod llama;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use zmlx_models::{Checkpoint, ModelConfig, Qwen3MoeConfig};

use llama::Llama;

/// Runs `zmlx bench` and llama.cpp alternately.
#[derive(Parser)]
struct Args {
    /// A Qwen3-MoE model, named as for `zmlx bench --synthetic`.
    #[arg(long, default_value = "qwen3-30b-a3b,layers=12")]
    synthetic: String,
    /// Lengths of the prompts, in tokens.
    #[arg(short = 'p', long, default_value = "128,512", value_delimiter = ',')]
    prompt: Vec<usize>,
    /// The number of tokens to decode.
    #[arg(short = 'n', long, default_value_t = 32)]
    generate: usize,
    /// Numbers of tokens in the KV cache before decoding.
    #[arg(short = 'd', long, default_value = "128,4096", value_delimiter = ',')]
    depth: Vec<usize>,
    /// How often each program runs.
    #[arg(short = 'r', long, default_value_t = 3)]
    repetitions: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The types to which zmlx rounds activations. Each is a path of its own.
    #[arg(long, default_value = "int16", value_delimiter = ',')]
    cpu_activations: Vec<String>,
    /// The zmlx program to run.
    #[arg(long, default_value = "target/release/zmlx")]
    zmlx: PathBuf,
    /// The capsule to write.
    #[arg(short = 'o', long)]
    output: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(!args.output.exists(), "{} exists", args.output.display());
    let config = match Checkpoint::synthetic(&args.synthetic, 1)?.config().clone() {
        ModelConfig::Qwen3Moe(config) => config,
        other => bail!("{} is not a Qwen3-MoE model, but {}", args.synthetic, other.model_type()),
    };
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("model.gguf");
    gguf::write(&file, &config)?;
    let n_ctx =
        args.depth.iter().max().unwrap_or(&0) + args.prompt.iter().max().unwrap_or(&0) + args.generate;
    let mut llama = Llama::load(&file, args.threads, n_ctx.next_multiple_of(256), config.vocab_size)?;
    eprintln!("{}", Llama::version());
    // One run that is not measured, because zmlx bench also warms up.
    llama.generate(8, 8)?;

    let mut capsules = vec![Value::Null; args.cpu_activations.len()];
    let mut llama_tests: Vec<Vec<LlamaTest>> = Vec::new();
    for turn in 0..args.repetitions {
        eprintln!("turn {} of {}", turn + 1, args.repetitions);
        if turn % 2 == 1 {
            llama_tests.push(run(&args, &mut llama)?);
        }
        for (activations, capsule) in args.cpu_activations.iter().zip(&mut capsules) {
            merge(capsule, zmlx(&args, activations, dir.path())?)?;
        }
        if turn % 2 == 0 {
            llama_tests.push(run(&args, &mut llama)?);
        }
        // Written after each round, so that an interrupted run leaves the results of all rounds before.
        let text = serde_json::to_string_pretty(&both(&args, &config, &capsules, &llama_tests)?)? + "\n";
        let part = args.output.with_extension("part");
        std::fs::write(&part, text)
            .and_then(|()| std::fs::rename(&part, &args.output))
            .with_context(|| format!("cannot write {}", args.output.display()))?;
    }
    Ok(())
}

/// One capsule of all rounds so far.
fn both(
    args: &Args,
    config: &Qwen3MoeConfig,
    capsules: &[Value],
    llama_tests: &[Vec<LlamaTest>],
) -> Result<Value> {
    let mut tests = Vec::new();
    for i in 0..llama_tests[0].len() {
        let mut ours = Vec::new();
        for (activations, capsule) in args.cpu_activations.iter().zip(capsules) {
            let test = capsule["bench"]["tests"].get(i).context("zmlx ran fewer tests than llama.cpp")?;
            let mut test = test.clone();
            if activations != "int16" {
                test["fusion"] = json!(format!("fused, {activations} activations"));
            }
            ours.push(test);
        }
        let first = ours.first().context("no --cpu-activations")?;
        let of_turn =
            |f: fn(&LlamaTest) -> f64| -> Vec<f64> { llama_tests.iter().map(|t| f(&t[i])).collect() };
        let sums = of_turn(|test| test.seconds.iter().sum());
        let is_prompt = first["n_prompt"] != json!(0);
        let mut theirs = first.clone();
        theirs["backend"] = json!("llama.cpp");
        theirs["fusion"] = json!("Q4_0");
        theirs["samples_s"] = json!(sums);
        theirs["ttft_s"] = if is_prompt { json!(sums) } else { json!([]) };
        let latencies: Vec<f64> = llama_tests.iter().flat_map(|t| t[i].seconds.clone()).collect();
        theirs["token_latencies_s"] = if is_prompt { json!([]) } else { json!(latencies) };
        let probes: Vec<f64> = llama_tests.iter().filter_map(|t| t[i].probe_bytes_per_second).collect();
        theirs["probes_bytes_per_second"] = json!(probes);
        theirs["bytes_per_token"] =
            if is_prompt { Value::Null } else { json!(bytes_per_token(config, first)) };
        for unknown in ["launches_per_token", "barriers_per_token", "barrier_s_per_token"] {
            theirs[unknown] = Value::Null;
        }
        // The baseline comes first.
        tests.push(theirs);
        tests.extend(ours);
    }
    let probe = |v: &Value| v["bench"]["bandwidth"]["bytes_per_second"].as_f64().unwrap_or(0.0);
    let best = capsules.iter().max_by(|a, b| probe(a).total_cmp(&probe(b)));
    let bandwidth = best.map(|v| v["bench"]["bandwidth"].clone());
    let mut capsule = capsules.first().context("no --cpu-activations")?.clone();
    let bench = &mut capsule["bench"];
    bench["bandwidth"] = json!(bandwidth);
    bench["tests"] = json!(tests);
    bench["repetitions"] = json!(llama_tests.len());
    capsule["engines"]["llama.cpp"] = json!(Llama::version());
    capsule["command"] = json!(std::env::args().map(file_name).collect::<Vec<_>>());
    Ok(capsule)
}

/// The last component of a path; any other argument unchanged.
fn file_name(arg: String) -> String {
    arg.rsplit(std::path::MAIN_SEPARATOR).next().unwrap_or_default().to_owned()
}

/// The bytes that a decoded token reads: the weights, and the 16-bit keys and values of the tokens before. Their number
/// grows while decoding, so half of the decoded tokens are counted.
fn bytes_per_token(c: &Qwen3MoeConfig, test: &Value) -> f64 {
    let n = |key: &str| test[key].as_f64().unwrap_or(0.0);
    let positions = n("depth") + n("n_generate") / 2.0;
    let per_position = (c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2 * 2) as f64;
    gguf::bytes_per_token(c) as f64 + positions * per_position
}

/// A test of one round.
struct LlamaTest {
    /// The seconds of the prompt, or of each decoded token.
    seconds: Vec<f64>,
    /// The read bandwidth just after decoding.
    probe_bytes_per_second: Option<f64>,
}

fn run(args: &Args, llama: &mut Llama) -> Result<Vec<LlamaTest>> {
    let mut tests = Vec::new();
    for n in &args.prompt {
        tests.push(LlamaTest { seconds: vec![llama.prompt(*n)?], probe_bytes_per_second: None });
    }
    for depth in &args.depth {
        let seconds = llama.generate(*depth, args.generate)?;
        tests.push(LlamaTest { seconds, probe_bytes_per_second: Some(probe(args)?) });
    }
    Ok(tests)
}

/// The read bandwidth that `zmlx bench --bandwidth` measures.
fn probe(args: &Args) -> Result<f64> {
    let output = Command::new(&args.zmlx)
        .args(["bench", "--bandwidth", "-o", "json", "--threads", &args.threads.to_string()])
        .output()
        .with_context(|| format!("cannot run {}", args.zmlx.display()))?;
    ensure!(output.status.success(), "zmlx bench --bandwidth: {}", output.status);
    let bandwidth: Value = serde_json::from_slice(&output.stdout)?;
    bandwidth["bytes_per_second"].as_f64().context("a bandwidth without a number")
}

/// Runs `zmlx bench` once and returns its capsule, with the tests of prompts in empty caches and of decoding at each
/// depth.
fn zmlx(args: &Args, activations: &str, dir: &std::path::Path) -> Result<Value> {
    let list = |values: &[usize]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let file = dir.join("capsule.json");
    let bench = |tests: [&str; 6]| -> Result<Value> {
        let status = Command::new(&args.zmlx)
            .args(["bench", "-q", "--fusion", "fused", "-r", "1", "--synthetic", &args.synthetic])
            .args(["--threads", &args.threads.to_string(), "--cpu-activations", activations])
            .args(["--force", "--capsule"])
            .arg(&file)
            .args(tests)
            .stdout(std::process::Stdio::null())
            .status()
            .with_context(|| format!("cannot run {}", args.zmlx.display()))?;
        ensure!(status.success(), "zmlx bench: {status}");
        Ok(serde_json::from_slice(&std::fs::read(&file)?)?)
    };
    let mut prompts = bench(["-p", &list(&args.prompt), "-n", "0", "-d", "0"])?;
    let decoding = bench(["-p", "0", "-n", &args.generate.to_string(), "-d", &list(&args.depth)])?;
    let more = decoding["bench"]["tests"].as_array().context("a capsule without tests")?.clone();
    prompts["bench"]["tests"].as_array_mut().context("a capsule without tests")?.extend(more);
    Ok(prompts)
}

/// Adds the samples of a round to those of the rounds before.
fn merge(all: &mut Value, turn: Value) -> Result<()> {
    if all.is_null() {
        *all = turn;
        return Ok(());
    }
    let probe = |v: &Value| v["bench"]["bandwidth"]["bytes_per_second"].as_f64().unwrap_or(0.0);
    if probe(&turn) > probe(all) {
        all["bench"]["bandwidth"] = turn["bench"]["bandwidth"].clone();
    }
    let tests = all["bench"]["tests"].as_array_mut().context("a capsule without tests")?;
    for (all, turn) in
        tests.iter_mut().zip(turn["bench"]["tests"].as_array().context("a capsule without tests")?)
    {
        ensure!(all["name"] == turn["name"], "the rounds have different tests");
        for key in ["samples_s", "token_latencies_s", "ttft_s", "probes_bytes_per_second"] {
            let more = turn[key].as_array().cloned().unwrap_or_default();
            all[key].as_array_mut().context("a test without samples")?.extend(more);
        }
    }
    Ok(())
}
