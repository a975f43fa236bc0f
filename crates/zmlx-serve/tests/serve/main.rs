//! The server from the view of its clients. Every test starts one on a free port of this machine.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod anthropic;
mod chat;
mod completions;
mod hostile;
mod limits;
mod responses;
mod small;
mod structured;
mod support;
mod tools;
