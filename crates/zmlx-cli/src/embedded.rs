//! The tiny GLM model that is built into the binary, and the tokens that the reference engine generated with it.

#[cfg(feature = "embedded-model")]
mod files;

use anyhow::Result;
use zmlx_models::{ChatTemplate, Checkpoint, Tokenizer};
#[cfg(feature = "proof")]
use zmlx_oracle::checkpoint as oracle;
#[cfg(feature = "proof")]
use zmlx_oracle::golden::Golden;

/// The opening of *Pride and Prejudice*, which the built-in model continues as the novel does.
pub(crate) const NOVEL: &str = "It is a truth universally acknowledged, that a single man in possession of a good \
     fortune, must be in want of a wife.\n\nHowever little known the feelings or views of such a man may be on his \
     first entering a neighbourhood, this truth is so well fixed in the mind";

/// True if the model is built in.
pub(crate) const IS_BUILT_IN: bool = cfg!(feature = "embedded-model");

#[cfg(feature = "embedded-model")]
pub(crate) use files::{chat_template, checkpoint, tokenizer};
#[cfg(all(feature = "embedded-model", feature = "proof"))]
pub(crate) use files::{golden, oracle_checkpoint};

#[cfg(not(feature = "embedded-model"))]
macro_rules! absent {
    ($($name:ident -> $of:ty),*) => {$(
        pub(crate) fn $name() -> Result<$of> {
            anyhow::bail!("this build has no built-in model")
        }
    )*};
}
#[cfg(not(feature = "embedded-model"))]
absent!(chat_template -> ChatTemplate, checkpoint -> Checkpoint, tokenizer -> Tokenizer);
#[cfg(all(not(feature = "embedded-model"), feature = "proof"))]
absent!(golden -> Golden, oracle_checkpoint -> oracle::Checkpoint);
