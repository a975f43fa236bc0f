//! The one table of a backend's ops. From it come the methods of [`Backend`](crate::Backend), what
//! [`Hooked`](crate::Hooked) does with each, the methods of [`Hooks`](crate::Hooks), and [`Op`].
//!
//! An entry of `plain.rs` or `fused.rs` reads
//!
//! ```text
//! /// The op's contract: what rustdoc shows at its method.
//! #[op(QMM_SWIGLU, Activation, Some(DenseSwiglu))]
//! fn qmm_swiglu(x: &$B::Tensor, weights: GateUp<'_, $B::Weight>) -> Tensor;
//! ```
//!
//! The attribute gives the constant of [`Op`], the [`Stage`] and, for a fused op, the [`FusionPart`] that switches it,
//! or `None` if the op is always called. The signature leaves out `&self`. Its result is `Tensor`, `Indices`,
//! `(Tensor, Tensor)` or `(Indices, Tensor)`, in a [`Result`](crate::Result). `$B` stands for the backend.
//!
//! A new op needs an entry here and a method in each backend that computes it. A fused one also needs a composition of
//! its name in [`stock`](crate::stock). A new switch needs a line in `fusion.rs`.

mod fused;
mod plain;

use crate::FusionPart;
pub(crate) use fused::fused_ops;
pub(crate) use plain::plain_ops;

/// The type of an op's result.
macro_rules! output {
    ($B:ident, ($first:ident, $second:ident)) => {
        ($B::$first, $B::$second)
    };
    ($B:ident, $one:ident) => {
        $B::$one
    };
}
pub(crate) use output;

/// An op of [`Backend`](crate::Backend), as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// The name of its method.
    pub name: &'static str,
    /// Its purpose in a layer.
    pub stage: Stage,
    /// Which part of a [`Fusion`](crate::Fusion) chooses between the op and its composition; `None` for plain ops and
    /// where the op is always called.
    pub part: Option<FusionPart>,
}

/// The purpose of an op in a layer, as far as its name tells it. Profiles sort the time of ops by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A product with one matrix. Its purpose depends on where it stands.
    Product,
    /// A product with the chosen experts' matrices.
    Gather,
    /// The end of gate and up: the activation, alone or with the products before it.
    Activation,
    /// The end of the experts: their weighted sum, alone or with the down projection.
    Down,
    /// Part of the choice of experts.
    Route,
    /// Part of attention.
    Attention,
    /// Anything else.
    Other,
}

macro_rules! plain_data {
    ($B:ident; $(
        $(#[doc = $doc:literal])*
        #[op($const:ident, $stage:ident)]
        fn $op:ident $args:tt -> $out:tt;
    )*) => {
        impl Op {
            $(
                #[doc = concat!("[`Backend::", stringify!($op), "`](crate::Backend::", stringify!($op), ").")]
                pub const $const: Self = Self { name: stringify!($op), stage: Stage::$stage, part: None };
            )*
            const PLAIN: &[Self] = &[$(Self::$const),*];
        }
    };
}

macro_rules! fused_data {
    ($B:ident; $(
        $(#[doc = $doc:literal])*
        #[op($const:ident, $stage:ident, $part:expr)]
        fn $op:ident $args:tt -> $out:tt;
    )*) => {
        impl Op {
            $(
                #[doc = concat!("[`Backend::", stringify!($op), "`](crate::Backend::", stringify!($op), ").")]
                pub const $const: Self = {
                    #[allow(unused_imports, reason = "an op that is always called names no part")]
                    use FusionPart::*;
                    Self { name: stringify!($op), stage: Stage::$stage, part: $part }
                };
            )*
            /// The fused ops.
            pub const FUSED: &[Self] = &[$(Self::$const),*];
        }
    };
}

plain_ops! { plain_data, Self }
fused_ops! { fused_data, Self }

impl Op {
    /// Every op.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        Self::PLAIN.iter().chain(Self::FUSED)
    }

    /// The fused ops that a [`Fusion`](crate::Fusion) switches.
    pub fn switched() -> impl Iterator<Item = &'static Self> + Clone {
        Self::FUSED.iter().filter(|op| op.part.is_some())
    }

    /// The op of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::all().find(|op| op.name == name)
    }
}
