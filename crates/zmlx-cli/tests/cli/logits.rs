//! `zmlx logits`.

use safetensors::{Dtype, SafeTensors};

use crate::*;

#[test]
fn the_file_holds_the_logits_of_every_position() {
    for name in [GLM, QWEN] {
        // The command needs no tokenizer.
        let dir = copy_without(name, &["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]);
        let out = dir.path().join("logits.safetensors");
        let golden = golden(name);
        let prompt = golden.prompt("novel").unwrap();
        let tokens: Vec<u32> = prompt.prompt_tokens.iter().chain(&prompt.truth_f32.tokens).copied().collect();
        let (path, ids) = (dir.path().to_str().unwrap(), join(&tokens));
        let run = zmlx(&["logits", "--model", path, "--tokens", &ids, "--out", out.to_str().unwrap()]).ok();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));

        let bytes = std::fs::read(&out).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.names(), ["logits"]);
        let logits = file.tensor("logits").unwrap();
        assert_eq!((logits.dtype(), logits.shape()), (Dtype::F32, &[tokens.len(), 3072][..]));
        let values: Vec<f32> = logits.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let n_prompt = prompt.prompt_tokens.len();
        for (i, &token) in prompt.truth_f32.tokens.iter().enumerate() {
            let row = &values[(n_prompt - 1 + i) * 3072..][..3072];
            assert_eq!(zmlx_oracle::compare::argmax(row), Some(token as usize), "{name} {i}");
        }
    }
}

#[test]
fn chunks_make_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..700).map(|i| i * 7 % 3072).collect();
    let logits = |n: usize, chunk: &str| {
        let out = dir.path().join(format!("{n}-{chunk}"));
        let (model, ids) = (model(GLM), join(&tokens[..n]));
        let out_path = out.to_str().unwrap();
        zmlx(&["logits", "--model", &model, "--tokens", &ids, "--out", out_path, "--chunk", chunk]).ok();
        let bytes = std::fs::read(out).unwrap();
        let data = SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec();
        data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<f32>>()
    };
    let (long, short) = (logits(700, "512"), logits(512, "512"));
    let difference = zmlx_oracle::compare::rel_rms(&long[..short.len()], &short);
    assert!(difference <= 1e-6, "{difference}: the same tokens, whatever follows");
    // Token by token, as in decoding: other kernels compute, which round the activations in the same way. A router may
    // choose another expert at single positions, which changes the logits there by a tenth.
    let (together, single) = (logits(60, "512"), logits(60, "1"));
    let difference = zmlx_oracle::compare::rel_rms(&single, &together);
    assert!(difference <= 2e-2, "{difference}");
}

#[test]
fn a_failure_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.safetensors");
    let (model, path) = (model(GLM), out.to_str().unwrap());
    let run =
        |tokens: &str, out: &str| zmlx(&["logits", "--model", &model, "--tokens", tokens, "--out", out]);
    run("1,4000", path).refused(&["token 4000"]);
    run(&join(&[1; 2049]), path).refused(&["2049"]);
    run("", path).refused(&["--tokens"]);
    run("1", dir.path().join("no/such/x").to_str().unwrap()).refused(&["cannot be written"]);
    run("1", dir.path().to_str().unwrap()).refused(&["not a regular file"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
