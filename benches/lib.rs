//! What the benches share.

use std::path::PathBuf;

use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{DType, HostWeight, QuantSpec, WeightBytes, WeightFormat};
use zmlx_models::{Checkpoint, Input, LogitsOf, Model, State};

/// The folder of a tiny model.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/models").join(name)
}

/// A random weight in a quantised format, with scales of one value.
pub fn random_weight(spec: QuantSpec, shape: [usize; 3]) -> HostWeight {
    let n = shape.iter().product::<usize>();
    let n_groups = n / spec.group_size();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let n_bytes = spec.packed_bytes(n);
    let mut data: Vec<u8> = words.take(n_bytes.div_ceil(8)).flatten().collect();
    data.truncate(n_bytes);
    let (scale_dtype, scale) = if spec.has_biases() {
        (DType::BF16, half::bf16::from_f32(0.01).to_le_bytes().to_vec())
    } else {
        (DType::U8, vec![0x38])
    };
    let scales = bytes::Bytes::from(scale.repeat(n_groups));
    let biases = if spec.has_biases() { scales.clone() } else { bytes::Bytes::new() };
    let bytes = WeightBytes { data: data.into(), scales, biases };
    HostWeight::new(WeightFormat::Quantized { spec, scale_dtype }, shape, bytes)
        .expect("the buffers fit the shape")
}

/// A model ready to decode: a prompt of `depth` tokens is in its cache.
pub fn prepared(
    checkpoint: &Checkpoint,
    n_threads: usize,
    depth: usize,
) -> (Model<CpuBackend>, State<CpuBackend>) {
    let backend = CpuBackend::new(Some(n_threads)).expect("the level is supported");
    let model = Model::load(backend, checkpoint, &mut |_, _| ()).expect("the model loads");
    let mut state = model.state(1).expect("one slot");
    let vocab = model.config().vocab_size() as u32;
    let prompt: Vec<u32> = (0..depth as u32).map(|i| i * 37 % vocab).collect();
    let fusion = zmlx_kernels::Fusion::FUSED;
    let input = Input { slot: 0, tokens: &prompt };
    model.forward(&mut state, &[input], LogitsOf::Last, &fusion).expect("the prompt is sound");
    (model, state)
}

/// One decode step from the same depth as before, logits included.
pub fn step(
    model: &Model<CpuBackend>,
    state: &mut State<CpuBackend>,
    token: u32,
    fusion: &zmlx_kernels::Fusion,
) {
    let depth = state.n_tokens(0);
    let input = Input { slot: 0, tokens: &[token] };
    model.forward(state, &[input], LogitsOf::Last, fusion).expect("the token is sound");
    model.truncate(state, 0, depth).expect("the sequence holds what it held");
}
