//! Splitting the older layout of latent attention.

use rstest::rstest;

use super::*;

const DIMS: KvBDims = KvBDims { n_heads: 2, qk_nope_head_dim: 64, v_head_dim: 32, kv_lora_rank: 128 };

fn split(tensors: &[T], dims: KvBDims) -> (HostWeight, HostWeight) {
    let checkpoint = checkpoint(tensors);
    let mut reader = checkpoint.reader();
    let parts = reader.kv_b_proj("m", dims);
    reader.finish().unwrap();
    parts
}

/// The parts of `all`, split index by index, which is slower.
fn split_f32(all: &[f32], dims: KvBDims) -> (Vec<f32>, Vec<f32>) {
    let KvBDims { n_heads, qk_nope_head_dim: nope, v_head_dim: v, kv_lora_rank: rank } = dims;
    let at = |head: usize, row: usize, column: usize| all[(head * (nope + v) + row) * rank + column];
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for h in 0..n_heads {
        for r in 0..rank {
            keys.extend((0..nope).map(|n| at(h, n, r)));
        }
        for row in nope..nope + v {
            values.extend((0..rank).map(|r| at(h, row, r)));
        }
    }
    (keys, values)
}

#[test]
fn a_dense_kv_b_proj_is_split_exactly() {
    let w = wave(192 * 128);
    let (keys, values) = split_f32(&w, DIMS);
    let (embed_q, unembed_out) = split(&[floats("m.weight", &[192, 128], &w)], DIMS);
    assert_eq!((embed_q.n_mats(), embed_q.n_out(), embed_q.n_in()), (2, 128, 64));
    assert_eq!((unembed_out.n_mats(), unembed_out.n_out(), unembed_out.n_in()), (2, 32, 128));
    assert_eq!(embed_q.format(), WeightFormat::Dense(DType::F32));
    assert_eq!((embed_q.to_f32_vec(), unembed_out.to_f32_vec()), (keys, values));

    let narrow = w.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let (embed_q, _) = split(&[T("m.weight".into(), Dtype::BF16, vec![192, 128], narrow)], DIMS);
    assert_eq!(embed_q.format(), WeightFormat::Dense(DType::BF16));
    assert_eq!(embed_q.to_f32_vec(), split_f32(&w, DIMS).0);
}

/// A recorded bf16 weight `[3 · 40, 256]`, and the values to which the reference dequantises it.
fn recorded(bits: usize, group: usize) -> (Vec<T>, Vec<f32>) {
    let ops = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/ops");
    let file = std::fs::read(ops.join(format!("affine_b{bits}_g{group}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let get = |name: &str| file.tensor(&format!("bf16.{name}")).unwrap();
    let tensors = [("weight", "packed"), ("scales", "scales"), ("biases", "biases")].map(|(part, name)| {
        let t = get(name);
        T(format!("m.{part}"), t.dtype(), vec![120, t.shape()[2]], t.data().to_vec())
    });
    (tensors.to_vec(), DType::BF16.to_f32_vec(get("dequantized").data()))
}

fn assert_quantised_from(part: &HostWeight, spec: QuantSpec, values: &[f32]) {
    let want = quantize(spec, DType::BF16, values, part.n_in()).unwrap();
    assert_eq!(part.format(), WeightFormat::Quantized { spec, scale_dtype: DType::BF16 });
    let mats: Vec<_> = (0..part.n_mats()).map(|i| part.mat(i)).collect();
    assert!(mats.iter().flat_map(|m| m.data.to_vec()).eq(want.data), "words");
    assert!(mats.iter().flat_map(|m| m.scales.to_vec()).eq(want.scales), "scales");
    assert!(mats.iter().flat_map(|m| m.biases.to_vec()).eq(want.biases), "biases");
}

/// For keys 32 wide, groups of 32 are quantised again. All others, and all keys 24 wide, stay dense.
#[rstest]
fn a_quantised_kv_b_proj_is_quantised_again(
    #[values(2, 3, 4, 5, 6, 8)] bits: usize,
    #[values(32, 64, 128)] group: usize,
    #[values(24, 32)] nope: usize,
) {
    let dims = KvBDims { n_heads: 3, qk_nope_head_dim: nope, v_head_dim: 40 - nope, kv_lora_rank: 256 };
    let (tensors, dequantized) = recorded(bits, group);
    let (keys, values) = split_f32(&dequantized, dims);
    let (embed_q, unembed_out) = split(&tensors, dims);
    let spec = affine(bits, group);
    assert_quantised_from(&unembed_out, spec, &values);
    if nope == group {
        assert_quantised_from(&embed_q, spec, &keys);
    } else {
        assert_eq!(embed_q.format(), WeightFormat::Dense(DType::BF16));
        assert_eq!(embed_q.to_f32_vec(), keys);
    }
}

#[test]
fn float_modes_lose_nothing_where_they_become_dense() {
    for spec in QuantSpec::all().into_iter().filter(|s| s.mode() != QuantMode::Affine) {
        let dims = KvBDims { qk_nope_head_dim: 40, v_head_dim: 56, ..DIMS };
        let tensors = quantized("m", &[192], spec, &wave(192 * 128), 128);
        let (embed_q, unembed_out) = split(&tensors, dims);
        let (keys, values) = split_f32(&checkpoint_one(&tensors, 192, 128).to_f32_vec(), dims);
        assert_eq!((embed_q.format(), embed_q.to_f32_vec()), (WeightFormat::Dense(DType::BF16), keys));
        let again = quantize(spec, DType::U8, &values, 128).unwrap();
        assert!((0..2).flat_map(|i| unembed_out.mat(i).data.to_vec()).eq(again.data));
    }
}

#[test]
fn a_misshaped_kv_b_proj_is_a_problem() {
    for dims in [KvBDims { n_heads: 3, ..DIMS }, KvBDims { n_heads: usize::MAX, ..DIMS }] {
        let checkpoint = checkpoint(&[zeros("m.weight", Dtype::F32, &[192, 128])]);
        let mut reader = checkpoint.reader();
        let _ = reader.kv_b_proj("m", dims);
        assert!(matches!(&problems(reader.finish())[..], [WeightProblem::Shape { .. }]));
    }
}
