//! Reading weights, and the report of those that do not fit.

use rstest::rstest;

use super::*;

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
    assert_eq!(reader.vector("norm", 3).to_f32_vec(), [1.0, 2.0, 3.0]);
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

/// A valid quantised matrix `[4, 64]` with one of its tensors changed.
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

/// nvfp4's second scale: a weight is code · scale · global_scale / (6 · 448).
#[rstest]
#[case::one_for_each_matrix(&[3], &[3], true)]
#[case::one_for_a_matrix(&[], &[1], true)]
#[case::without_a_dimension(&[], &[], true)]
#[case::too_few(&[3], &[2], false)]
#[case::one_for_all(&[3], &[1], false)]
#[case::one_for_each_row(&[], &[4], false)]
fn second_scales(#[case] lead: &[usize], #[case] scale_shape: &[usize], #[case] fits: bool) {
    let spec = QuantSpec::new(QuantMode::Nvfp4, 4, 16).unwrap();
    let n_mats: usize = lead.iter().product();
    let shape: Vec<usize> = lead.iter().copied().chain([4]).collect();
    let mut tensors = quantized("m", &shape, spec, &wave(n_mats * 4 * 32), 32);
    let read = |tensors: &[T]| {
        let checkpoint = checkpoint(tensors);
        let mut reader = checkpoint.reader();
        let w = if lead.is_empty() { reader.matrix("m", 4, 32) } else { reader.heads("m", n_mats, 4, 32) };
        reader.finish().map(|()| w)
    };
    let plain = read(&tensors).unwrap().to_f32_vec();
    let scales: Vec<f32> = (0..scale_shape.iter().product()).map(|i| 1344.0 * (i + 1) as f32).collect();
    tensors.push(floats("m.global_scale", scale_shape, &scales));
    let Ok(weight) = read(&tensors) else { return assert!(!fits) };
    assert!(fits);
    let scaled = weight.to_f32_vec();
    for (mat, (scaled, plain)) in scaled.chunks(128).zip(plain.chunks(128)).enumerate() {
        let factor = 0.5 * (mat + 1) as f32;
        assert!(scaled.iter().zip(plain).all(|(s, p)| *s == factor * p));
    }
}

#[test]
fn second_scales_belong_to_nvfp4_and_are_not_forgotten() {
    let nvfp4 = QuantSpec::new(QuantMode::Nvfp4, 4, 16).unwrap();
    let mut other = quantized("m", &[4], affine(4, 32), &wave(256), 64);
    other.push(floats("m.global_scale", &[1], &[1.0]));
    assert_eq!(matrix_problems(&config(), &other), [WeightProblem::Extra { name: "m.global_scale".into() }]);
    let mut config = config();
    config["quantization"] = json!({"mode": "nvfp4", "m": {"mode": "nvfp4", "global_scale": true}});
    let without = quantized("m", &[4], nvfp4, &wave(256), 64);
    let missing = WeightProblem::Missing { name: "m.global_scale".into() };
    assert_eq!(matrix_problems(&config, &without), [missing]);
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
