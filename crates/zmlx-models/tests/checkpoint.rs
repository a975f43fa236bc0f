//! Opening checkpoints and taking their tensors: sound ones, and every way in which one can be broken.

use std::path::PathBuf;

use bytes::Bytes;
use half::bf16;
use rstest::rstest;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use zmlx_kernels::quant::quantize;
use zmlx_kernels::{DType, HostWeight, QuantMode, QuantSpec, WeightFormat};
use zmlx_models::{Checkpoint, Error, KvBDims, WeightProblem};

fn config() -> Value {
    json!({
        "model_type": "qwen3_moe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 1e7,
        "max_position_embeddings": 4096, "tie_word_embeddings": false, "eos_token_id": 7
    })
}

/// A tensor to be written.
#[derive(Clone, Debug)]
struct T(String, Dtype, Vec<usize>, Vec<u8>);

fn shard(tensors: &[T]) -> Bytes {
    let views = tensors.iter().map(|T(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    Bytes::from(safetensors::serialize(views, None).unwrap())
}

fn zeros(name: &str, dtype: Dtype, shape: &[usize]) -> T {
    let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    T(name.into(), dtype, shape.to_vec(), vec![0; n_bytes])
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> T {
    T(name.into(), Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// The three tensors of a quantised weight with bf16 scales (u8 for the float modes).
fn quantized(path: &str, lead: &[usize], spec: QuantSpec, w: &[f32], n_in: usize) -> Vec<T> {
    let affine = spec.mode() == QuantMode::Affine;
    let (dtype, kernel_dtype) = if affine { (Dtype::BF16, DType::BF16) } else { (Dtype::U8, DType::U8) };
    let q = quantize(spec, kernel_dtype, w, n_in).unwrap();
    let shape = |last: usize| lead.iter().copied().chain([last]).collect::<Vec<_>>();
    let (words, groups) = (shape(n_in * spec.bits() / 32), shape(n_in / spec.group_size()));
    let mut tensors = vec![
        T(format!("{path}.weight"), Dtype::U32, words, q.data),
        T(format!("{path}.scales"), dtype, groups.clone(), q.scales),
    ];
    if affine {
        tensors.push(T(format!("{path}.biases"), dtype, groups, q.biases));
    }
    tensors
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| bf16::from_f32((i as f32 * 0.37).sin()).to_f32()).collect()
}

fn affine(bits: usize, group: usize) -> QuantSpec {
    QuantSpec::new(QuantMode::Affine, bits, group).unwrap()
}

fn checkpoint_with(config: &Value, shards: &[&[T]]) -> Result<Checkpoint, Error> {
    let shards =
        shards.iter().enumerate().map(|(i, t)| (format!("model-{i}.safetensors"), shard(t))).collect();
    Checkpoint::from_parts("test", &config.to_string(), None, shards)
}

fn checkpoint(tensors: &[T]) -> Checkpoint {
    checkpoint_with(&config(), &[tensors]).unwrap()
}

fn problems(result: Result<(), Error>) -> Vec<WeightProblem> {
    match result {
        Err(Error::Weights { problems, .. }) => problems,
        other => panic!("{other:?}"),
    }
}

/// The problems of reading one matrix `[4, 64]` at `m`.
fn matrix_problems(config: &Value, tensors: &[T]) -> Vec<WeightProblem> {
    let checkpoint = checkpoint_with(config, &[tensors]).unwrap();
    let mut reader = checkpoint.reader();
    let _ = reader.matrix("m", 4, 64);
    problems(reader.finish())
}

fn is_within(inner: &[u8], outer: &[u8]) -> bool {
    let (i, o) = (inner.as_ptr_range(), outer.as_ptr_range());
    o.start <= i.start && i.end <= o.end
}

#[rstest]
fn fixtures(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] model: &str) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(model);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!((checkpoint.name(), checkpoint.dir()), (model, Some(dir.as_path())));
    assert_eq!(checkpoint.eos_token_ids(), [0, 2]);
    assert_eq!(checkpoint.declared_dtype(), Some("bfloat16"));
    assert_eq!(checkpoint.config().vocab_size(), 3072);
    let file = std::fs::metadata(dir.join("model.safetensors")).unwrap().len();
    let total: u64 = checkpoint.tensors().map(|t| t.n_bytes as u64).sum();
    assert_eq!(checkpoint.total_bytes(), total);
    assert!(total < file && total > file - 32_768, "{total} of {file}");
    let norm = checkpoint.tensors().find(|t| t.name == "model.norm.weight").unwrap();
    assert_eq!(
        (norm.dtype, norm.shape, norm.shard),
        (Dtype::BF16, &[checkpoint.config().hidden_size()][..], "model.safetensors")
    );

    let hidden = checkpoint.config().hidden_size();
    let mut reader = checkpoint.reader();
    let embed = reader.matrix("model.embed_tokens", 3072, hidden);
    assert_eq!(embed.format(), WeightFormat::Quantized { spec: affine(4, 64), scale_dtype: DType::BF16 });
    assert!(reader.vector("model.norm.weight", hidden).iter().all(|v| v.is_finite()));
    let extra = problems(reader.finish());
    assert_eq!(extra.len(), checkpoint.tensors().len() - 4);
    assert!(extra.iter().all(|p| matches!(p, WeightProblem::Extra { .. })));
}

#[test]
fn the_router_of_qwen_has_a_format_of_its_own() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/austen-qwen3-moe-4bit");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let mut reader = checkpoint.reader();
    let gate = reader.matrix("model.layers.0.mlp.gate", 16, 512);
    let up = reader.bank("model.layers.0.mlp.switch_mlp.up_proj", |e| format!("none.{e}"), [16, 128, 512]);
    let spec = |w: &HostWeight| match w.format() {
        WeightFormat::Quantized { spec, .. } => spec,
        WeightFormat::Dense(_) => panic!("dense"),
    };
    assert_eq!((spec(&gate), spec(&up)), (affine(8, 64), affine(4, 64)));
    assert_eq!((up.n_mats(), up.n_out(), up.n_in()), (16, 128, 512));
}

#[rstest]
fn every_format_is_recognised(#[values(0, 1, 5, 12, 17, 18, 19, 20)] nth: usize) {
    let spec = QuantSpec::all()[nth];
    let checkpoint = checkpoint(&quantized("m", &[2, 3], spec, &wave(6 * 256), 256));
    let mut reader = checkpoint.reader();
    let w = reader.heads("m", 2, 3, 256);
    reader.finish().unwrap();
    match w.format() {
        WeightFormat::Quantized { spec: got, .. } => assert_eq!(got, spec),
        WeightFormat::Dense(_) => panic!("dense"),
    }
}

#[test]
fn a_wrong_global_format_does_not_matter_but_a_wrong_exception_does() {
    let tensors = quantized("m", &[4], affine(8, 32), &wave(256), 64);
    let with = |quantization: Value| {
        let mut config = config();
        config["quantization"] = quantization;
        config
    };
    let global = json!({"bits": 4, "group_size": 64});
    let right = json!({"bits": 4, "group_size": 64, "m": {"bits": 8, "group_size": 32}});
    for quantization in [global, right] {
        let checkpoint = checkpoint_with(&with(quantization), &[&tensors]).unwrap();
        let mut reader = checkpoint.reader();
        let w = reader.matrix("m", 4, 64);
        reader.finish().unwrap();
        assert_eq!(w.format(), WeightFormat::Quantized { spec: affine(8, 32), scale_dtype: DType::BF16 });
    }
    let wrong = json!({"bits": 8, "group_size": 32, "m": {"bits": 4, "group_size": 32}});
    let dense = json!({"bits": 8, "group_size": 32, "m": false});
    for quantization in [wrong, dense] {
        let found = matrix_problems(&with(quantization), &tensors);
        assert!(matches!(&found[..], [WeightProblem::Format { name, .. }] if name == "m"), "{found:?}");
    }
}

#[test]
fn weights_are_used_where_they_lie() {
    let mut tensors = quantized("q", &[3], affine(4, 32), &wave(192), 64);
    tensors.push(zeros("d.weight", Dtype::F16, &[2, 5]));
    for e in 0..3 {
        tensors.extend(quantized(&format!("experts.{e}.up"), &[2], affine(4, 32), &wave(128), 64));
    }
    let file = shard(&tensors);
    let shards = vec![("model.safetensors".to_owned(), file.clone())];
    let checkpoint = Checkpoint::from_parts("test", &config().to_string(), None, shards).unwrap();
    let mut reader = checkpoint.reader();
    let weights = [
        reader.matrix("q", 3, 64),
        reader.matrix("d", 2, 5),
        reader.bank("switch.up", |e| format!("experts.{e}.up"), [3, 2, 64]),
    ];
    reader.finish().unwrap();
    assert_eq!(weights[1].format(), WeightFormat::Dense(DType::F16));
    assert_eq!(weights[2].n_mats(), 3);
    for w in &weights {
        for i in 0..w.n_mats() {
            let m = w.mat(i);
            assert!([&m.data, &m.scales, &m.biases].iter().all(|b| b.is_empty() || is_within(b, &file)));
        }
    }
    let expert = checkpoint_one(&quantized("m", &[2], affine(4, 32), &wave(128), 64), 2, 64);
    assert_eq!(
        weights[2].to_f32_vec(),
        [expert.to_f32_vec(), expert.to_f32_vec(), expert.to_f32_vec()].concat()
    );
}

fn checkpoint_one(tensors: &[T], n_out: usize, n_in: usize) -> HostWeight {
    let checkpoint = checkpoint(tensors);
    let mut reader = checkpoint.reader();
    let w = reader.matrix("m", n_out, n_in);
    reader.finish().unwrap();
    w
}

#[test]
fn all_problems_are_reported_at_once() {
    let tensors = [
        floats("norm", &[3], &[1.0, 2.0, 3.0]),
        zeros("ids", Dtype::I64, &[3]),
        zeros("short", Dtype::F32, &[2]),
        zeros("dense.weight", Dtype::F32, &[2, 3]),
        zeros("left.over", Dtype::F32, &[1]),
        zeros("experts.0.up.weight", Dtype::F32, &[2, 3]),
        zeros("experts.2.up.weight", Dtype::F16, &[2, 3]),
    ];
    let checkpoint = checkpoint(&tensors);
    let mut reader = checkpoint.reader();
    assert_eq!(reader.vector("norm", 3), [1.0, 2.0, 3.0]);
    reader.vector("ids", 3);
    reader.vector("short", 3);
    let _ = reader.matrix("dense", 3, 2);
    let _ = reader.matrix("absent", 1, 1);
    let _ = reader.bank("stack.up", |e| format!("experts.{e}.up"), [3, 2, 3]);
    let found = reader.finish().unwrap_err();
    let text = found.to_string();
    let shape = |name: &str, got: &[usize], want: &[usize]| WeightProblem::Shape {
        name: name.into(),
        got: got.to_vec(),
        want: want.to_vec(),
    };
    assert_eq!(
        problems(Err(found)),
        [
            WeightProblem::DType { name: "ids".into(), got: "I64".into(), want: "F32, F16 or BF16" },
            shape("short", &[2], &[3]),
            shape("dense.weight", &[2, 3], &[3, 2]),
            WeightProblem::Missing { name: "absent.weight".into() },
            WeightProblem::Missing { name: "experts.1.up.weight".into() },
            WeightProblem::Extra { name: "left.over".into() },
        ]
    );
    assert!(text.contains("dense.weight: expected shape [3, 2], got [2, 3]"), "{text}");
    assert!(text.contains("left.over: the model has no such tensor"), "{text}");
}

#[test]
fn experts_of_different_formats() {
    let tensors = [zeros("e.0.weight", Dtype::F32, &[2, 3]), zeros("e.1.weight", Dtype::F16, &[2, 3])];
    let checkpoint = checkpoint(&tensors);
    let mut reader = checkpoint.reader();
    let _ = reader.bank("stack", |e| format!("e.{e}"), [2, 2, 3]);
    let found = problems(reader.finish());
    assert!(matches!(&found[..], [WeightProblem::Format { name, .. }] if name == "stack"), "{found:?}");
}

/// A sound quantised matrix `[4, 64]`, with one of its tensors changed.
#[rstest]
#[case::no_biases("biases", None, "m.biases: missing")]
#[case::no_weight("weight", None, "m.weight: missing")]
#[case::no_scales("scales", None, "m.scales: missing")]
#[case::float_words("weight", Some((Dtype::F32, vec![4, 8])), "m.weight: expected U32 beside scales, got F32")]
#[case::odd_scales("scales", Some((Dtype::I32, vec![4, 2])), "m.scales: expected F32, F16, BF16 or U8, got I32")]
#[case::odd_biases("biases", Some((Dtype::F32, vec![4, 2])), "m.biases: expected the type of the scales, got F32")]
#[case::rows("weight", Some((Dtype::U32, vec![5, 8])), "m.weight: expected shape [4, 8], got [5, 8]")]
#[case::scale_rows("scales", Some((Dtype::BF16, vec![3, 2])), "m.scales: expected shape [4, 2], got [3, 2]")]
#[case::bias_rows("biases", Some((Dtype::BF16, vec![4, 1])), "m.biases: expected shape [4, 2], got [4, 1]")]
#[case::no_format("weight", Some((Dtype::U32, vec![4, 9])), "m: expected a quantised weight with rows of 64")]
#[case::seven_bits("weight", Some((Dtype::U32, vec![4, 14])), "m: expected a quantised weight with rows of 64")]
#[case::group_size("scales", Some((Dtype::BF16, vec![4, 5])), "m: expected a quantised weight with rows of 64")]
#[case::no_groups("scales", Some((Dtype::BF16, vec![4, 0])), "m: expected a quantised weight with rows of 64")]
#[case::scalar("weight", Some((Dtype::U32, vec![])), "m: expected a quantised weight with rows of 64")]
#[case::stacked("weight", Some((Dtype::U32, vec![1, 4, 8])), "m.weight: expected shape [4, 8], got [1, 4, 8]")]
fn broken_quantised_weights(
    #[case] part: &str,
    #[case] change: Option<(Dtype, Vec<usize>)>,
    #[case] want: &str,
) {
    let mut tensors = quantized("m", &[4], affine(4, 32), &wave(256), 64);
    let name = format!("m.{part}");
    tensors.retain(|t| t.0 != name);
    tensors.extend(change.map(|(dtype, shape)| zeros(&name, dtype, &shape)));
    let found = matrix_problems(&config(), &tensors);
    assert!(found.iter().any(|p| p.to_string().starts_with(want)), "{found:?}");
}

#[test]
fn float_modes_have_no_biases() {
    let spec = QuantSpec::new(QuantMode::Mxfp4, 4, 32).unwrap();
    let mut tensors = quantized("m", &[4], spec, &wave(256), 64);
    tensors.push(zeros("m.biases", Dtype::U8, &[4, 2]));
    assert_eq!(matrix_problems(&config(), &tensors), [WeightProblem::Extra { name: "m.biases".into() }]);
}

#[test]
fn what_is_ignored_is_not_extra() {
    let names = ["a.b", "a.bc", "a.b.c", "layers.1.x", "layers.2.x", "layers.10.x", "layers.x"];
    let tensors: Vec<T> = names.iter().map(|n| zeros(n, Dtype::I64, &[1])).collect();
    let checkpoint = checkpoint(&tensors);
    let mut reader = checkpoint.reader();
    reader.ignore("a.b");
    reader.ignore_layers_from("layers", 2);
    assert!(reader.contains("a.bc") && !reader.contains("a"));
    let left = problems(reader.finish());
    let want = ["a.bc", "layers.1.x", "layers.x"].map(|n| WeightProblem::Extra { name: n.into() });
    assert_eq!(left, want);
}

const DIMS: KvBDims = KvBDims { n_heads: 2, qk_nope_head_dim: 64, v_head_dim: 32, kv_lora_rank: 128 };

fn split(tensors: &[T], dims: KvBDims) -> (HostWeight, HostWeight) {
    let checkpoint = checkpoint(tensors);
    let mut reader = checkpoint.reader();
    let parts = reader.kv_b_proj("m", dims);
    reader.finish().unwrap();
    parts
}

/// The parts of `all` as a slower, index by index, split gives them.
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

#[rstest]
#[case::affine_8(affine(8, 64))]
#[case::affine_4(affine(4, 32))]
#[case::mxfp8(QuantSpec::new(QuantMode::Mxfp8, 8, 32).unwrap())]
fn a_quantised_kv_b_proj_is_quantised_again(#[case] spec: QuantSpec) {
    let tensors = quantized("m", &[192], spec, &wave(192 * 128), 128);
    let (keys, values) = split_f32(&checkpoint_one(&tensors, 192, 128).to_f32_vec(), DIMS);
    let (embed_q, unembed_out) = split(&tensors, DIMS);
    for (part, exact) in [(embed_q, keys), (unembed_out, values)] {
        let WeightFormat::Quantized { spec: got, scale_dtype } = part.format() else { panic!("dense") };
        assert_eq!(got, spec);
        // The part is the quantised form of the exact values, rounded to the type of the scales.
        let round = |v: &f32| if scale_dtype == DType::BF16 { bf16::from_f32(*v).to_f32() } else { *v };
        let rounded: Vec<f32> = exact.iter().map(round).collect();
        let want = quantize(spec, scale_dtype, &rounded, part.n_in()).unwrap();
        let data: Vec<u8> = (0..2).flat_map(|i| part.mat(i).data.to_vec()).collect();
        let scales: Vec<u8> = (0..2).flat_map(|i| part.mat(i).scales.to_vec()).collect();
        let biases: Vec<u8> = (0..2).flat_map(|i| part.mat(i).biases.to_vec()).collect();
        assert!((data, scales, biases) == (want.data, want.scales, want.biases));
    }
}

#[test]
fn a_key_width_that_groups_do_not_divide_stays_dense() {
    let dims = KvBDims { qk_nope_head_dim: 48, v_head_dim: 48, ..DIMS };
    let tensors = quantized("m", &[192], affine(8, 64), &wave(192 * 128), 128);
    let (embed_q, unembed_out) = split(&tensors, dims);
    assert_eq!(embed_q.format(), WeightFormat::Dense(DType::BF16));
    assert!(matches!(unembed_out.format(), WeightFormat::Quantized { .. }));
    let (keys, _) = split_f32(&checkpoint_one(&tensors, 192, 128).to_f32_vec(), dims);
    let rounded: Vec<f32> = keys.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
    assert_eq!(embed_q.to_f32_vec(), rounded);
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

/// A safetensors file with this header and so many bytes of data.
fn raw(header: &str, n_data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(vec![0; n_data]);
    file
}

fn entry(dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

#[rstest]
#[case::empty(vec![])]
#[case::seven_bytes(vec![0; 7])]
#[case::header_beyond_the_end(100u64.to_le_bytes().to_vec())]
#[case::header_of_all_memory(u64::MAX.to_le_bytes().to_vec())]
#[case::no_json(raw("nonsense", 0))]
#[case::no_utf8([&4u64.to_le_bytes()[..], &[0xff; 4]].concat())]
#[case::truncated(raw(&format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 0, 8)), 4))]
#[case::left_over(raw(&format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 0, 8)), 12))]
#[case::overlap(raw(&format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[2]", 0, 8), entry("F32", "[2]", 4, 12)), 12))]
#[case::gap(raw(&format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[1]", 0, 4), entry("F32", "[1]", 8, 12)), 12))]
#[case::backwards(raw(&format!(r#"{{"a":{}}}"#, entry("F32", "[2]", 8, 0)), 8))]
#[case::size(raw(&format!(r#"{{"a":{}}}"#, entry("F32", "[3]", 0, 8)), 8))]
#[case::overflow(raw(&format!(r#"{{"a":{}}}"#, entry("F32", "[4294967296,4294967296]", 0, 8)), 8))]
#[case::offsets(raw(&format!(r#"{{"a":{}}}"#, entry("U8", "[18446744073709551615]", 0, u64::MAX)), 8))]
#[case::negative(raw(&format!(r#"{{"a":{}}}"#, entry("F32", "[-2]", 0, 8)), 8))]
#[case::unknown_dtype(raw(&format!(r#"{{"a":{}}}"#, entry("Q4_K", "[2]", 0, 8)), 8))]
#[case::no_offsets(raw(r#"{"a":{"dtype":"F32","shape":[2]}}"#, 8))]
fn unsound_shards(#[case] file: Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    match Checkpoint::open(dir.path()) {
        Err(Error::Shard { file, .. }) => assert_eq!(file, "model.safetensors"),
        other => panic!("{other:?}"),
    }
}

/// Every file that a sound shard becomes by cutting it or by changing one byte of its header opens or is refused.
#[test]
fn damaged_shards_never_panic() {
    let good = shard(&quantized("m", &[4], affine(4, 32), &wave(256), 64)).to_vec();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut n_refused = 0;
    let mut check = |file: Vec<u8>| {
        let shards = vec![("model.safetensors".to_owned(), Bytes::from(file))];
        match Checkpoint::from_parts("test", &config().to_string(), None, shards) {
            Ok(checkpoint) => {
                let mut reader = checkpoint.reader();
                let _ = reader.matrix("m", 4, 64);
                let _ = reader.finish();
            }
            Err(_) => n_refused += 1,
        }
    };
    (0..good.len()).for_each(|n| check(good[..n].to_vec()));
    for i in 0..header {
        for byte in [b'0', b'9', b'"', b'{', 0, 0xff] {
            let mut file = good.clone();
            file[i] = byte;
            check(file);
        }
    }
    assert!(n_refused >= good.len(), "{n_refused}");
}

#[test]
fn folders() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, data: &[u8]| std::fs::write(dir.path().join(file), data).unwrap();
    let open = || Checkpoint::open(dir.path());
    assert!(matches!(
        Checkpoint::open(&dir.path().join("none")),
        Err(Error::MissingFile { file: "config.json", .. })
    ));
    assert!(matches!(open(), Err(Error::MissingFile { file: "config.json", .. })));
    write("config.json", b"{");
    assert!(matches!(open(), Err(Error::Json { .. })));
    write("config.json", b"\xff");
    assert!(matches!(open(), Err(Error::Io { .. })));
    write("config.json", config().to_string().as_bytes());
    write("optimizer.safetensors", b"not ours");
    assert!(matches!(open(), Err(Error::MissingFile { file: "model*.safetensors", .. })));

    write("model-00001-of-00002.safetensors", &shard(&[zeros("a", Dtype::F32, &[1])]));
    write("model-00002-of-00002.safetensors", &shard(&[zeros("b", Dtype::F32, &[2])]));
    // Stale: the headers are the truth.
    write("model.safetensors.index.json", br#"{"weight_map": {"c": "model-00003-of-00003.safetensors"}}"#);
    let checkpoint = open().unwrap();
    let shards: Vec<_> = checkpoint.tensors().map(|t| (t.name, t.n_bytes, t.shard)).collect();
    assert_eq!(
        shards,
        [("a", 4, "model-00001-of-00002.safetensors"), ("b", 8, "model-00002-of-00002.safetensors")]
    );
    write("model.safetensors.index.json", b"nonsense");
    assert!(open().is_ok());

    write("model-extra.safetensors", &shard(&[zeros("a", Dtype::F32, &[1])]));
    match open() {
        Err(Error::DuplicateTensor { name, first, second }) => assert_eq!(
            [name.as_str(), first.as_str(), second.as_str()],
            ["a", "model-00001-of-00002.safetensors", "model-extra.safetensors"]
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_checkpoint_without_shards() {
    assert!(matches!(checkpoint_with(&config(), &[]), Err(Error::MissingFile { .. })));
    let empty = checkpoint(&[]);
    assert_eq!((empty.tensors().len(), empty.total_bytes()), (0, 0));
    empty.reader().finish().unwrap();
}
