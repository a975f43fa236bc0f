//! The engine: many requests at once give the results that each gives alone, and no request affects another.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod ahead;
mod faults;
mod memory;
mod prefixes;
mod requests;
mod scenarios;
mod states;
mod support;
mod together;
