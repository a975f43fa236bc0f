//! Models that several ranks share, each on a CPU backend of its own in a thread of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion, Hooked, Hooks, HostWeight, Logits, Result, Shard};
use zmlx_models::{Checkpoint, Error, Input, Model, PoolOptions, Request, TensorInfo, generate, self_check};
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::{Golden, Outcome, check_greedy};

const GLM: &str = "austen-glm4-moe-lite-4bit";
const QWEN: &str = "austen-qwen3-moe-4bit";

/// As for the whole models: a step whose recorded margin is below this may go either way.
const MARGIN_BOUND: f64 = 1e-2;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(&fixtures().join(name)).unwrap()
}

/// Where ranks meet.
struct Group {
    barrier: Barrier,
    summands: Mutex<Vec<Vec<f32>>>,
}

/// One of them.
struct Rank {
    shard: Shard,
    group: Arc<Group>,
    /// Bytes of the weights that it was given.
    n_bytes: AtomicU64,
}

impl Hooks<CpuBackend> for Rank {
    fn around<R>(&self, _: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        run()
    }

    fn upload(&self, backend: &CpuBackend, weight: HostWeight) -> Result<<CpuBackend as Backend>::Weight> {
        self.n_bytes.fetch_add((weight.n_mats() * weight.mat_bytes()) as u64, Ordering::Relaxed);
        backend.upload(weight)
    }

    fn shard(&self, _: &CpuBackend) -> Shard {
        self.shard
    }

    fn all_sum(
        &self,
        backend: &CpuBackend,
        x: <CpuBackend as Backend>::Tensor,
    ) -> Result<<CpuBackend as Backend>::Tensor> {
        let mut own = Vec::new();
        backend.read(&x, &mut own)?;
        self.group.summands.lock().unwrap()[self.shard.rank] = own;
        self.group.barrier.wait();
        let summands = self.group.summands.lock().unwrap().clone();
        self.group.barrier.wait();
        let mut sum = vec![0.0; summands[0].len()];
        for summand in &summands {
            assert_eq!(summand.len(), sum.len(), "all ranks take part in the same sum");
            sum.iter_mut().zip(summand).for_each(|(sum, v)| *sum += v);
        }
        backend.tensor(&sum, &backend.shape(&x))
    }
}

type Part = Model<Hooked<CpuBackend, Rank>>;

