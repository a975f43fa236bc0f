//! Checks of arguments that backends share: what is refused, and how the error names it.

pub use crate::backend::check_spans;
pub use crate::error::ensure;
