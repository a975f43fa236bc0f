//! The prompts of each suite, the lengths of their continuations, and the paths to compare.

use std::path::Path;

use anyhow::Result;
use zmlx_kernels::{Fusion, Switch};
use zmlx_models::Checkpoint;
use zmlx_oracle::golden::{GoldenPrompt, Greedy, Rounding};

use crate::embedded;
use crate::prompts;
use crate::source::Source;

/// The values of `--suite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Suite {
    /// Every prompt once.
    Standard,
    /// Five prompts, each with three lengths, with and without fused shared experts.
    Stress,
}

/// A prompt and the length of its continuation.
#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) name: String,
    pub(super) tokens: Vec<u32>,
    pub(super) n_tokens: usize,
    /// The recorded tokens of a prompt of the built-in model.
    pub(super) recorded: Option<Recorded>,
}

/// The tokens of the reference engine, by the type in which it computed.
#[derive(Debug)]
pub(super) struct Recorded {
    f32: Greedy,
    bf16: Greedy,
}

impl Recorded {
    pub(super) fn of(&self, rounding: Rounding) -> &Greedy {
        match rounding {
            Rounding::F32 => &self.f32,
            Rounding::Checkpoint => &self.bf16,
        }
    }
}

impl Suite {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Stress => "stress",
        }
    }

    pub(super) const fn default_max_tokens(self) -> usize {
        match self {
            Self::Standard => 128,
            Self::Stress => 256,
        }
    }

    /// The paths that must agree with the baselines.
    pub(super) fn fused_paths(self) -> &'static [(&'static str, Fusion)] {
        const ALL: (&str, Fusion) = ("fused", Fusion::FUSED);
        const UNSHARED: (&str, Fusion) =
            ("fused,-dense_swiglu", Fusion { dense_swiglu: Switch::Off, ..Fusion::FUSED });
        match self {
            Self::Standard => &[ALL],
            Self::Stress => &[ALL, UNSHARED],
        }
    }

    /// The prompts from the file, or the built-in ones, each with all lengths of the suite.
    pub(super) fn configurations(
        self,
        source: &Source,
        checkpoint: &Checkpoint,
        file: Option<&Path>,
        max_tokens: usize,
    ) -> Result<Vec<Configuration>> {
        let vocab = checkpoint.architecture().vocab_size;
        let prompts = match file {
            Some(file) => plain(prompts::read_file(file, source, vocab)?),
            None if self == Self::Standard && *source == Source::Embedded => recorded()?,
            None => plain(prompts::built_in(source, vocab)?),
        };
        if self == Self::Standard {
            let whole = |p: Prompt| Configuration {
                name: p.name,
                tokens: p.tokens,
                n_tokens: max_tokens,
                recorded: p.recorded,
            };
            return Ok(prompts.into_iter().map(whole).collect());
        }
        let mut lengths = [4, 2, 1].map(|part| max_tokens.div_ceil(part)).to_vec();
        lengths.dedup();
        let in_lengths = |prompt: &Prompt| {
            let of = |&n_tokens: &usize| Configuration {
                name: format!("{}, {n_tokens} tokens", prompt.name),
                tokens: prompt.tokens.clone(),
                n_tokens,
                recorded: None,
            };
            lengths.iter().map(of).collect::<Vec<_>>()
        };
        Ok(prompts.iter().flat_map(in_lengths).collect())
    }
}

struct Prompt {
    name: String,
    tokens: Vec<u32>,
    recorded: Option<Recorded>,
}

fn plain(prompts: Vec<prompts::Prompt>) -> Vec<Prompt> {
    let prompt = |p: prompts::Prompt| Prompt { name: p.name, tokens: p.tokens, recorded: None };
    prompts.into_iter().map(prompt).collect()
}

fn recorded() -> Result<Vec<Prompt>> {
    let prompt = |p: GoldenPrompt| Prompt {
        name: p.name,
        tokens: p.prompt_tokens,
        recorded: Some(Recorded { f32: p.truth_f32, bf16: p.bf16 }),
    };
    Ok(embedded::golden()?.prompts.into_iter().map(prompt).collect())
}