/// What `work` gives on each of `n_ranks` ranks, with the bytes of its weights.
fn on_ranks<R: Send>(
    checkpoint: &Checkpoint,
    n_ranks: usize,
    work: impl Fn(&Part) -> R + Sync,
) -> Vec<(u64, R)> {
    let group =
        Arc::new(Group { barrier: Barrier::new(n_ranks), summands: Mutex::new(vec![Vec::new(); n_ranks]) });
    let run = |rank: usize| {
        let hooks =
            Rank { shard: Shard { rank, n_ranks }, group: Arc::clone(&group), n_bytes: AtomicU64::new(0) };
        let backend = Hooked::new(CpuBackend::new(Some(1)).unwrap(), hooks);
        let model = Model::load(backend, checkpoint, &mut |_, _| ()).unwrap();
        let n_bytes = model.backend().hooks().n_bytes.load(Ordering::Relaxed);
        (n_bytes, work(&model))
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..n_ranks).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn logits<B: Backend>(model: &Model<B>, tokens: &[u32]) -> Vec<f32> {
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let mut all = Vec::new();
    // A prompt, then a token by itself.
    let (prompt, last) = tokens.split_at(tokens.len() - 1);
    for tokens in [prompt, last] {
        let input = Input { slot, tokens, logits: Logits::All };
        let y = model.forward(&mut pool, &[input], &Fusion::FUSED).unwrap();
        let mut values = Vec::new();
        model.backend().read(&y, &mut values).unwrap();
        all.append(&mut values);
    }
    all
}

/// The tiny models with every number of ranks that fits: experts by width and whole, heads of keys and values shared.
#[rstest]
fn greedy_tokens_are_those_of_the_f32_truth(
    #[values((GLM, 2), (GLM, 4), (QWEN, 2), (QWEN, 4), (QWEN, 8))] (name, n_ranks): (&str, usize),
    #[values("stock", "concat", "fused")] fusion: &str,
) {
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let fusion: Fusion = fusion.parse().unwrap();
    let prompt = golden.prompt("novel").unwrap();
    let tokens = on_ranks(&checkpoint(&format!("models/{name}")), n_ranks, |model| {
        assert!(self_check(model, &fusion).unwrap().passed());
        let request = Request::new(prompt.prompt_tokens.clone(), golden.decode.tokens);
        generate(model, None, fusion, request, |_| ControlFlow::Continue(())).unwrap().tokens
    });
    for (rank, (_, tokens)) in tokens.iter().enumerate() {
        let verdict = check_greedy(&prompt.truth_f32, tokens, MARGIN_BOUND);
        assert_eq!(verdict.outcome, Outcome::Equal, "{name} {n_ranks} rank {rank}: {verdict:?}");
    }
}

/// How many ranks share a tensor of the tiny models; `None` for one that only one of them holds.
fn n_sharing(tensor: &TensorInfo<'_>, n_ranks: u64, n_kv_heads: u64) -> Option<u64> {
    let has = |names: &[&str]| names.iter().any(|name| tensor.name.contains(name));
    if has(&["shared_experts"]) {
        None
    } else if has(&["k_proj", "v_proj"]) {
        Some(n_ranks.min(n_kv_heads))
    } else if has(&["switch_mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "q_proj", "q_b_proj"])
        || has(&["embed_q", "unembed_out", "o_proj"])
    {
        Some(n_ranks)
    } else {
        Some(1)
    }
}

/// Each rank is given its part of the experts, the heads and the MLPs, and what is not split.
#[rstest]
#[case(QWEN, 2)]
#[case(QWEN, 4)]
#[case(GLM, 2)]
#[case(GLM, 4)]
fn a_rank_loads_its_part_only(#[case] name: &str, #[case] n_ranks: usize) {
    let checkpoint = checkpoint(&format!("models/{name}"));
    let bytes = |n_sharing: &dyn Fn(&TensorInfo<'_>) -> Option<u64>| -> u64 {
        checkpoint.tensors().filter_map(|t| Some(t.n_bytes as u64 / n_sharing(&t)?)).sum()
    };
    let of_rank = bytes(&|t| n_sharing(t, n_ranks as u64, 2));
    let is_expert = |t: &TensorInfo<'_>| t.name.contains("switch_mlp");
    let of_experts = bytes(&|t| is_expert(t).then_some(1));
    let rest = bytes(&|t| (!is_expert(t)).then_some(1));
    let loaded = on_ranks(&checkpoint, n_ranks, |_| ());
    // Three groups of columns: of two ranks the second has two of them, of four the first none.
    let of_shared = bytes(&|t| t.name.contains("shared_experts").then_some(3));
    let n_groups = |rank: usize| ((rank + 1) * 3 / n_ranks - rank * 3 / n_ranks) as u64;
    for (rank, (n_bytes, ())) in loaded.into_iter().enumerate() {
        assert_eq!(n_bytes, of_rank + n_groups(rank) * of_shared, "{name} rank {rank} of {n_ranks}");
        assert!(n_bytes <= of_experts / n_ranks as u64 + rest, "{name} rank {rank} of {n_ranks}");
    }
}

/// Other layers of the same kinds: groups of experts and an older layout of latent attention, dense layers, biases.
#[rstest]
#[case("families/deepseek_v3", 2)]
#[case("qwen3-0.6b,layers=2,vocab=300", 4)]
#[case("glm-4.5-air,layers=1,vocab=300", 2)]
fn logits_are_those_of_one_rank(#[case] name: &str, #[case] n_ranks: usize) {
    let checkpoint = match name.starts_with("families") {
        true => checkpoint(name),
        false => Checkpoint::synthetic(name, 7).unwrap(),
    };
    let tokens = [3, 250, 17, 4, 4, 99, 1, 42];
    let whole = Model::load(CpuBackend::new(Some(1)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap();
    let want = logits(&whole, &tokens);
    for (rank, (_, got)) in
        on_ranks(&checkpoint, n_ranks, |model| logits(model, &tokens)).into_iter().enumerate()
    {
        // Activations are rounded to 16 bits by rows, which are shorter here.
        let error = rel_rms(&got, &want.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        assert!(error <= 2e-4, "{name} rank {rank} of {n_ranks}: {error:e}");
    }
}

/// What does not divide, and what is not split yet, is refused by name, with the numbers that fit.
#[rstest]
#[case(GLM, 3, "as model.layers.0.self_attn.o_proj follows 4 heads; it can be split among 2 or 4")]
#[case(QWEN, 3, "as model.layers.0.self_attn.o_proj follows 8 heads; it can be split among 2, 4 or 8")]
#[case("glm4_moe", 2, "as model.layers.0.self_attn.o_proj has 3 groups of columns; it runs on one rank only")]
#[case("glm4_moe", 3, "as model.layers.0.self_attn.k_proj gives 2 heads; it runs on one rank only")]
#[case(
    "gpt_oss",
    2,
    "as model.layers.0.self_attn.o_proj.bias is a bias of partial sums; it runs on one rank"
)]
#[case("lfm2_moe", 2, "as model.layers.0 has a short convolution; it runs on one rank only")]
#[case("minimax", 2, "is a norm over all heads; it runs on one rank only")]
#[case("qwen3_next", 2, "as model.layers.0 has linear attention; it runs on one rank only")]
fn what_cannot_be_split_is_refused(#[case] name: &str, #[case] n_ranks: usize, #[case] want: &str) {
    let is_model = [GLM, QWEN].contains(&name);
    let checkpoint = checkpoint(&format!("{}/{name}", if is_model { "models" } else { "families" }));
    let group = Group { barrier: Barrier::new(1), summands: Mutex::default() };
    let hooks = Rank {
        shard: Shard { rank: n_ranks - 1, n_ranks },
        group: Arc::new(group),
        n_bytes: AtomicU64::new(0),
    };
    let backend = Hooked::new(CpuBackend::new(Some(1)).unwrap(), hooks);
    let Err(error) = Model::load(backend, &checkpoint, &mut |_, _| ()) else { panic!("{name} was loaded") };
    assert!(matches!(error, Error::Split { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("{name} cannot be split among {n_ranks} ranks")), "{text}");
    assert!(text.contains(want), "{text}");
}
