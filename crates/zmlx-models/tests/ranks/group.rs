//! Ranks as threads, each with a CPU backend of its own.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};

use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion, Hooked, Hooks, HostWeight, Logits, Result, SampleSettings, Shard};
use zmlx_models::{Checkpoint, Error, Input, Lead, Model, Order, PoolOptions, follow, self_check};

pub(crate) const GLM: &str = "austen-glm4-moe-lite-4bit";
pub(crate) const QWEN: &str = "austen-qwen3-moe-4bit";

/// As for the whole models: a step whose recorded margin is below this may go either way.
pub(crate) const MARGIN_BOUND: f64 = 1e-2;

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A fixture, or random weights.
pub(crate) fn checkpoint(name: &str) -> Checkpoint {
    let dir = fixtures().join(name);
    if dir.is_dir() { Checkpoint::open(&dir).unwrap() } else { Checkpoint::synthetic(name, 7).unwrap() }
}

/// How ranks share a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parallel {
    Tensor,
    Pipeline,
}

/// Where ranks meet.
pub(crate) struct Group {
    n_ranks: usize,
    barrier: Barrier,
    values: Mutex<Vec<Vec<f32>>>,
    /// What each rank has sent to each, `to * n_ranks + from`.
    sent: Mutex<Vec<VecDeque<Vec<f32>>>>,
    is_sent: Condvar,
}

impl Group {
    pub(crate) fn new(n_ranks: usize) -> Arc<Self> {
        Arc::new(Self {
            n_ranks,
            barrier: Barrier::new(n_ranks),
            values: Mutex::new(vec![Vec::new(); n_ranks]),
            sent: Mutex::new(vec![VecDeque::new(); n_ranks * n_ranks]),
            is_sent: Condvar::new(),
        })
    }

    /// The values of all ranks.
    fn gather(&self, rank: usize, own: Vec<f32>) -> Vec<Vec<f32>> {
        self.values.lock().unwrap()[rank] = own;
        self.barrier.wait();
        let all = self.values.lock().unwrap().clone();
        self.barrier.wait();
        all
    }
}

/// One of them.
pub(crate) struct Rank {
    pub(crate) place: Shard,
    pub(crate) parallel: Parallel,
    pub(crate) group: Arc<Group>,
    /// Bytes of the weights that it was given.
    pub(crate) n_bytes: AtomicU64,
}

impl Rank {
    pub(crate) fn new(place: Shard, parallel: Parallel, group: &Arc<Group>) -> Self {
        Self { place, parallel, group: Arc::clone(group), n_bytes: AtomicU64::new(0) }
    }

    fn place_in(&self, parallel: Parallel) -> Shard {
        if self.parallel == parallel { self.place } else { Shard::WHOLE }
    }
}

type Tensor = <CpuBackend as Backend>::Tensor;
type Weight = <CpuBackend as Backend>::Weight;
type Indices = <CpuBackend as Backend>::Indices;

fn values(backend: &CpuBackend, x: &Tensor) -> Vec<f32> {
    let mut values = Vec::new();
    backend.read(x, &mut values).unwrap();
    values
}

impl Hooks<CpuBackend> for Rank {
    fn around<R>(&self, _: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        run()
    }

    fn upload(&self, backend: &CpuBackend, weight: HostWeight) -> Result<Weight> {
        self.n_bytes.fetch_add((weight.n_mats() * weight.mat_bytes()) as u64, Ordering::Relaxed);
        backend.upload(weight)
    }

    fn shard(&self, _: &CpuBackend) -> Shard {
        self.place_in(Parallel::Tensor)
    }

    fn stage(&self, _: &CpuBackend) -> Shard {
        self.place_in(Parallel::Pipeline)
    }

