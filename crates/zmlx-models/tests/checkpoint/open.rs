//! Folders and shards.

use rstest::rstest;

use super::*;

#[rstest]
fn fixtures(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] model: &str) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(model);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!((checkpoint.name(), checkpoint.dir()), (model, Some(dir.as_path())));
    assert_eq!(checkpoint.eos_token_ids(), [0, 2]);
    assert_eq!(checkpoint.declared_dtype(), Some("bfloat16"));
    assert_eq!(checkpoint.architecture().vocab_size, 3072);
    let file = std::fs::metadata(dir.join("model.safetensors")).unwrap().len();
    let total: u64 = checkpoint.tensors().map(|t| t.n_bytes as u64).sum();
    assert_eq!(checkpoint.total_bytes(), total);
    assert!(total < file && total > file - 32_768, "{total} of {file}");
    let norm = checkpoint.tensors().find(|t| t.name == "model.norm.weight").unwrap();
    assert_eq!(
        (norm.dtype, norm.shape, norm.shard),
        (Dtype::BF16, &[checkpoint.architecture().hidden_size][..], "model.safetensors")
    );

    let hidden = checkpoint.architecture().hidden_size;
    let mut reader = checkpoint.reader();
    let embed = reader.matrix("model.embed_tokens", 3072, hidden);
    assert_eq!(embed.format(), WeightFormat::Quantized { spec: affine(4, 64), scale_dtype: DType::BF16 });
    assert!(reader.vector("model.norm.weight", hidden).to_f32_vec().iter().all(|v| v.is_finite()));
    let extra = problems(reader.finish());
    assert_eq!(extra.len(), checkpoint.tensors().len() - 4);
    assert!(extra.iter().all(|p| matches!(p, WeightProblem::Extra { .. })));
}

/// A safetensors file with this header and `n_data` bytes of data.
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

/// Cuts a valid shard, or changes one byte of its header, in every possible way. Each result either opens or is
/// refused.
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
    // The index is out of date. The headers decide.
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
fn a_complete_index_says_which_files_are_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, data: &[u8]| std::fs::write(dir.path().join(file), data).unwrap();
    let shards = || -> Result<Vec<String>, Error> { Ok(Checkpoint::open(dir.path())?.shards().to_vec()) };
    let index =
        |map: Value| write("model.safetensors.index.json", json!({"weight_map": map}).to_string().as_bytes());
    write("config.json", config().to_string().as_bytes());
    let (one, two) = ("model-00001-of-00002.safetensors", "weights/two.safetensors");
    std::fs::create_dir(dir.path().join("weights")).unwrap();
    write(one, &shard(&[zeros("a", Dtype::F32, &[1])]));
    write(two, &shard(&[zeros("b", Dtype::F32, &[2]), zeros("not.listed", Dtype::F32, &[2])]));
    write("model.safetensors", &shard(&[zeros("a", Dtype::F32, &[3]), zeros("old", Dtype::F32, &[1])]));
    let stray = [one.to_owned(), "model.safetensors".to_owned()];

    index(json!({"a": one, "b": two}));
    assert_eq!(shards().unwrap(), [one, two]);
    // A file that the index names must exist, be in the folder, and hold what the index says. Otherwise the index is
    // out of date.
    let outside = format!("../{}/{one}", dir.path().file_name().unwrap().to_str().unwrap());
    for map in [
        json!({"a": one, "c": two}),
        json!({"a": one, "b": "gone.safetensors"}),
        json!({"a": outside}),
        json!({"a": 5}),
        json!({}),
        json!([]),
    ] {
        index(map.clone());
        assert!(matches!(shards(), Err(Error::DuplicateTensor { .. })), "{map}");
    }
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(shards().unwrap(), stray[..1]);
}

#[test]
fn a_checkpoint_without_shards() {
    assert!(matches!(checkpoint_with(&config(), &[]), Err(Error::MissingFile { .. })));
    let empty = checkpoint(&[]);
    assert_eq!((empty.tensors().len(), empty.total_bytes()), (0, 0));
    empty.reader().finish().unwrap();
}
