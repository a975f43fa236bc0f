//! Functions that mlx-lm compiles (`mx.compile`): MLX joins their elementwise ops, one launch for a chain of them.
//!
//! Only where ops run on a GPU. On its CPU device MLX would run a C++ compiler when the function first runs, for no use: that
//! device is there for tests, and op by op it gives the same bits.

use std::cell::RefCell;

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::transforms::compile::compile;

use super::f;
use crate::mlx::runtime::NAME;
use crate::{Activation, Error, NoauxTc, Result};

/// What is compiled, with the numbers that are constants in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    /// An activation of gate and up.
    Gated(Activation),
    /// The sigmoid router of logits and bias.
    NoauxTc(NoauxTc),
}

type Compiled = Box<dyn for<'a> FnMut(&'a [Array]) -> std::result::Result<Vec<Array>, Exception>>;

thread_local! {
    /// What this thread has compiled: a model has one or two of them.
    static COMPILED: RefCell<Vec<(Function, Compiled)>> = RefCell::default();
}

/// The function's results: `body`, compiled when it is first called with arguments of such types. Activations take
/// arguments of any shape then, as mlx-lm compiles them (`shapeless`); a router is traced anew for each shape.
pub(super) fn call<const M: usize, const N: usize>(
    op: &'static str,
    function: Function,
    args: [&Array; M],
    body: impl FnMut(&[Array]) -> std::result::Result<Vec<Array>, Exception> + 'static,
) -> Result<[Array; N]> {
    let args = args.map(Array::clone);
    let results = COMPILED.with_borrow_mut(|compiled| {
        let at = compiled.iter().position(|(known, _)| *known == function).unwrap_or_else(|| {
            let shapeless = matches!(function, Function::Gated(_));
            compiled.push((function, Box::new(compile(body, shapeless))));
            compiled.len() - 1
        });
        (compiled[at].1)(&args)
    });
    results.map_err(f(op))?.try_into().map_err(|results: Vec<Array>| Error::Fault {
        op,
        backend: NAME,
        why: format!("the compiled function gave {} results", results.len()),
    })
}
