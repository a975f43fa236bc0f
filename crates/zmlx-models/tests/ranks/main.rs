//! Models that several ranks share, each on a CPU backend of its own in a thread of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod batch;
mod group;
mod pipeline;
mod tensor;
