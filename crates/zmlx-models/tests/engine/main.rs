//! The engine: many requests at once give what each gives alone, and nothing of one reaches another.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod faults;
mod memory;
mod prefixes;
mod requests;
mod states;
mod support;
mod together;