    /// The CPU as a device that chooses the most probable tokens.
    fn sample(
        &self,
        backend: &CpuBackend,
        logits: &Tensor,
        rows: &[(usize, SampleSettings<'_, Indices>)],
    ) -> Result<Vec<Option<Indices>>> {
        let (all, vocab) = (values(backend, logits), backend.shape(logits)[1]);
        let choose = |(row, settings): &(usize, SampleSettings<'_, Indices>)| {
            assert!(settings.temperature == 0.0 && settings.repetition.is_none());
            let of_row = &all[row * vocab..][..vocab];
            let best = (0..vocab).max_by(|a, b| of_row[*a].total_cmp(&of_row[*b]).then(b.cmp(a)));
            backend.indices(&[best.unwrap() as u32], &[1]).map(Some)
        };
        rows.iter().map(choose).collect()
    }

    fn all_sum(&self, backend: &CpuBackend, x: Tensor) -> Result<Tensor> {
        if self.parallel == Parallel::Pipeline {
            return Ok(x);
        }
        let summands = self.group.gather(self.place.rank, values(backend, &x));
        let mut sum = vec![0.0; summands[0].len()];
        for summand in &summands {
            assert_eq!(summand.len(), sum.len(), "all ranks take part in the same sum");
            sum.iter_mut().zip(summand).for_each(|(sum, v)| *sum += v);
        }
        backend.tensor(&sum, &backend.shape(&x))
    }

    fn gather_columns(&self, backend: &CpuBackend, x: Tensor, width: usize, n: usize) -> Result<Tensor> {
        let n_rows = backend.shape(&x)[0];
        let all = self.group.gather(self.place.rank, values(backend, &x));
        let mut rows = Vec::new();
        for row in 0..n_rows {
            for (rank, of_rank) in all.iter().enumerate() {
                let own = of_rank.len() / n_rows;
                assert!(own == width || own < width && rank + 1 == self.group.n_ranks, "{own} of {width}");
                rows.extend_from_slice(&of_rank[row * own..(row + 1) * own]);
            }
        }
        backend.tensor(&rows, &[n_rows, n])
    }

    fn send(&self, backend: &CpuBackend, x: &Tensor, _: &Weight, to: usize) -> Result<()> {
        let (from, n_ranks) = (self.place.rank, self.group.n_ranks);
        assert!(
            [(from + 1) % n_ranks, (from + n_ranks - 1) % n_ranks].contains(&to),
            "a ring has neighbours"
        );
        self.group.sent.lock().unwrap()[to * n_ranks + from].push_back(values(backend, x));
        self.group.is_sent.notify_all();
        Ok(())
    }

    fn receive(&self, backend: &CpuBackend, shape: &[usize], _: &Weight, from: usize) -> Result<Tensor> {
        let at = self.place.rank * self.group.n_ranks + from;
        let sent = self.group.sent.lock().unwrap();
        let mut sent = self.group.is_sent.wait_while(sent, |sent| sent[at].is_empty()).unwrap();
        backend.tensor(&sent[at].pop_front().unwrap(), shape)
    }
}

pub(crate) type Part = Model<Hooked<CpuBackend, Rank>>;

fn load(checkpoint: &Checkpoint, rank: Rank) -> Part {
    let backend = Hooked::new(CpuBackend::new(Some(1)).unwrap(), rank);
    let model = Model::load(backend, checkpoint, &mut |_, _| ()).unwrap();
    let n_bytes = model.backend().hooks().n_bytes.load(Ordering::Relaxed);
    assert_eq!(model.weight_bytes(), n_bytes);
    model
}

/// Why the model cannot be loaded by the last of `n_ranks`.
pub(crate) fn refusal(checkpoint: &Checkpoint, n_ranks: usize, parallel: Parallel) -> Error {
    let rank = Rank::new(Shard { rank: n_ranks - 1, n_ranks }, parallel, &Group::new(1));
    let backend = Hooked::new(CpuBackend::new(Some(1)).unwrap(), rank);
    match Model::load(backend, checkpoint, &mut |_, _| ()) {
        Err(error) => error,
        Ok(_) => panic!("{} was loaded", checkpoint.name()),
    }
}

/// What `work` gives on each of `n_ranks` ranks that share every layer, with the bytes of its weights.
pub(crate) fn on_ranks<R: Send>(
    checkpoint: &Checkpoint,
    n_ranks: usize,
    work: impl Fn(&Part) -> R + Sync,
) -> Vec<(u64, R)> {
    let group = Group::new(n_ranks);
    let run = |rank: usize| {
        let model = load(checkpoint, Rank::new(Shard { rank, n_ranks }, Parallel::Tensor, &group));
        (model.weight_bytes(), work(&model))
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..n_ranks).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Rank 0, which tells the others what it does.
#[derive(Debug)]
struct Leader(Vec<mpsc::Sender<Order>>);

impl Lead for Leader {
    fn tell(&self, order: &Order) {
        self.0.iter().for_each(|follower| follower.send(order.clone()).unwrap());
    }

    fn give_up(&self, error: &Error) {
        panic!("{error}");
    }
}

/// What `work` gives on rank 0, which leads the others, and the bytes of each rank's weights.
pub(crate) fn led<R: Send>(
    checkpoint: &Checkpoint,
    n_ranks: usize,
    parallel: Parallel,
    fusion: Fusion,
    work: impl Fn(&Part) -> R + Sync,
) -> (Vec<u64>, R) {
    let group = Group::new(n_ranks);
    let load = |rank: usize| {
        let model = load(checkpoint, Rank::new(Shard { rank, n_ranks }, parallel, &group));
        assert!(self_check(&model, &fusion).unwrap().passed());
        model
    };
    std::thread::scope(|scope| {
        let (mut senders, mut followers) = (Vec::new(), Vec::new());
        for rank in 1..n_ranks {
            let (sender, orders) = mpsc::channel();
            senders.push(sender);
            followers.push(scope.spawn(move || {
                let model = load(rank);
                follow(&model, &fusion, || orders.recv().ok()).unwrap();
                model.weight_bytes()
            }));
        }
        let mut model = load(0);
        model.lead(Arc::new(Leader(senders)));
        let result = work(&model);
        let own = model.weight_bytes();
        // The others end with the orders.
        drop(model);
        let others = followers.into_iter().map(|follower| follower.join().unwrap());
        ([own].into_iter().chain(others).collect(), result)
    })
}

pub(crate) fn logits<B: Backend>(model: &Model<B>, tokens: &[u32]) -> Vec<f32> {
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
