//! Several ranks over MLX's ring on this machine: `zmlx launch`, and processes that are started as MLX's launcher starts them.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::{Golden, TensorFile};

const GLM: &str = "austen-glm4-moe-lite-4bit";
const QWEN: &str = "austen-qwen3-moe-4bit";

/// A rank that has not ended by then hangs: after a fault they end within 10 seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Ranks wait for each other at full speed, so groups of them run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn model(name: &str) -> String {
    fixtures().join("models").join(name).to_str().unwrap().to_owned()
}

fn zmlx(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmlx"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["RUST_LOG", "MLX_RANK", "MLX_HOSTFILE", "ZMLX_PARALLEL"] {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "", "{output:?}");
    text(&output.stdout)
}

fn join(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// As MLX's launcher does it: a file with the addresses, and the number of each rank in its environment.
struct Group {
    hostfile: tempfile::NamedTempFile,
    /// How they share the model.
    how: Option<String>,
    ranks: Vec<Child>,
}

impl Group {
    fn new(hostfile: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(hostfile.as_bytes()).unwrap();
        Self { hostfile: file, how: None, ranks: Vec::new() }
    }

    /// With an address for each of `n` ranks.
    fn of(n: usize) -> Self {
        Self::new(&hostfile(&free_ports(n)))
    }

    fn start(&mut self, rank: usize, args: &[&str]) {
        let hostfile = self.hostfile.path().to_owned();
        self.start_with(rank, &hostfile, args);
    }

    fn start_with(&mut self, rank: usize, hostfile: &Path, args: &[&str]) {
        let mut command = zmlx(args);
        command.env("MLX_RANK", rank.to_string()).env("MLX_HOSTFILE", hostfile);
        command.envs(self.how.iter().map(|how| ("ZMLX_PARALLEL", how)));
        self.ranks.push(command.spawn().unwrap());
    }

    /// What the ranks said, in the order of their start.
    fn end(mut self) -> Vec<Output> {
        std::mem::take(&mut self.ranks).into_iter().map(end).collect()
    }

    /// Every rank fails, and says why with the text at its place in the list.
    fn fail(self, want: &[&str]) {
        let outputs = self.end();
        assert_eq!(outputs.len(), want.len());
        for (output, want) in outputs.iter().zip(want) {
            assert_eq!(output.status.code(), Some(2), "{outputs:#?}");
            assert!(text(&output.stderr).contains(want), "{want:?} is not in {outputs:#?}");
            assert_eq!(text(&output.stdout), "", "{outputs:#?}");
        }
    }
}

/// What a process said that must end.
#[track_caller]
fn end(mut process: Child) -> Output {
    let started = Instant::now();
    while process.try_wait().unwrap().is_none() {
        if started.elapsed() > LIMIT {
            process.kill().unwrap();
            panic!("a process hangs: {:?}", process.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    process.wait_with_output().unwrap()
}

/// Waits until rank 0 has printed something: all ranks compute.
fn wait_for_text(process: &mut Child) {
    process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
}

impl Drop for Group {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

fn free_ports(n: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn hostfile(ports: &[u16]) -> String {
    serde_json::json!(ports.iter().map(|port| [format!("127.0.0.1:{port}")]).collect::<Vec<_>>()).to_string()
}

fn generate<'a>(model: &'a str, prompt: &'a str, n: &'a str) -> Vec<&'a str> {
    vec!["generate", "--json", "--model", model, "--ignore-eos", "--prompt-tokens", prompt, "-m", n]
}

/// Both tiny models: the recorded tokens of mlx-lm, from rank 0 alone. No step of this text has a small margin.
#[test]
fn mlx_ranks_give_the_recorded_tokens() {
    let _alone = alone();
    let (tensor, pipeline) = ("tensor", "pipeline");
    for (name, n_ranks, how, n) in [
        (GLM, "2", tensor, 96),
        (GLM, "4", tensor, 32),
        (QWEN, "2", tensor, 96),
        (QWEN, "4", tensor, 32),
        (GLM, "2", pipeline, 96),
        (GLM, "4", pipeline, 32),
        (QWEN, "2", pipeline, 96),
        (QWEN, "3", pipeline, 32),
    ] {
        let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
        let prompt = golden.prompt("novel").unwrap();
        let (model, tokens, n_tokens) = (model(name), join(&prompt.prompt_tokens), n.to_string());
        let command = generate(&model, &tokens, &n_tokens);
        let launch = ["launch", "-n", n_ranks, "--parallel", how, "--"];
        let run = end(zmlx(&[&launch[..], &command].concat()).spawn().unwrap());
        let report: Value = serde_json::from_str(&ok(&run)).unwrap();
        let tokens: Vec<u32> = serde_json::from_value(report["tokens"].clone()).unwrap();
        assert_eq!(tokens, prompt.bf16.tokens[..n], "{name} {n_ranks} {how}");
    }
}

/// A copy of a fixture with fewer tokens than ranks can share evenly.
fn with_vocabulary(of: &Path, n: usize, to: &Path) {
    let config = std::fs::read_to_string(of.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = n.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let file = std::fs::read(of.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let cut = |(name, view): (String, TensorView<'_>)| {
        let mut shape = view.shape().to_vec();
        let is_table = name.contains("embed_tokens") || name.contains("lm_head");
        let n_rows = if is_table { n } else { shape[0] };
        let n_bytes = view.data().len() / shape[0] * n_rows;
        shape[0] = n_rows;
        (name, view.dtype(), shape, view.data()[..n_bytes].to_vec())
    };
    let cut: Vec<_> = tensors.tensors().into_iter().map(cut).collect();
    let views = cut
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Biases of partial sums, and a head whose last part is smaller.
#[test]
fn mlx_ranks_share_biases_and_uneven_heads() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    with_vocabulary(&fixtures().join("families/gpt_oss"), 301, dir.path());
    let model = dir.path().to_str().unwrap();
    let logits = |launch: &[&str], backend: &str| {
        let out = dir.path().join(format!("{} {backend}", launch.len()));
        let args = ["logits", "--backend", backend, "--model", model, "--tokens", "3,250,17,4,4,99,1,42"];
        let run = end(zmlx(&[launch, &args, &["--out", out.to_str().unwrap()]].concat()).spawn().unwrap());
        assert_eq!(ok(&run), "");
        let logits = TensorFile::open(&out).unwrap().floats("logits").unwrap();
        assert_eq!(logits.shape, [8, 301]);
        logits.data
    };
    let truth: Vec<f64> = logits(&[], "cpu").into_iter().map(f64::from).collect();
    let alone = rel_rms(&logits(&[], "mlx"), &truth);
    let shared = rel_rms(&logits(&["launch", "-n", "2", "--"], "mlx"), &truth);
    // Partial sums are rounded to bf16 as all activations are: that adds less than there is.
    assert!(shared <= 1.5 * alone && alone < 0.05, "{shared:e} {alone:e}");
}

/// Layers shared out among ranks give the bits of one process, also those of families that cannot be split within a layer. What
/// does not fit is refused by name.
#[test]
fn mlx_ranks_in_a_pipeline_give_the_bits_of_one() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let family = |name: &str| fixtures().join("families").join(name).to_str().unwrap().to_owned();
    for (model, n_ranks) in
        [(model(GLM), "4"), (family("qwen3_next"), "2"), (family("lfm2_moe"), "3"), (family("gpt_oss"), "2")]
    {
        let [alone, shared] = [None, Some(n_ranks)].map(|n_ranks| {
            let out = dir.path().join(format!("{n_ranks:?}"));
            let args = ["logits", "--backend", "mlx", "--model", &model, "--tokens", "3,250,17,4,4,99,1,42"];
            let more = ["--chunk", "7", "--force", "--out", out.to_str().unwrap()];
            let launch = n_ranks.map_or(vec![], |n| vec!["launch", "-n", n, "--parallel", "pipeline", "--"]);
            let run = end(zmlx(&[&launch[..], &args, &more].concat()).spawn().unwrap());
            assert_eq!(ok(&run), "");
            TensorFile::open(&out).unwrap().floats("logits").unwrap().data
        });
        assert!(alone == shared && alone.iter().all(|v| v.is_finite()), "{model} {n_ranks}");
    }
    let qwen = model(QWEN);
    let launch = ["launch", "-n", "4", "--parallel", "pipeline", "--"];
    let run = end(zmlx(&[&launch[..], &generate(&qwen, "3,4", "4")].concat()).spawn().unwrap());
    let message = text(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{message}");
    assert!(message.contains("cannot be shared out among 4 ranks, as it has 3 layers"), "{message}");
}

/// Whatever is fused, the logits have the same bits.
#[test]
fn mlx_ranks_give_the_same_bits_for_every_fusion() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let fusions =
        ["stock", "concat", "fused", "stock,+combine", "stock,+dense_swiglu", "stock,+route", "stock,+qkv"];
    for (name, n_ranks, n_fusions) in [(GLM, "2", fusions.len()), (QWEN, "2", fusions.len()), (QWEN, "4", 3)]
    {
        let mut first = None;
        for fusion in &fusions[..n_fusions] {
            let out = dir.path().join(format!("{name} {n_ranks} {fusion}"));
            let model = model(name);
            let logits = ["logits", "--model", &model, "--tokens", "3,250,17,4,4,99,1,42", "--chunk", "7"];
            let more = ["--fusion", fusion, "--out", out.to_str().unwrap()];
            let run =
                zmlx(&[&["launch", "-n", n_ranks, "--"][..], &logits, &more].concat()).output().unwrap();
            assert_eq!(ok(&run), "");
            let logits = TensorFile::open(&out).unwrap().floats("logits").unwrap();
            assert!(logits.data.iter().all(|v| v.is_finite()) && logits.shape == [8, 3072]);
            let first = first.get_or_insert_with(|| logits.data.clone());
            assert!(*first == logits.data, "{name} {n_ranks} {fusion}");
        }
    }
}

/// The environment and the file of MLX's launcher; chance, a text, and a prompt that only rank 0 has.
#[test]
fn mlx_ranks_start_under_another_launcher() {
    let _alone = alone();
    let model = model(QWEN);
    let args = ["generate", "--model", &model, "--temp", "0.8", "-m", "12", "-p", "-"];
    let mut texts = Vec::new();
    for n_ranks in [2, 4] {
        let mut group = Group::of(n_ranks);
        let hostfile = group.hostfile.path().to_owned();
        for rank in 0..n_ranks {
            let mut command = zmlx(&args);
            command.env("MLX_RANK", rank.to_string()).env("MLX_HOSTFILE", &hostfile);
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            if rank == 0 {
                stdin.write_all(b"It is a truth").unwrap();
            }
            group.ranks.push(child);
        }
        let outputs = group.end();
        for output in &outputs {
            assert!(output.status.success(), "{outputs:#?}");
        }
        for other in &outputs[1..] {
            assert!(other.stdout.is_empty() && other.stderr.is_empty(), "{outputs:#?}");
        }
        assert!(text(&outputs[0].stderr).contains("Generation: 12 tokens"), "{outputs:#?}");
        texts.push(text(&outputs[0].stdout));
    }
    assert!(texts.iter().all(|text| text.trim().len() > 10), "{texts:?}");
    // One process has a file without addresses, and is alone.
    let mut group = Group::new("\n");
    group.start(0, &generate(&model, "3,4", "2"));
    let outputs = group.end();
    assert!(ok(&outputs[0]).contains("\"tokens\""));
}

/// Other machines are reached by ssh: here a stand-in, which runs the command in a shell.
#[test]
fn mlx_ranks_start_by_ssh() {
    use std::os::unix::fs::PermissionsExt;
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let ssh = dir.path().join("ssh");
    std::fs::write(&ssh, "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift 2\nexec sh -c \"$*\"\n")
        .unwrap();
    std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    let hosts = dir.path().join("hosts.json");
    std::fs::write(
        &hosts,
        r#"{"hosts": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "me@other", "ips": ["127.0.0.1"]}]}"#,
    )
    .unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let (model, port) = (model(QWEN), free_ports(1)[0].to_string());
    let launch = ["launch", "--hostfile", hosts.to_str().unwrap(), "--starting-port", &port, "--"];
    let run =
        zmlx(&[&launch[..], &generate(&model, "3,4", "4")].concat()).env("PATH", path).output().unwrap();
    assert!(ok(&run).contains("\"tokens\""));
}

#[test]
fn mlx_launch_refuses_what_it_cannot_start() {
    let _alone = alone();
    let (glm, qwen) = (model(GLM), model(QWEN));
    for (args, want) in [
        (
            &["launch", "-n", "2", "--", "chat"][..],
            "launch can start bench, generate, logits and serve, not \"chat\"",
        ),
        (&["launch", "--", "generate"], "--n-ranks"),
        (&["launch", "-n", "0", "--", "generate"], "0 is not in 1..=64"),
        (&["launch", "--hosts", "a,,b", "--", "generate"], "got an empty one"),
        (&["launch", "--hostfile", "/no/such/file", "--", "generate"], "/no/such/file"),
        (
            &["launch", "-n", "3", "--", "generate", "--model", &glm, "-p", "x"],
            "cannot be split among 3 ranks, as model.layers.0.self_attn.o_proj follows 4 heads; it can be split among 2 or 4",
        ),
        (
            &["launch", "-n", "2", "--", "generate", "--backend", "cpu", "--model", &qwen, "-p", "x"],
            "several ranks can share a model on mlx or cuda, not on cpu",
        ),
    ] {
        let output = end(zmlx(args).spawn().unwrap());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains(want), "{args:?}: {want:?} is not in {output:?}");
    }
    for (rank, file, command, want) in [
        (0, "[]", "doctor", ""),
        (
            0,
            r#"[["127.0.0.1:1"], ["127.0.0.1:2"]]"#,
            "doctor",
            "2 ranks can run bench, generate, logits and serve",
        ),
        (2, r#"[["127.0.0.1:1"], ["127.0.0.1:2"]]"#, "generate", "has the addresses of 2 ranks"),
        (0, r#"[["127.0.0.1:1"], ["127.0.0.1"]]"#, "generate", "expected host:port, got \"127.0.0.1\""),
        (
            0,
            r#"[["192.0.2.1:1"], ["127.0.0.1:2"]]"#,
            "generate",
            "an address that this machine does not have",
        ),
        (0, r#"[["no-such-host.invalid:1"], ["127.0.0.1:2"]]"#, "generate", "the host is not known"),
        (
            1,
            r#"[["127.0.0.1:1"], ["127.0.0.1:2"]]"#,
            "how",
            "rank 1: ZMLX_PARALLEL: expected tensor or pipeline, got \"both\"",
        ),
    ] {
        let mut group = Group::new(file);
        if command == "how" {
            group.how = Some("both".to_owned());
        }
        let command = if command == "how" { "generate" } else { command };
        group.start(rank, &[command]);
        if want.is_empty() {
            assert!(group.end()[0].status.success());
        } else {
            group.fail(&[want]);
        }
    }
}

/// One path, as the other ranks know no more.
#[test]
fn mlx_ranks_are_measured() {
    let _alone = alone();
    let model = model(QWEN);
    let bench = ["launch", "-n", "2", "--", "bench", "--model", &model, "-p", "8", "-n", "2", "-r", "1"];
    let run = end(zmlx(&[&bench[..], &["-o", "json"]].concat()).spawn().unwrap());
    let report: Value = serde_json::from_slice(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"));
    let tests = report["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 2, "{report}");
    assert!(tests.iter().all(|test| test["fusion"] == "fused"), "{report}");
    let run = end(zmlx(&[&bench[..], &["--fusion", "stock", "--fusion", "fused"]].concat()).spawn().unwrap());
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    assert!(text(&run.stderr).contains("--fusion: several ranks measure one path, got 2"), "{run:?}");
}

/// A rank that never comes.
#[test]
fn mlx_ranks_do_not_wait_for_ever() {
    let _alone = alone();
    let (model, mut group) = (model(QWEN), Group::of(3));
    for rank in [0, 1] {
        group.start(rank, &generate(&model, "3,4", "4"));
    }
    group.fail(&[
        "rank 0: the 3 ranks did not find each other",
        "rank 1: the 3 ranks did not find each other",
    ]);
}

/// Another process at the port of rank 0: it says so, and the other does not hang.
#[test]
fn mlx_ranks_notice_a_port_in_use() {
    let _alone = alone();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (model, mut group) = (model(QWEN), Group::new(&hostfile(&[port, free_ports(1)[0]])));
    for rank in [0, 1] {
        group.start(rank, &generate(&model, "3,4", "4"));
    }
    let in_use = format!("rank 0: 127.0.0.1:{port}: the port is in use");
    group.fail(&[&in_use, "rank 1: the 2 ranks did not find each other"]);
}

/// Hostfiles, checkpoints and arguments that differ.
#[test]
fn mlx_ranks_notice_that_they_differ() {
    let _alone = alone();
    let (glm, qwen) = (model(GLM), model(QWEN));
    let differ = |of_0: &[&str], of_1: &[&str], want: &str| {
        let mut group = Group::of(2);
        group.start(0, of_0);
        group.start(1, of_1);
        group.fail(&[want, want]);
    };
    let checkpoint = "the checkpoint of rank 1 is not that of rank 0";
    differ(&generate(&qwen, "3,4", "4"), &generate(&glm, "3,4", "4"), checkpoint);
    // The same model with one other weight.
    let other = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&qwen).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), other.path().join(entry.file_name())).unwrap();
    }
    let weights = other.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    differ(&generate(&qwen, "3,4", "4"), &generate(other.path().to_str().unwrap(), "3,4", "4"), checkpoint);
    let arguments = "the arguments of rank 1 are not those of rank 0";
    differ(&generate(&qwen, "3,4", "4"), &generate(&qwen, "3,4", "5"), arguments);

    let ports = free_ports(3);
    let mut group = Group::new(&hostfile(&ports[..2]));
    let swapped = tempfile::NamedTempFile::new().unwrap();
    let same = format!(r#"[["127.0.0.1:{}"], ["localhost:{}"]]"#, ports[0], ports[1]);
    std::fs::write(swapped.path(), same).unwrap();
    group.start(0, &generate(&qwen, "3,4", "4"));
    group.start_with(1, swapped.path(), &generate(&qwen, "3,4", "4"));
    let want = "the hostfile of rank 1 is not that of rank 0";
    group.fail(&[want, want]);
}

/// A rank fails, or dies, while the others compute.
#[test]
fn mlx_ranks_end_when_one_fails_or_dies() {
    let _alone = alone();
    let (qwen, bad) = (model(QWEN), tempfile::tempdir().unwrap());
    let args = generate(&qwen, "3,4", "4");
    let nothing = generate(bad.path().to_str().unwrap(), "3,4", "4");
    let mut group = Group::of(4);
    for rank in 0..4 {
        group.start(rank, if rank == 2 { &nothing } else { &args });
    }
    let want = "rank 2: ";
    group.fail(&[want, want, "there is no config.json", want]);

    let long = ["generate", "--model", &qwen, "--ignore-eos", "--prompt-tokens", "3,4", "-m", "1500"];
    let mut group = Group::of(4);
    for rank in 0..4 {
        group.start(rank, &long);
    }
    wait_for_text(&mut group.ranks[0]);
    group.ranks[1].kill().unwrap();
    let outputs = group.end();
    for (rank, output) in outputs.iter().enumerate().filter(|(rank, _)| *rank != 1) {
        assert_eq!(output.status.code(), Some(2), "{outputs:#?}");
        let message = text(&output.stderr);
        assert!(message.contains(&format!("error: rank {rank}: rank 1 has died")), "{outputs:#?}");
    }
}

/// The launcher ends with its ranks, and they with it.
#[test]
#[cfg(target_os = "linux")]
fn mlx_launch_ends_when_a_rank_dies() {
    let _alone = alone();
    let model = model(QWEN);
    let long = ["generate", "--model", &model, "--ignore-eos", "--prompt-tokens", "3,4", "-m", "1500"];
    let start = || {
        let mut launcher = zmlx(&[&["launch", "-n", "2", "--"][..], &long].concat()).spawn().unwrap();
        wait_for_text(&mut launcher);
        let ranks = children(launcher.id());
        assert_eq!(ranks.len(), 2);
        (launcher, ranks)
    };
    let kill = |args: &[&str]| assert!(Command::new("kill").args(args).status().unwrap().success());
    let (launcher, ranks) = start();
    kill(&["-9", &ranks[1].to_string()]);
    let output = end(launcher);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let message = text(&output.stderr);
    assert!(message.contains("error: rank 0: rank 1 has died"), "{message}");
    assert!(message.contains("rank 1 ended with signal: 9"), "{message}");

    let (launcher, ranks) = start();
    kill(&[&launcher.id().to_string()]);
    let output = end(launcher);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("ended by a signal, and all ranks with it"), "{output:?}");
    for rank in ranks {
        assert!(!Path::new(&format!("/proc/{rank}")).exists(), "rank {rank} is left: {output:?}");
    }
}

/// Ctrl-C, which a terminal sends to the launcher and to rank 0, and SIGTERM, which a service manager sends to the launcher: the
/// answer is finished, and all end.
#[test]
#[cfg(target_os = "linux")]
fn mlx_launch_serves_until_it_is_told_to_end() {
    serves_until(|launcher| vec!["-INT".to_owned(), "--".to_owned(), format!("-{launcher}")]);
    serves_until(|launcher| vec![launcher.to_string()]);
}

/// `signal` gives the arguments of `kill`.
#[cfg(target_os = "linux")]
fn serves_until(signal: impl Fn(u32) -> Vec<String>) {
    use std::os::unix::process::CommandExt;
    let _alone = alone();
    let model = model(QWEN);
    let args = ["launch", "-n", "2", "--", "serve", "--model", &model, "--port", "0"];
    let mut launcher = zmlx(&args).process_group(0).spawn().unwrap();
    let mut log = BufReader::new(launcher.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("Listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
    let body = serde_json::json!({"prompt": "It is", "max_tokens": 200, "ignore_eos": true});
    let until = Instant::now() + LIMIT;
    while post(&address, "/tokenize", &serde_json::json!({"content": ""})).0 == 503 {
        assert!(Instant::now() < until, "the server does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = std::thread::spawn(move || post(&address, "/v1/completions", &body));
    std::thread::sleep(Duration::from_millis(500));
    let ranks = children(launcher.id());
    assert!(Command::new("kill").args(signal(launcher.id())).status().unwrap().success());
    let (status, answer) = answer.join().unwrap();
    assert!(status == 200 && answer.contains("\"completion_tokens\":200"), "{status} {answer}");
    let output = end(launcher);
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(output.status.success(), "{output:?} {rest}");
    for rank in ranks {
        assert!(!Path::new(&format!("/proc/{rank}")).exists(), "rank {rank} is left: {rest}");
    }
}

/// The processes that a process has started.
#[cfg(target_os = "linux")]
fn children(of: u32) -> Vec<u32> {
    let path = format!("/proc/{of}/task/{of}/children");
    std::fs::read_to_string(path).unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// A server of several ranks, at a free port.
struct Served {
    group: Group,
    address: String,
    log: BufReader<ChildStderr>,
}

/// A conversation of one message is continued as a text: so its tokens are recorded ones.
const AS_IT_IS: &str = "{{ messages[0].content }}";

impl Served {
    fn start(model: &str, n_ranks: usize, how: &str) -> Self {
        let mut group = Group::of(n_ranks);
        group.how = Some(how.to_owned());
        let args = ["serve", "--model", model, "--port", "0", "--chat-template", AS_IT_IS];
        (0..n_ranks).for_each(|rank| group.start(rank, &args));
        let mut log = BufReader::new(group.ranks[0].stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("Listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        let served = Self { group, address, log };
        let until = Instant::now() + LIMIT;
        while served.health().0 != 200 {
            assert!(Instant::now() < until, "the server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        served
    }

    fn health(&self) -> (u16, Value) {
        let mut reply = agent().get(format!("{}/health", self.address)).call().unwrap();
        (reply.status().as_u16(), serde_json::from_str(&reply.body_mut().read_to_string().unwrap()).unwrap())
    }

    /// Waits until all ranks have ended. What rank 0 said, and the exit codes.
    fn end(mut self) -> (String, Vec<Option<i32>>) {
        let outputs: Vec<Output> = self.group.ranks.drain(..).map(end).collect();
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (log, outputs.iter().map(|output| output.status.code()).collect())
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(LIMIT)).build().into()
}

/// Status and body of the answer.
fn post(address: &str, path: &str, body: &Value) -> (u16, String) {
    let request = agent().post(format!("{address}{path}")).header("content-type", "application/json");
    let mut reply = request.send(body.to_string()).unwrap();
    (reply.status().as_u16(), reply.body_mut().read_to_string().unwrap())
}

/// The texts of a stream's events, joined.
fn streamed(body: &str) -> String {
    let data = body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let event = |data| serde_json::from_str::<Value>(data).unwrap();
    let text = |event: Value| event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
    data.map(event).map(text).collect()
}

/// A request for the first `n` tokens that a golden file has for a text.
fn conversation(content: &str, n: usize) -> Value {
    serde_json::json!({
        "messages": [{"role": "user", "content": content}], "max_tokens": n, "temperature": 0,
        "ignore_eos": true, "stream": true
    })
}

/// The recorded text over HTTP: alone, again from the caches, and beside another request. Then the server ends, and all ranks
/// with it.
#[test]
fn mlx_ranks_serve_the_recorded_text() {
    let _alone = alone();
    let (tensor, pipeline) = ("tensor", "pipeline");
    for (name, n_ranks, how, n) in [(GLM, 2, tensor, 96), (QWEN, 2, tensor, 48), (GLM, 2, pipeline, 32)] {
        let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
        let tokenizer = zmlx_models::Tokenizer::open(Path::new(&model(name))).unwrap();
        let recorded = |name: &str, n: usize| {
            let prompt = golden.prompt(name).unwrap();
            (prompt.text.clone(), tokenizer.decode(&prompt.bf16.tokens[..n]).unwrap())
        };
        let (novel, want) = recorded("novel", n);
        let served = Served::start(&model(name), n_ranks, how);
        let (status, text) = post(&served.address, "/v1/chat/completions", &conversation(&novel, n));
        assert_eq!((status, streamed(&text)), (200, want.clone()), "{name} {n_ranks}");

        let again =
            serde_json::json!({"prompt": novel, "max_tokens": n, "temperature": 0, "ignore_eos": true});
        let (status, text) = post(&served.address, "/v1/completions", &again);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(want.as_str())), "{text}");
        let n_cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        assert!(n_cached.is_some_and(|n| n > 32), "{text}");

        let (other, of_other) = recorded("long", 12);
        let texts = std::thread::scope(|scope| {
            let texts = [(&novel, n), (&other, 12)].map(|(content, n)| {
                let (address, body) = (&served.address, conversation(content, n));
                scope.spawn(move || post(address, "/v1/chat/completions", &body).1)
            });
            texts.map(|text| streamed(&text.join().unwrap()))
        });
        assert_eq!(texts, [want, of_other], "{name} {n_ranks}");

        let ended = Command::new("kill").arg(served.group.ranks[0].id().to_string()).status().unwrap();
        assert!(ended.success());
        let (log, codes) = served.end();
        assert_eq!(codes, vec![Some(0); n_ranks], "{log}");
    }
}

/// A rank dies: requests that run and new ones get status 503, and then the others end.
#[test]
fn mlx_ranks_that_serve_say_when_one_dies() {
    let _alone = alone();
    let mut served = Served::start(&model(QWEN), 2, "tensor");
    let (sender, begun) = std::sync::mpsc::channel();
    let address = served.address.clone();
    // One answer has begun, and another is to come as a whole.
    let running = std::thread::spawn(move || {
        let request = agent().post(format!("{address}/v1/chat/completions"));
        let body = conversation("It is a truth", 1500).to_string();
        let reply = request.header("content-type", "application/json").send(body).unwrap();
        assert_eq!(reply.status().as_u16(), 200);
        let mut lines = BufReader::new(reply.into_body().into_reader()).lines();
        lines.by_ref().map_while(Result::ok).find(|line| line.contains("content")).unwrap();
        sender.send(()).unwrap();
        lines.map_while(Result::ok).collect::<Vec<_>>().join("\n")
    });
    let address = served.address.clone();
    let whole = std::thread::spawn(move || {
        let body = serde_json::json!({"prompt": "It is", "max_tokens": 1500, "ignore_eos": true});
        post(&address, "/v1/completions", &body)
    });
    begun.recv().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    served.group.ranks[1].kill().unwrap();
    let (status, text) = whole.join().unwrap();
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("the model has failed: rank 1 has died"), "{text}");
    let text = running.join().unwrap();
    assert!(text.contains("rank 1 has died") && !text.contains("[DONE]"), "{text}");
    assert_eq!(served.health(), (503, serde_json::json!({"status": "failed"})));
    let (status, text) = post(&served.address, "/v1/chat/completions", &conversation("It is", 2));
    assert!(status == 503 && text.contains("rank 1 has died"), "{status} {text}");
    assert!(killed.elapsed() < Duration::from_secs(10));
    let (log, codes) = served.end();
    assert!(killed.elapsed() < Duration::from_secs(10));
    assert_eq!(codes, [Some(2), None], "{log}");
    assert!(log.contains("error: rank 0: rank 1 has died"), "{log}");
}
