//! Every kind of op on the CPU backend, with the bytes that it reads as throughput, over the formats and counts of the
//! conformance suite at the widths of released models.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use zmlx_benches::random_weight_of;
use zmlx_conformance::cases::{self, Experts, Grid};
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Activation, Backend, DType, Down, GateUp, QuantMode, QuantSpec, WeightFormat};

/// Widths of a layer: both are among the released models'.
const INTER: usize = cases::REAL_WIDTHS[0];
const HIDDEN: usize = cases::REAL_WIDTHS[2];

type Tensor = <CpuBackend as Backend>::Tensor;
type Indices = <CpuBackend as Backend>::Indices;
type Weight = <CpuBackend as Backend>::Weight;

/// A backend and makers of its arrays.
struct Maker {
    b: CpuBackend,
}

impl Maker {
    fn new() -> Self {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { b: CpuBackend::new(Some(n_threads)).expect("the level is supported") }
    }

    fn tensor(&self, shape: &[usize]) -> Tensor {
        self.b.tensor(&vec![0.1; shape.iter().product()], shape).expect("the shape fits")
    }

    /// A weight and the bytes of one of its matrices.
    fn weight(&self, format: WeightFormat, shape: [usize; 3]) -> (Weight, u64) {
        let host = random_weight_of(format, shape);
        let bytes = host.mat_bytes() as u64;
        (self.b.upload(host).expect("the format is supported"), bytes)
    }

    /// Experts for every token, and how many different ones there are.
    fn experts(&self, case: Experts) -> (Indices, u64) {
        let Experts { n_tokens, top_k, n_experts, .. } = case;
        let chosen: Vec<u32> = (0..n_tokens * top_k).map(|i| (i % n_experts) as u32).collect();
        let n_chosen = chosen.len().min(n_experts) as u64;
        (self.b.indices(&chosen, &[n_tokens, top_k]).expect("the shape fits"), n_chosen)
    }
}

fn affine4() -> WeightFormat {
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64).expect("a format of MLX");
    WeightFormat::Quantized { spec, scale_dtype: DType::BF16 }
}

/// The ops with weights, a token at a time, in every format.
fn formats(c: &mut Criterion) {
    let maker = Maker::new();
    let b = &maker.b;
    let case = cases::EXPERTS[2]; // one token
    let (experts, n_chosen) = maker.experts(case);
    for format in cases::formats_of(Grid::Thinned) {
        let name = cases::name(format);
        let bank = |n_out, n_in| maker.weight(format, [case.n_experts, n_out, n_in]);
        let ((gate, gate_bytes), (up, up_bytes), (down, down_bytes)) =
            (bank(INTER, HIDDEN), bank(INTER, HIDDEN), bank(HIDDEN, INTER));
        let (x, h) = (maker.tensor(&[1, HIDDEN]), maker.tensor(&[1, case.top_k, INTER]));
        let weights = maker.tensor(&[1, case.top_k]);
        let (one, one_bytes) = maker.weight(format, [1, INTER, HIDDEN]);
        let gate_up = GateUp::swiglu(&gate, &up);

        let mut group = c.benchmark_group(format!("formats/{name}"));
        group.throughput(Throughput::Bytes(one_bytes));
        group.bench_function("linear", |bench| bench.iter(|| b.linear(&x, &one)));
        group.throughput(Throughput::Bytes(2 * one_bytes));
        let other = one.clone();
        let twice = GateUp::swiglu(&one, &other);
        group.bench_function("qmm_swiglu", |bench| bench.iter(|| b.qmm_swiglu(&x, twice)));
        group.throughput(Throughput::Bytes(gate_bytes * n_chosen));
        group.bench_function("gather_linear", |bench| bench.iter(|| b.gather_linear(&x, &gate, &experts)));
        group.throughput(Throughput::Bytes((gate_bytes + up_bytes) * n_chosen));
        group.bench_function("gather_qmm_swiglu", |bench| {
            bench.iter(|| b.gather_qmm_swiglu(&x, gate_up, &experts));
        });
        group.throughput(Throughput::Bytes(down_bytes * n_chosen));
        group.bench_function("gather_qmm_combine", |bench| {
            bench.iter(|| b.gather_qmm_combine(&h, Down::plain(&down), &experts, &weights));
        });
        group.finish();
    }
}

/// The commonest format with every number of tokens and every choice of experts.
fn counts(c: &mut Criterion) {
    let maker = Maker::new();
    let b = &maker.b;
    let mut group = c.benchmark_group("counts");
    let (one, one_bytes) = maker.weight(affine4(), [1, INTER, HIDDEN]);
    for n_tokens in cases::N_TOKENS {
        let x = maker.tensor(&[n_tokens, HIDDEN]);
        group.throughput(Throughput::Bytes(one_bytes));
        let id = BenchmarkId::new("linear", format!("{n_tokens} tokens"));
        group.bench_function(id, |bench| bench.iter(|| b.linear(&x, &one)));
    }
    for case in cases::EXPERTS {
        let bank = |n_out, n_in| maker.weight(affine4(), [case.n_experts, n_out, n_in]);
        let ((gate, bytes), (up, _)) = (bank(INTER, HIDDEN), bank(INTER, HIDDEN));
        let x = maker.tensor(&[case.n_tokens, HIDDEN]);
        let (experts, n_chosen) = maker.experts(case);
        group.throughput(Throughput::Bytes(2 * bytes * n_chosen));
        let Experts { n_tokens, top_k, n_experts, .. } = case;
        let id = BenchmarkId::new("gather_qmm_swiglu", format!("{n_tokens} tokens, {top_k} of {n_experts}"));
        let gate_up = GateUp::swiglu(&gate, &up);
        group.bench_function(id, |bench| bench.iter(|| b.gather_qmm_swiglu(&x, gate_up, &experts)));
    }
    group.finish();
}

/// Ops between activations: bytes read and written.
fn activations(c: &mut Criterion) {
    let maker = Maker::new();
    let b = &maker.b;
    let mut group = c.benchmark_group("activations");
    for width in cases::REAL_WIDTHS {
        let bytes = (width * size_of::<f32>()) as u64;
        let x = maker.tensor(&[1, width]);
        let (norm, _) = maker.weight(WeightFormat::Dense(DType::BF16), [1, 1, width]);
        group.throughput(Throughput::Bytes(2 * bytes));
        group.bench_function(BenchmarkId::new("rms_norm", width), |bench| {
            bench.iter(|| b.rms_norm(&x, &norm, 1e-6));
        });
        group.bench_function(BenchmarkId::new("softmax", width), |bench| bench.iter(|| b.softmax(&x)));
        group.throughput(Throughput::Bytes(3 * bytes));
        group.bench_function(BenchmarkId::new("swiglu", width), |bench| {
            bench.iter(|| b.gated(&x, &x, Activation::SwiGlu))
        });
        group.throughput(Throughput::Bytes(4 * bytes));
        group.bench_function(BenchmarkId::new("add_rms_norm", width), |bench| {
            bench.iter(|| b.add_rms_norm(&x, &x, &norm, 1e-6));
        });
    }
    group.finish();
}

/// Over a hundred benches, each short.
fn brief() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = brief(); targets = formats, counts, activations }
criterion_main!(benches);
