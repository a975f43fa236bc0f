//! `zmlx convert`: writes a model in MLX's format. The source is in Hugging Face's layout, or already in MLX's format.

mod report;

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use zmlx_kernels::{DType, QuantMode};
use zmlx_models::{Action, Checkpoint, ConvertOptions, Error, Quantize, Recipe, convert};

use crate::args::{BackendArgs, FusionArgs, ModelArgs, heading};
use crate::interrupt;
use crate::output::{Outcome, note, print, print_json};
use crate::progress::Progress;
use crate::source::Source;

/// Arguments of `zmlx convert`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tensors and config are those of mlx_lm.convert, byte for byte. To continue an interrupted \
                  conversion, run the same command again."
)]
pub(crate) struct Args {
    /// The model: a folder with config.json and *.safetensors, or the name of a model on the Hugging Face hub (org/name or
    /// org/name@revision), which is downloaded unless the cache has it.
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The folder to write: new, empty, or one with an unfinished conversion of the same kind.
    #[arg(short, long, value_name = "DIR", visible_alias = "mlx-path")]
    out: PathBuf,
    /// A branch, a tag or a commit of the model on the hub.
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// Do not download anything: use the model in the cache. HF_HUB_OFFLINE=1 has the same effect.
    #[arg(long)]
    offline: bool,
    /// Quantise the matrices. Routers get 8 bits or stay floats, depending on the family of the model. A matrix stays
    /// as it is if its row length is not a multiple of the group size. Norms and biases are never quantised.
    #[arg(short, long, help_heading = FORMATS, conflicts_with = "dequantize")]
    quantize: bool,
    /// Bits per weight: 2, 3, 4, 5, 6 or 8. The default is 4, or 8 with mode mxfp8.
    #[arg(long, value_name = "BITS", visible_alias = "q-bits", help_heading = FORMATS, requires = "quantize")]
    bits: Option<usize>,
    /// Weights that share a scale: 32, 64 or 128. The default is 64; with modes mxfp4 and mxfp8 it is 32, with nvfp4
    /// 16.
    #[arg(long, value_name = "N", visible_alias = "q-group-size", help_heading = FORMATS, requires = "quantize")]
    group_size: Option<usize>,
    /// How codes represent weights. affine has a scale and a bias for each group; the other modes store floats of few
    /// bits. The default is affine.
    #[arg(
        long,
        value_name = "MODE",
        visible_alias = "q-mode",
        help_heading = FORMATS,
        requires = "quantize",
        value_parser = PossibleValuesParser::new(QuantMode::ALL.map(QuantMode::name))
    )]
    mode: Option<String>,
    /// Use more bits for the weights that are most sensitive to rounding (values and down projections of some layers,
    /// and the head), and fewer for the others. --bits then applies to none of them.
    #[arg(
        long,
        value_name = "RECIPE",
        visible_alias = "quant-predicate",
        help_heading = FORMATS,
        requires = "quantize",
        value_parser = PossibleValuesParser::new(Recipe::ALL.map(Recipe::name))
    )]
    recipe: Option<String>,
    /// Convert quantised matrices to floats.
    #[arg(short, long, help_heading = FORMATS)]
    dequantize: bool,
    /// The type of all tensors that are not quantised, and of scales. The default is the type in config.json
    /// (torch_dtype), otherwise that of the files. The correction biases of routers keep their type.
    #[arg(long, value_enum, value_name = "TYPE", help_heading = FORMATS)]
    dtype: Option<FloatType>,
    /// Compare the result with the source: print the relative error (L2 norm) of every quantised matrix. With --prompt,
    /// also print how far the predictions of the two models differ.
    #[arg(long, help_heading = heading::OUTPUT)]
    report: bool,
    /// A text for --report. Both models predict each of its tokens, at most 512, and the Kullback-Leibler divergence is
    /// computed. The models are loaded one after the other.
    #[arg(long, value_name = "TEXT", help_heading = heading::OUTPUT, requires = "report")]
    prompt: Option<String>,
    /// Print one JSON object.
    #[arg(long, help_heading = heading::OUTPUT)]
    json: bool,
    /// Print only results and errors: no progress bars or warnings.
    // Takes the place of the general option, because its short form -q means --quantize here.
    #[arg(long, id = "quiet", conflicts_with = "verbose", help_heading = "Messages", display_order = 1001)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    fusion: FusionArgs,
    #[command(flatten)]
    backend: BackendArgs,
}

/// The heading of the options that select the format of the weights.
const FORMATS: &str = "Formats";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FloatType {
    /// bfloat16.
    #[value(name = "bf16", alias = "bfloat16")]
    Bf16,
    /// IEEE half precision.
    #[value(name = "f16", alias = "float16")]
    F16,
    /// 32 bits.
    #[value(name = "f32", alias = "float32")]
    F32,
}

impl Args {
    fn options(&self) -> ConvertOptions {
        let quantize = Quantize {
            mode: self.mode.as_deref().and_then(QuantMode::from_name).unwrap_or(QuantMode::Affine),
            bits: self.bits,
            group_size: self.group_size,
            recipe: self.recipe.as_deref().and_then(Recipe::from_name),
        };
        let action = match (self.quantize, self.dequantize) {
            (true, _) => Action::Quantize(quantize),
            (_, true) => Action::Dequantize,
            _ => Action::Keep,
        };
        let dtype = self.dtype.map(|dtype| match dtype {
            FloatType::Bf16 => DType::BF16,
            FloatType::F16 => DType::F16,
            FloatType::F32 => DType::F32,
        });
        ConvertOptions { dtype, n_threads: self.backend.cpu.threads, ..ConvertOptions::new(action) }
    }
}

/// Converts the model and prints a report.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let source = Source::resolve(&ModelArgs::new(args.source.clone(), args.revision.clone(), args.offline))?;
    let checkpoint = source.checkpoint()?;
    let tokens = match &args.prompt {
        Some(prompt) => report::prompt_tokens(&source, prompt)?,
        None => Vec::new(),
    };
    interrupt::install()?;
    let mut bar = Progress::bytes("Converting");
    let busy = interrupt::begin();
    let converted = convert(&checkpoint, &args.out, &args.options(), &mut |done, of| {
        let as_size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        bar.update(as_size(done), as_size(of));
        if busy.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(busy);
    let converted = match converted {
        Err(Error::Stopped) => {
            note(format_args!("{}: unfinished; run the same command again to continue", args.out.display()));
            return Ok(Outcome::Interrupted);
        }
        converted => converted?,
    };
    // The result is read like any other model.
    let result = Checkpoint::open(&args.out)?;
    let mut report = report::Report::new(&args.out, &result, &converted);
    if args.report {
        report.compare(&checkpoint, &result)?;
        if !tokens.is_empty() {
            report.predict([&checkpoint, &result], &tokens, (args.fusion, args.backend))?;
        }
    }
    if args.json {
        print_json(&report)?
    } else {
        print(&report.text())?
    }
    Ok(Outcome::Done)
}
