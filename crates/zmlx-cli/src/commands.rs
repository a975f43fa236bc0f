//! One module per subcommand.

#[cfg(feature = "proof")]
pub(crate) mod bench;
#[cfg(feature = "proof")]
pub(crate) mod capsule;
pub(crate) mod chat;
pub(crate) mod convert;
pub(crate) mod doctor;
pub(crate) mod generate;
#[cfg(feature = "proof")]
pub(crate) mod golden;
pub(crate) mod inspect;
pub(crate) mod launch;
pub(crate) mod logits;
pub(crate) mod models;
pub(crate) mod perplexity;
#[cfg(feature = "hub")]
pub(crate) mod pull;
#[cfg(feature = "serve")]
pub(crate) mod serve;
#[cfg(feature = "shell")]
pub(crate) mod shell;
#[cfg(feature = "proof")]
pub(crate) mod validate;
