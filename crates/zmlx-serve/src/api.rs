//! The interfaces: the fields that they read and write, and their translation to the server's own types.

pub(crate) mod anthropic;
pub(crate) mod fields;
pub(crate) mod openai;
pub(crate) mod responses;
