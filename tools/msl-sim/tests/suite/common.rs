//! Runs a kernel in both modes and in every order, and compares the results.

use std::path::PathBuf;

use msl_sim::{Error, Library, Mode, Msl, Order};

/// Both modes.
pub(crate) const MODES: [Mode; 2] = [Mode::Plain, Mode::Detect];
/// Orders which must not change the result of a correct kernel.
pub(crate) const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];

/// Builds a file of `tests/kernels`.
pub(crate) fn library(file: &str, mode: Mode) -> Result<Library, Error> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    Msl::file(folder.join(file))?.build(mode)
}

/// Runs `dispatch` in both modes and all orders, checks that the results are equal, and returns the result.
pub(crate) fn everywhere<T: PartialEq + std::fmt::Debug>(
    file: &str,
    dispatch: impl Fn(&Library, Order) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut first = None;
    for mode in MODES {
        let library = library(file, mode)?;
        for order in ORDERS {
            let result = dispatch(&library, order)?;
            match &first {
                None => first = Some(result),
                Some(first) => assert_eq!(&result, first, "{mode:?} {order:?}"),
            }
        }
    }
    Ok(first.expect("there are modes and orders"))
}

/// The bits of the values, so that NaN values can be compared.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
