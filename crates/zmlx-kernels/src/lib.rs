//! Quantised formats, the [`Backend`] trait and its kernels.
