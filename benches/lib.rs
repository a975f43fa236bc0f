//! What the benches share.

use std::path::PathBuf;

use bytes::Bytes;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{DType, HostWeight, QuantSpec, WeightBytes, WeightFormat};
use zmlx_models::{CachePool, Checkpoint, Input, Logits, Model, PoolOptions, Slot};

/// The folder of a tiny model.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models").join(name)
}

/// A random weight in a quantised format with scales of the usual type and of one value.
pub fn random_weight(spec: QuantSpec, shape: [usize; 3]) -> HostWeight {
    let scale_dtype = if spec.has_biases() { DType::BF16 } else { DType::U8 };
    random_weight_of(WeightFormat::Quantized { spec, scale_dtype }, shape)
}

/// A weight in any format: random codes with scales of one value, or dense values of one kind.
pub fn random_weight_of(format: WeightFormat, shape: [usize; 3]) -> HostWeight {
    let n = shape.iter().product::<usize>();
    let value = |dtype: DType| match dtype {
        DType::F32 => 0.01f32.to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(0.01).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f32(0.01).to_le_bytes().to_vec(),
        // Of nvfp4 it is 1; of the others a small power of two.
        DType::U8 | DType::U32 => vec![0x38],
    };
    let bytes = match format {
        WeightFormat::Dense(dtype) => {
            WeightBytes { data: value(dtype).repeat(n).into(), scales: Bytes::new(), biases: Bytes::new() }
        }
        WeightFormat::Quantized { spec, scale_dtype } => {
            let scales = Bytes::from(value(scale_dtype).repeat(n / spec.group_size()));
            let biases = if spec.has_biases() { scales.clone() } else { Bytes::new() };
            WeightBytes { data: random_bytes(spec.packed_bytes(n)), scales, biases }
        }
    };
    HostWeight::new(format, shape, bytes).expect("the buffers fit the shape")
}

fn random_bytes(n: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Without the bit that makes NaN codes of mxfp8.
        (state & 0xbfbf_bfbf_bfbf_bfbf).to_le_bytes()
    });
    let mut data: Vec<u8> = words.take(n.div_ceil(8)).flatten().collect();
    data.truncate(n);
    data.into()
}

/// A model ready to decode: a prompt of `depth` tokens is in a slot of its cache.
pub fn prepared(
    checkpoint: &Checkpoint,
    n_threads: usize,
    depth: usize,
) -> (Model<CpuBackend>, CachePool<CpuBackend>, Slot) {
    let backend = CpuBackend::new(Some(n_threads)).expect("the level is supported");
    let model = Model::load(backend, checkpoint, &mut |_, _| ()).expect("the model loads");
    let mut pool = model.pool(PoolOptions::default()).expect("the format is the backend's own");
    let slot = pool.allocate().expect("the first slot");
    let vocab = model.architecture().vocab_size as u32;
    let prompt: Vec<u32> = (0..depth as u32).map(|i| i * 37 % vocab).collect();
    let fusion = zmlx_kernels::Fusion::FUSED;
    let input = Input { slot, tokens: &prompt, logits: Logits::Last };
    model.forward(&mut pool, &[input], &fusion).expect("the prompt is sound");
    (model, pool, slot)
}

/// One decode step from the same depth as before, logits included.
pub fn step(
    model: &Model<CpuBackend>,
    (pool, slot): (&mut CachePool<CpuBackend>, Slot),
    token: u32,
    fusion: &zmlx_kernels::Fusion,
) {
    let depth = pool.n_tokens(slot);
    let input = Input { slot, tokens: &[token], logits: Logits::Last };
    model.forward(pool, &[input], fusion).expect("the token is sound");
    pool.truncate(slot, depth).expect("the sequence holds what it held");
}
