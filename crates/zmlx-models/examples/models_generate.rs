//! Continues a prompt, token by token, on the CPU.
//!
//! `cargo run --package zmlx-models --example models_generate -- MODEL_FOLDER "Once upon a time"`

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use zmlx_models::kernels::{Fusion, cpu::CpuBackend};
use zmlx_models::{Checkpoint, Model, Request, SamplingParams, Tokenizer, stream};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    // Without arguments it uses the tiny model of this repository.
    let dir = args.next().map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/austen-glm4-moe-lite-4bit"),
        PathBuf::from,
    );
    let prompt = args.next().unwrap_or_else(|| "It is a truth universally acknowledged".to_owned());

    let checkpoint = Checkpoint::open(&dir)?;
    let tokenizer = Tokenizer::open(&dir)?;
    let model = Model::load(CpuBackend::new(None)?, &checkpoint, &mut |_, _| ())?;
    let request = Request::new(tokenizer.encode(&prompt)?, 40)
        .with_sampling(SamplingParams { temperature: 0.7, seed: 1, ..SamplingParams::default() })
        .with_eos(checkpoint.eos_token_ids());

    print!("{prompt}");
    for token in stream(&model, Some(&tokenizer), Fusion::FUSED, request)? {
        print!("{}", token?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
