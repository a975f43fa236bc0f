//! The tiny GLM model that is built into the binary, with its recording by the reference engine.

#[cfg(feature = "embedded-model")]
mod files;

use anyhow::Result;
use zmlx_models::{ChatTemplate, Checkpoint, Tokenizer};
use zmlx_oracle::checkpoint as oracle;
use zmlx_oracle::golden::Golden;

/// True if this build has the model.
pub(crate) const IS_BUILT_IN: bool = cfg!(feature = "embedded-model");

#[cfg(feature = "embedded-model")]
pub(crate) use files::{chat_template, checkpoint, golden, oracle_checkpoint, tokenizer, weights};

#[cfg(not(feature = "embedded-model"))]
macro_rules! absent {
    ($($name:ident -> $of:ty),*) => {$(
        pub(crate) fn $name() -> Result<$of> {
            anyhow::bail!("this build has no model built in")
        }
    )*};
}
#[cfg(not(feature = "embedded-model"))]
absent!(
    chat_template -> ChatTemplate,
    checkpoint -> Checkpoint,
    golden -> Golden,
    oracle_checkpoint -> oracle::Checkpoint,
    tokenizer -> Tokenizer,
    weights -> &'static [u8]
);
