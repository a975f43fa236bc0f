//! The interfaces: what they send and expect, and the server's own terms between.

pub(crate) mod anthropic;
pub(crate) mod fields;
pub(crate) mod openai;
pub(crate) mod responses;
