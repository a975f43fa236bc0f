//! `zmlx serve`: answers requests over HTTP.

mod flags;
mod memory;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use zmlx_kernels::Backend;
use zmlx_models::engine::PrefixCacheOptions;
use zmlx_models::{ChatTemplate, Checkpoint, Engine, EngineOptions, Model, PoolOptions, Tokenizer};
use zmlx_serve::{SamplingDefaults, ServedModel, Server};

use crate::engine::{self, About, Job};
use crate::output::{Outcome, note};
use crate::ranks;
use crate::source::Source;
pub(crate) use flags::Args;

/// How long the server answers that another rank has failed, before it ends.
const FAREWELL: Duration = Duration::from_secs(4);
/// A context with fewer tokens is refused as too small to work with.
const FEWEST_TOKENS: usize = 2048;

/// Runs the server until it is asked to stop.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    args.refuse_foreign()?;
    let options = args.server_options()?;
    let source = Source::resolve(&args.model)?;
    // Small files are checked first, so that an error in them is reported before the weights are loaded.
    let checkpoint = source.checkpoint()?;
    let tokenizer = source.need_tokenizer()?;
    let template = template(&args, &source, &checkpoint)?;
    ranks::agree(&checkpoint, &format!("{:?}", (args.fusion, args.kv_format()?)))?;
    let kind = args.backend;
    if ranks::is_follower() {
        return engine::with_backend(kind, Follow { args, checkpoint });
    }
    let server = Server::bind(options)?;
    server.stop_at_signals(|code| {
        ranks::leave(code, Some("the server was stopped"));
        std::process::exit(code.into());
    })?;
    note(format_args!("Listening on http://{}", server.address()));
    if args.is_open_to_all() {
        tracing::warn!("everyone who reaches this machine can use the server: --api-key asks for a key");
    }
    let stop = server.stop_handle();
    ranks::before_failure(move |why| {
        stop.fail(why);
        std::thread::sleep(FAREWELL);
    });
    let id = model_id(&args, &source, &checkpoint);
    engine::with_backend(kind, Serve { args, source, checkpoint, tokenizer, template, server, id })
}

/// The chat template from the arguments, otherwise that of the checkpoint; `None` if there is none.
fn template(args: &Args, source: &Source, checkpoint: &Checkpoint) -> Result<Option<ChatTemplate>> {
    let own = match source.chat_template() {
        Ok(template) => Some(template),
        Err(error) if is_absent(&error) => None,
        // The template from the arguments replaces it.
        Err(_) if args.has_template() => None,
        Err(error) => return Err(error),
    };
    let Some(text) = args.template_text()? else { return Ok(own) };
    let made = match own {
        Some(own) => own.with_source(text),
        None => ChatTemplate::from_parts(checkpoint.name(), None, Some(text)),
    };
    Ok(Some(made.context("--chat-template")?))
}

fn is_absent(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(zmlx_models::Error::NoChatTemplate { .. }))
}

/// The name of the model: its id on the hub, or the name of its folder.
fn model_id(args: &Args, source: &Source, checkpoint: &Checkpoint) -> String {
    let given = args.model.named().map(std::path::PathBuf::as_path);
    let is_folder = given.is_some_and(std::path::Path::is_dir);
    match (source, given.and_then(|path| path.to_str())) {
        (Source::Dir(_), Some(id)) if !is_folder => id.split('@').next().unwrap_or(id).to_owned(),
        (Source::Dir(dir), _) => {
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.clone());
            dir.file_name()
                .map_or_else(|| checkpoint.name().to_owned(), |name| name.to_string_lossy().into_owned())
        }
        _ => checkpoint.name().to_owned(),
    }
}

struct Serve {
    args: Args,
    source: Source,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    server: Server,
    id: String,
}

impl Job for Serve {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let Self { args, source, checkpoint, tokenizer, template, server, id } = self;
        let (mut model, load_time) = engine::load(backend, &checkpoint)?;
        let tokenizer = Arc::new(tokenizer);
        let fusion = about.fusion(&model, args.fusion)?;
        let (n_tokens, max_kv_bytes) = room(&args, about, &model)?;
        ranks::follows(&mut model, &fusion)?;
        let options = EngineOptions {
            max_sequences: args.decode_concurrency,
            max_prompts: args.prompt_concurrency,
            context: args.max_kv_size,
            prefill_chunk: args.prefill_step_size,
            kv_format: args.kv_format()?,
            max_kv_bytes: Some(max_kv_bytes),
            prefix_cache: PrefixCacheOptions {
                max_entries: args.prompt_cache_size,
                max_bytes: args.prompt_cache_bytes.unwrap_or(u64::MAX),
                ..PrefixCacheOptions::default()
            },
            ..EngineOptions::new(fusion)
        };
        let mut engine = Engine::new(&model, Some(&tokenizer), options)?;
        let fewest = FEWEST_TOKENS.min(engine.context());
        if n_tokens < fewest {
            bail!(
                "the memory for keys and values, {max_kv_bytes} bytes, has room for {n_tokens} tokens, but {fewest} are \
                 needed: see --kv-cache-bytes"
            );
        }
        let sampling = args.sampling_defaults()?.or(generation_config(&source));
        let served = ServedModel {
            id,
            path: args.model.named().map(|path| path.display().to_string()),
            tokenizer: Arc::clone(&tokenizer),
            template,
            eos_token_ids: checkpoint.eos_token_ids().to_vec(),
            vocab_size: model.architecture().vocab_size,
            sampling,
        };
        note(format_args!(
            "{}: {} loaded in {:.1} s; context {} tokens; keys and values of {n_tokens} tokens fit at once",
            served.id,
            about.text,
            load_time.as_secs_f64(),
            engine.context()
        ));
        server.run(served, &mut engine)?;
        Ok(Outcome::Done)
    }
}

/// A rank that follows the one which answers.
struct Follow {
    args: Args,
    checkpoint: Checkpoint,
}

impl Job for Follow {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let (mut model, _) = engine::load(backend, &self.checkpoint)?;
        let fusion = about.fusion(&model, self.args.fusion)?;
        room(&self.args, about, &model)?;
        ranks::follows(&mut model, &fusion)?;
        Ok(Outcome::Done)
    }
}

/// The number of tokens whose keys and values fit into the memory, of several ranks into that of each, and their bytes here.
fn room<B: Backend>(args: &Args, about: &About, model: &Model<B>) -> Result<(usize, u64)> {
    let max_bytes = match args.kv_cache_bytes {
        Some(bytes) => bytes,
        None => memory::kv_budget(about.memory_bytes, model.weight_bytes())?,
    };
    let pool = model.pool(PoolOptions { max_bytes: None, format: args.kv_format()? })?;
    // A binary search: the size of a sequence grows with its length.
    let (mut fits, mut fits_not) = (0usize, 1usize << 32);
    while fits + 1 < fits_not {
        let middle = fits + (fits_not - fits) / 2;
        if pool.bytes_for(middle) <= max_bytes { fits = middle } else { fits_not = middle }
    }
    let least = usize::try_from(ranks::least(fits as u64)?).unwrap_or(usize::MAX);
    Ok((least, if least < fits { pool.bytes_for(least) } else { max_bytes }))
}

fn generation_config(source: &Source) -> SamplingDefaults {
    let Source::Dir(dir) = source else { return SamplingDefaults::default() };
    let text = std::fs::read_to_string(dir.join("generation_config.json")).unwrap_or_default();
    SamplingDefaults::of_generation_config(&text)
}

/// A time limit in seconds; 0 means no limit.
fn limit(seconds: f64) -> Option<Duration> {
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
}
