//! Runs a model in the reference implementation and shows the most probable next token at every position.
//!
//! `cargo run --package zmlx-oracle --example oracle_logits -- MODEL_FOLDER 5,6,7`

use std::error::Error;
use std::path::PathBuf;

use zmlx_oracle::model::Model;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    // Without arguments it uses the tiny model of this repository.
    let dir = args.next().map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/austen-qwen3-moe-4bit"),
        PathBuf::from,
    );
    let tokens = args.next().unwrap_or_else(|| "5,6,7".to_owned());
    let tokens: Vec<u32> = tokens.split(',').map(str::parse).collect::<Result<_, _>>()?;

    let logits = Model::load(dir)?.logits(&tokens)?.data;
    let n_vocab = logits.len() / tokens.len();
    for (token, row) in tokens.iter().zip(logits.chunks(n_vocab)) {
        let best = (0..n_vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
        println!("after token {token}: token {best}, logit {:.3}", row[best]);
    }
    Ok(())
}
