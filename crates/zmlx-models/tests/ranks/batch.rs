//! Several requests at once, whose tokens rank 0 has not read yet when the others compute what follows them.

use rstest::rstest;
use zmlx_kernels::Fusion;
use zmlx_models::{Engine, EngineOptions, Event, Request};
use zmlx_oracle::golden::{Golden, Outcome, check_greedy};

use crate::group::{GLM, MARGIN_BOUND, Parallel, QWEN, checkpoint, fixtures, led};

/// Requests end at different steps, and one joins meanwhile: so the sequences of a step take rows of the logits before in every
/// way.
#[rstest]
#[case(QWEN, 4, Parallel::Tensor)]
#[case(GLM, 2, Parallel::Tensor)]
#[case(QWEN, 3, Parallel::Pipeline)]
fn followers_know_the_rows(#[case] name: &str, #[case] n_ranks: usize, #[case] parallel: Parallel) {
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let (_, texts) = led(&checkpoint(&format!("models/{name}")), n_ranks, parallel, Fusion::FUSED, |model| {
        let mut engine = Engine::new(model, None, EngineOptions::new(Fusion::FUSED)).unwrap();
        let submit = |engine: &mut Engine<'_, _>, i: usize, n: usize| {
            let request = Request::new(golden.prompts[i].prompt_tokens.clone(), n);
            (engine.submit(request).unwrap(), i, Vec::new())
        };
        let mut texts: Vec<_> =
            [(0, 6), (1, 40), (2, 22), (3, 30)].map(|(i, n)| submit(&mut engine, i, n)).into_iter().collect();
        let mut events = Vec::new();
        for step in 0.. {
            if step == 12 {
                texts.push(submit(&mut engine, 4, 20));
            }
            engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Token { id, token } => {
                        texts.iter_mut().find(|text| text.0 == id).unwrap().2.push(token.token);
                    }
                    Event::Failed { error, .. } => panic!("{error}"),
                    _ => {}
                }
            }
            if engine.is_idle() {
                break;
            }
        }
        texts.into_iter().map(|(_, i, tokens)| (i, tokens)).collect::<Vec<_>>()
    });
    for ((i, tokens), n) in texts.into_iter().zip([6, 40, 22, 30, 20]) {
        assert_eq!(tokens.len(), n);
        let prompt = &golden.prompts[i];
        let mut truth = prompt.truth_f32.clone();
        truth.tokens.truncate(n);
        let verdict = check_greedy(&truth, &tokens, MARGIN_BOUND);
        assert_ne!(verdict.outcome, Outcome::Mismatch, "{name} {n_ranks} {}: {verdict:?}", prompt.name);
    }
}
