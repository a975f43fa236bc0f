//! The fused expert kernels at the real widths, with the bytes of weights that they read as throughput.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use zmlx_benches::random_weight;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Down, GateUp, QuantMode, QuantSpec, stock};

/// (name, n_experts, top_k, hidden, inter): enough experts to exceed the caches.
const WIDTHS: [(&str, usize, usize, usize, usize); 2] =
    [("qwen", 64, 8, 2048, 768), ("glm", 32, 4, 2048, 1536)];

fn experts(c: &mut Criterion) {
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let b = CpuBackend::new(Some(n_threads)).expect("the level is supported");
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64).expect("a format of MLX");
    for (name, n_experts, top_k, hidden, inter) in WIDTHS {
        let weight = |n_out, n_in| {
            let host = random_weight(spec, [n_experts, n_out, n_in]);
            let bytes = host.mat_bytes() * top_k;
            (b.upload(host).expect("the format is supported"), bytes as u64)
        };
        let ((gate, gate_bytes), (up, up_bytes), (down, down_bytes)) =
            (weight(inter, hidden), weight(inter, hidden), weight(hidden, inter));
        let tensor =
            |shape: &[usize]| b.tensor(&vec![0.1; shape.iter().product()], shape).expect("the shape fits");
        let (x, h, weights) = (tensor(&[1, hidden]), tensor(&[1, top_k, inter]), tensor(&[1, top_k]));
        let mut first = 0;
        let mut choose = || {
            first = (first + top_k) % n_experts;
            let chosen: Vec<u32> = (0..top_k).map(|s| ((first + s) % n_experts) as u32).collect();
            b.indices(&chosen, &[1, top_k]).expect("the shape fits")
        };
        let mut group = c.benchmark_group(format!("experts/{name}"));
        group.throughput(Throughput::Bytes(gate_bytes + up_bytes));
        let gate_up = GateUp::swiglu(&gate, &up);
        group.bench_function(BenchmarkId::new("gather_qmm_swiglu", "stock"), |bench| {
            bench.iter(|| stock::gather_qmm_swiglu(&b, &x, gate_up, &choose()));
        });
        group.bench_function(BenchmarkId::new("gather_qmm_swiglu", "fused"), |bench| {
            bench.iter(|| b.gather_qmm_swiglu(&x, gate_up, &choose()));
        });
        group.throughput(Throughput::Bytes(down_bytes));
        group.bench_function(BenchmarkId::new("gather_qmm_combine", "stock"), |bench| {
            bench.iter(|| stock::gather_qmm_combine(&b, &h, Down::plain(&down), &choose(), &weights));
        });
        group.bench_function(BenchmarkId::new("gather_qmm_combine", "fused"), |bench| {
            bench.iter(|| b.gather_qmm_combine(&h, Down::plain(&down), &choose(), &weights));
        });
        group.finish();
    }
}

criterion_group!(benches, experts);
criterion_main!(benches);
