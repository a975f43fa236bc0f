//! One module per subcommand.

pub(crate) mod bench;
pub(crate) mod capsule;
pub(crate) mod chat;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod golden;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod validate;
