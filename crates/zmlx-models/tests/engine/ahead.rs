//! A device that chooses the tokens of a batch, and computes the next step while the host reads them.

use rstest::rstest;

use crate::scenarios::{self, Watched};
use crate::support::{GLM, QWEN, load_on};

#[rstest]
fn requests_come_and_go(#[values(GLM, QWEN)] name: &str, #[values(0.0, 0.8)] temperature: f32) {
    scenarios::requests_come_and_go(&load_on(Watched::cpu(), name), temperature);
}

#[test]
fn the_host_reads_last() {
    scenarios::the_host_reads_last(&load_on(Watched::cpu(), QWEN), "");
}

#[rstest]
fn a_step_ahead_that_fails(#[values(GLM, QWEN)] name: &str) {
    scenarios::a_step_ahead_that_fails(&load_on(Watched::cpu(), name));
}

#[rstest]
fn who_gives_way_loses_no_token(#[values(0.0, 0.8)] temperature: f32) {
    scenarios::who_gives_way_loses_no_token(&load_on(Watched::cpu(), QWEN), temperature);
}
