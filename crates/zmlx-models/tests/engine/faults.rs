//! A device that fails.

use std::cell::Cell;

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Error as Fault, Hooked, Hooks, Result};
use zmlx_models::{Engine, Error, Request};

use crate::support::{GLM, QWEN, Seen, alone, caching, load_on, plain, prompt};

/// Makes ops fail.
#[derive(Debug, Default)]
struct Broken {
    /// How many more ops succeed; `None` if all do.
    n_left: Cell<Option<usize>>,
    /// Whether it continues to fail.
    stays: Cell<bool>,
    /// Whether what was computed for the caches turns out to have failed.
    fails_late: Cell<bool>,
}

impl Hooks<CpuBackend> for Broken {
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        match self.n_left.get() {
            Some(0) => {
                if !self.stays.get() {
                    self.n_left.set(None);
                }
                return Err(Fault::Fault { op, backend: "broken", why: "on purpose".to_owned() });
            }
            left => self.n_left.set(left.map(|n| n - 1)),
        }
        run()
    }

    fn eval_caches(&self, backend: &CpuBackend, caches: &[<CpuBackend as Backend>::Cache]) -> Result<()> {
        if self.fails_late.get() {
            return Err(Fault::Fault { op: "eval_caches", backend: "broken", why: "on purpose".to_owned() });
        }
        backend.eval_caches(caches)
    }
}

/// One op fails once, in any part of a step. No request is affected.
#[rstest]
fn a_step_that_fails_is_tried_again_one_by_one(
    #[values(GLM, QWEN)] name: &str,
    #[values(0, 1, 17, 40, 60)] n_ops: usize,
) {
    let model = load_on(Hooked::new(CpuBackend::new(Some(1)).unwrap(), Broken::default()), name);
    let request = |which: &str| Request::new(prompt(name, which), 12);
    let prompts = ["novel", "unicode", "mid_sentence"];
    let want: Vec<_> = prompts.iter().map(|p| alone(&model, request(p))).collect();
    let mut engine = Engine::new(&model, None, caching()).unwrap();
    let ids: Vec<_> = prompts.iter().map(|p| engine.submit(request(p)).unwrap()).collect();
    let mut seen = Seen::default();
    for _ in 0..4 {
        model.backend().hooks().n_left.set(Some(n_ops));
        seen.step(&mut engine);
    }
    model.backend().hooks().n_left.set(None);
    seen.run(&mut engine);
    for (id, want) in ids.iter().zip(want) {
        want.assert_same(&seen.ids(*id));
    }
    assert_eq!(engine.stats().n_failed, 0);
}

#[test]
fn a_device_that_is_gone_ends_every_request_and_no_more() {
    let model = load_on(Hooked::new(CpuBackend::new(Some(1)).unwrap(), Broken::default()), QWEN);
    let want = alone(&model, Request::new(prompt(QWEN, "novel"), 12));
    let mut engine = Engine::new(&model, None, plain()).unwrap();
    let mut seen = Seen::default();
    let ids: Vec<_> =
        (0..3).map(|_| engine.submit(Request::new(prompt(QWEN, "novel"), 12)).unwrap()).collect();
    seen.step(&mut engine);
    model.backend().hooks().stays.set(true);
    model.backend().hooks().n_left.set(Some(5));
    seen.run(&mut engine);
    for id in ids {
        let error = &seen.failed[&id];
        assert!(matches!(error, Error::Kernels(Fault::Fault { .. })), "{error}");
        want.assert_beginning(&seen.ids(id));
    }
    assert_eq!(engine.stats().kv_bytes, 0);
    // When the device works again, the engine does too.
    model.backend().hooks().n_left.set(None);
    let id = engine.submit(Request::new(prompt(QWEN, "novel"), 12)).unwrap();
    seen.run(&mut engine);
    want.assert_same(&seen.ids(id));
}

/// A lazy device finds out that a part of a prompt failed when the caches already count its tokens.
#[test]
fn a_prompt_that_fails_late_ends_with_the_error() {
    let model = load_on(Hooked::new(CpuBackend::new(Some(1)).unwrap(), Broken::default()), QWEN);
    let mut engine = Engine::new(&model, None, plain()).unwrap();
    let mut seen = Seen::default();
    let decoding = engine.submit(Request::new(prompt(QWEN, "novel"), 100)).unwrap();
    while !seen.tokens.contains_key(&decoding) {
        seen.step(&mut engine);
    }
    model.backend().hooks().fails_late.set(true);
    // Beside a sequence that decodes, a step takes only a part of a prompt.
    let late = engine.submit(Request::new(prompt(QWEN, "novel").repeat(8), 12)).unwrap();
    seen.run(&mut engine);
    let error = &seen.failed[&late];
    assert!(matches!(error, Error::Kernels(Fault::Fault { op: "eval_caches", .. })), "{error}");
    assert_eq!(engine.stats().kv_bytes, 0);
}
