//! The crate's error type.

use crate::DType;

/// Why an operation was refused. Every check happens before the first write.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor, weight or argument does not have the shape or type that the op needs.
    #[error("{op}: {what}: expected {want}, got {got}")]
    Precondition {
        /// The op, as its method is named.
        op: &'static str,
        /// The tensor or argument.
        what: &'static str,
        /// What the op needs.
        want: String,
        /// What it was given.
        got: String,
    },
    /// An index (token id, expert, sequence slot) points outside its table.
    #[error("{op}: {what} {index} is out of range: there are {len}")]
    IndexOutOfRange {
        /// The op, as its method is named.
        op: &'static str,
        /// What is indexed.
        what: &'static str,
        /// The index.
        index: usize,
        /// The number of entries.
        len: usize,
    },
    /// A quantisation format that MLX does not define.
    #[error("unsupported quantisation: mode {mode}, {bits} bits, group size {group_size}")]
    Format {
        /// The mode's name.
        mode: String,
        /// Bits per weight.
        bits: usize,
        /// Weights per group.
        group_size: usize,
    },
    /// A buffer's length does not fit its shape and type.
    #[error("{what}: the buffer has {n_bytes} bytes, but its shape needs {want_bytes} bytes of {dtype:?}")]
    BufferLength {
        /// Which buffer.
        what: &'static str,
        /// The element type.
        dtype: DType,
        /// The buffer's length in bytes.
        n_bytes: usize,
        /// The length that the shape needs, in bytes.
        want_bytes: usize,
    },
    /// The machine does not have this much free memory.
    #[error("{op}: not enough free memory for {n_bytes} bytes")]
    Memory {
        /// The op, as its method is named.
        op: &'static str,
        /// The size of the allocation.
        n_bytes: usize,
    },
    /// The backend has no implementation of the op for these arguments.
    #[error("{op} is not supported on the {backend} backend: {why}")]
    Unsupported {
        /// The op, as its method is named.
        op: &'static str,
        /// The backend's name.
        backend: &'static str,
        /// The reason.
        why: String,
    },
    /// The backend cannot run on this machine.
    #[error("the {backend} backend is not available: {why}")]
    Unavailable {
        /// The backend's name.
        backend: &'static str,
        /// What the user can do.
        why: String,
    },
    /// The device or its runtime failed while it computed.
    #[error("{op}: the {backend} backend failed: {why}")]
    Fault {
        /// The op, as its method is named.
        op: &'static str,
        /// The backend's name.
        backend: &'static str,
        /// What the runtime says.
        why: String,
    },
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Returns an error unless `ok`. `want` is a string or `format_args!`, which is formatted only for the error.
pub fn ensure(
    ok: bool,
    op: &'static str,
    what: &'static str,
    want: impl std::fmt::Display,
    got: impl std::fmt::Debug,
) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Precondition { op, what, want: want.to_string(), got: format!("{got:?}") })
}
