//! `zmlx logits`: writes the logits of every position of a token sequence to a safetensors file.

use std::path::PathBuf;

use anyhow::Result;
use zmlx_kernels::Backend;
use zmlx_models::{Checkpoint, Error, Input, Logits as Wanted, PREFILL_CHUNK, PoolOptions};

use crate::args::{BackendArgs, FusionArgs, ModelArgs, positive};
use crate::engine::{self, About, Job};
use crate::interrupt::{self, Interrupted};
use crate::output::{Outcome, check_output, write_file};
use crate::progress::Progress;
use crate::ranks;
use crate::source::Source;

/// Arguments of `zmlx logits`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The token ids.
    #[arg(long, value_name = "ID,…", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// The file to write. It contains one tensor: `logits`, f32 [n_tokens, vocab].
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
    /// Compute N tokens at a time. 1 computes as decoding does.
    #[arg(long, value_name = "N", default_value_t = PREFILL_CHUNK, value_parser = positive())]
    chunk: usize,
    #[command(flatten)]
    fusion: FusionArgs,
    #[command(flatten)]
    backend: BackendArgs,
}

/// Computes the logits and writes the file.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let source = Source::resolve(&args.model)?;
    check_output(&args.out, args.force, &source.files())?;
    let checkpoint = source.checkpoint()?;
    // All tokens are checked before the first is computed, because a long sequence takes minutes.
    let (vocab, limit) =
        (checkpoint.architecture().vocab_size, checkpoint.architecture().max_position_embeddings);
    if let Some(&token) = args.tokens.iter().find(|&&t| t as usize >= vocab) {
        return Err(Error::TokenOutOfRange { token, vocab }.into());
    }
    if args.tokens.len() > limit {
        return Err(Error::ContextLength { n_tokens: args.tokens.len(), limit }.into());
    }
    ranks::agree(&checkpoint, &format!("{:?} {} {:?}", args.tokens, args.chunk, args.fusion))?;
    interrupt::install()?;
    let Args { tokens, out, chunk, fusion, .. } = args;
    let job = Logits { checkpoint, tokens, out, chunk, fusion };
    engine::with_backend(args.backend, job)
}

struct Logits {
    checkpoint: Checkpoint,
    tokens: Vec<u32>,
    out: PathBuf,
    chunk: usize,
    fusion: FusionArgs,
}

impl Job for Logits {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let (mut model, _) = engine::load(backend, &self.checkpoint)?;
        let fusion = about.fusion(&model, self.fusion)?;
        if ranks::follows(&mut model, &fusion)? {
            return Ok(Outcome::Done);
        }
        let mut pool = model.pool(PoolOptions::default())?;
        let slot = pool.allocate()?;
        let mut progress = Progress::new("Tokens");
        let busy = interrupt::begin();
        let (mut logits, mut bytes, mut n_done) = (Vec::new(), Vec::new(), 0);
        write_file(&self.out, |out| {
            out.write_all(&header(self.tokens.len(), model.architecture().vocab_size)?)?;
            // Written chunk by chunk: the logits of a long sequence may not fit into memory.
            for tokens in self.tokens.chunks(self.chunk) {
                if busy.is_asked() {
                    return Err(Interrupted.into());
                }
                let input = Input { slot, tokens, logits: Wanted::All };
                let y = model.forward(&mut pool, &[input], &fusion)?;
                model.backend().read(&y, &mut logits)?;
                bytes.clear();
                bytes.extend(logits.iter().flat_map(|x| x.to_le_bytes()));
                out.write_all(&bytes)?;
                n_done += tokens.len();
                progress.update(n_done, self.tokens.len());
            }
            Ok(())
        })?;
        Ok(Outcome::Done)
    }
}

/// The header of a safetensors file with `logits` as its only tensor.
fn header(n_tokens: usize, vocab: usize) -> Result<Vec<u8>> {
    let n_bytes = n_tokens as u64 * vocab as u64 * 4;
    let tensors = serde_json::json!({
        "logits": { "dtype": "F32", "shape": [n_tokens, vocab], "data_offsets": [0, n_bytes] }
    });
    let mut json = serde_json::to_vec(&tensors)?;
    // The data must begin at a multiple of 8 bytes.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}
