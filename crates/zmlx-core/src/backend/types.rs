//! What the methods of a backend take and return, apart from the types of its own.

use std::sync::Arc;

use crate::Result;
use crate::error::ensure;

/// Rotary position embedding: pair `i` of a head turns by `position · frequency(i)` and is multiplied by `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Leading dimensions of each head that are rotated; even.
    pub dims: usize,
    /// How fast each pair turns.
    pub frequencies: RopeFrequencies,
    /// Factor of the rotated dimensions: 1, except for ropes that were stretched (yarn, longrope).
    pub scale: f32,
    /// Which dimensions form a pair.
    pub pairing: RopePairing,
}

/// Radians that each pair turns from one position to the next.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeFrequencies {
    /// Pair `i` turns by `position_scale · theta^(-2i / dims)`.
    Powers {
        /// Base of the frequencies.
        theta: f32,
        /// Factor of positions: 1, or less if the context was stretched linearly.
        position_scale: f32,
    },
    /// The given frequencies, one per pair.
    Given(Arc<[f64]>),
}

impl Rope {
    /// The plain kind: pair `i` turns by `position · theta^(-2i / dims)`.
    pub const fn plain(dims: usize, theta: f32, pairing: RopePairing) -> Self {
        let frequencies = RopeFrequencies::Powers { theta, position_scale: 1.0 };
        Self { dims, frequencies, scale: 1.0, pairing }
    }

    /// The frequencies of all pairs, `dims / 2` of them (or as many as were given).
    pub fn frequencies(&self) -> Vec<f64> {
        match &self.frequencies {
            RopeFrequencies::Powers { theta, position_scale } => {
                let exponent = |i: usize| -((2 * i) as f64) / self.dims as f64;
                let power = |i: usize| f64::from(*position_scale) * f64::from(*theta).powf(exponent(i));
                (0..self.dims / 2).map(power).collect()
            }
            RopeFrequencies::Given(frequencies) => frequencies.to_vec(),
        }
    }

    /// Checks `dims` against the width of a head, and the frequencies against `dims`.
    ///
    /// # Errors
    /// If `dims` is 0, odd or above `width`, or there are not `dims / 2` frequencies.
    pub fn check(&self, op: &'static str, width: usize) -> Result<()> {
        let dims_ok = self.dims > 0 && self.dims.is_multiple_of(2) && self.dims <= width;
        ensure(dims_ok, op, "rope.dims", format_args!("even, at most {width}"), self.dims)?;
        if let RopeFrequencies::Given(given) = &self.frequencies {
            let want = self.dims / 2;
            ensure(given.len() == want, op, "rope.frequencies", format_args!("{want} of them"), given.len())?;
        }
        Ok(())
    }
}

/// Queries and keys before the rope, and the norms of each of their heads.
#[derive(Debug)]
pub struct NormRope<'a, T, W> {
    /// Queries, `[n, n_heads, d]`.
    pub q: &'a T,
    /// Keys, `[n, n_kv_heads, d]`.
    pub k: &'a T,
    /// The norm of each query, `1 × [1, d]`.
    pub q_norm: &'a W,
    /// The norm of each key, `1 × [1, d]`.
    pub k_norm: &'a W,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Which two dimensions a rotation turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// `(2i, 2i + 1)`: MLX's `traditional = true`.
    Interleaved,
    /// `(i, i + dims / 2)`.
    HalfSplit,
}

/// Settings of the softmax router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxTopK {
    /// Experts per token.
    pub top_k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub renormalize: Renormalize,
}

/// Whether routing weights are divided by their sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renormalize {
    /// As the scores give them.
    No,
    /// Divided by their sum.
    Yes,
}

/// Settings of the auxiliary-loss-free sigmoid router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoauxTc {
    /// Experts per token.
    pub top_k: usize,
    /// Groups that the experts are divided into.
    pub n_group: usize,
    /// Groups from which experts may be chosen.
    pub topk_group: usize,
    /// Whether the chosen scores are divided by their sum plus `eps`.
    pub renormalize: Renormalize,
    /// Added to that sum.
    pub eps: f32,
    /// Factor of the final weights.
    pub routed_scaling_factor: f32,
}

/// Number of prompt tokens that are computed at once, if a backend prefers no other. It bounds the memory that a long prompt
/// needs.
pub const PREFILL_CHUNK: usize = 512;

/// How a prompt is best cut into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillStyle {
    /// In chunks of up to this size, the last token among them.
    Whole {
        /// The largest number of tokens in a chunk.
        chunk: usize,
    },
    /// All but the last token in chunks of this size, without logits. The last token follows as a decode step. mlx-lm
    /// does the same, so this gives mlx-lm's rounding.
    LastTokenAlone {
        /// The largest number of tokens in a chunk.
        chunk: usize,
    },
}

/// Arguments of [`latent_attention`](crate::Backend::latent_attention) and
/// [`mla_attention`](crate::Backend::mla_attention): the new tokens' queries and keys.
#[derive(Debug)]
pub struct MlaInputs<'a, T> {
    /// `[n_tokens, n_heads, nope_dim]`, or in latent space `[n_tokens, n_heads, rank]`.
    pub q_nope: &'a T,
    /// `[n_tokens, n_heads, rope_dim]`, rotated.
    pub q_pe: &'a T,
    /// The normed latent, `[n_tokens, rank]`.
    pub kv: &'a T,
    /// The rotated shared key, `[n_tokens, rope_dim]`.
    pub k_pe: &'a T,
}

/// The per-head projections of multi-head latent attention.
#[derive(Debug)]
pub struct MlaWeights<'a, W> {
    /// `n_heads × [rank, nope_dim]`: takes a query into latent space.
    pub embed_q: &'a W,
    /// `n_heads × [v_dim, rank]`: takes a latent result to the head's values.
    pub unembed_out: &'a W,
}

/// Arguments of [`norm_rope_mla`](crate::Backend::norm_rope_mla): the new tokens' projections.
#[derive(Debug)]
pub struct NormRopeMla<'a, T, W> {
    /// Queries, `[n_tokens, n_heads, nope_dim + rope_dim]`: the last part is to be rotated.
    pub q: &'a T,
    /// The latent and the shared key, `[n_tokens, rank + rope_dim]`: one is to be normed, the other rotated.
    pub kv_a: &'a T,
    /// The norm of latents, `1 × [1, rank]`.
    pub kv_norm: &'a W,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Width of the shared key.
    pub rope_dim: usize,
    /// What multiplies the scores.
    pub scale: f32,
}

/// The gate and up projections of an MLP or of a bank of experts, `[n_out, n_in]` each.
#[derive(Debug)]
pub struct GateUp<'a, W> {
    /// The projection that goes through the nonlinear function.
    pub gate: &'a W,
    /// The projection that multiplies it.
    pub up: &'a W,
    /// What is added to gate and to up, `n_mats × [1, n_out]` each.
    pub biases: Option<[&'a W; 2]>,
    /// How gate and up are joined.
    pub activation: Activation,
}

impl<'a, W> GateUp<'a, W> {
    /// Gate and up without biases, joined by SwiGLU.
    pub const fn swiglu(gate: &'a W, up: &'a W) -> Self {
        Self { gate, up, biases: None, activation: Activation::SwiGlu }
    }

    /// True if there are no biases and SwiGLU joins both. Every backend has a kernel for this case.
    pub fn is_plain(&self) -> bool {
        self.biases.is_none() && self.activation == Activation::SwiGlu
    }
}

/// How a gated MLP joins the results `g` and `u` of its gate and up projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `silu(g) · u`, `silu(v) = v / (1 + exp(-v))`.
    SwiGlu,
    /// `gelu(g) · u`, `gelu(v) = v/2 · (1 + tanh(√(2/π) · (v + 0.044715·v³)))`.
    GeGlu,
    /// `g' / (1 + exp(-alpha·g')) · (u' + 1)`, where g' is g limited to at most `limit`, and u' is u limited to
    /// `-limit..=limit`.
    ClampedSwiGlu {
        /// Steepness of the gate's function.
        alpha: f32,
        /// The largest magnitude that passes; positive.
        limit: f32,
    },
}

/// The down projections of a bank of experts, `n_experts × [n_out, n_in]`.
#[derive(Debug)]
pub struct Down<'a, W> {
    /// The matrices.
    pub weight: &'a W,
    /// What is added to their products, `n_experts × [1, n_out]`.
    pub bias: Option<&'a W>,
}

impl<'a, W> Down<'a, W> {
    /// Projections without a bias.
    pub const fn plain(weight: &'a W) -> Self {
        Self { weight, bias: None }
    }
}

/// Makes structs of references `Copy`.
macro_rules! copy_references {
    ($($name:ident),*) => {$(
        // Derived impls would require that the tensors themselves are `Copy`.
        impl<T> Clone for $name<'_, T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<'_, T> {}
    )*};
}
pub(super) use copy_references;

copy_references!(MlaInputs, MlaWeights, GateUp, Down, SampleSettings, Repetition);

/// How often and how long the threads of a backend waited for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Barriers {
    /// Barriers that were passed.
    pub n: u64,
    /// The time that the calling thread waited at them.
    pub waited: std::time::Duration,
}

/// How a device chooses a token.
#[derive(Debug)]
pub struct SampleSettings<'a, I> {
    /// 0 takes the most probable token; more flattens the distribution.
    pub temperature: f32,
    /// Keep only this many of the most probable tokens.
    pub top_k: Option<usize>,
    /// Keep only the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Keep only tokens at least this fraction as probable as the most probable one.
    pub min_p: Option<f32>,
    /// Makes recent tokens less likely.
    pub repetition: Option<Repetition<'a, I>>,
    /// The seed of the random choice; different for every token.
    pub seed: u64,
}

/// A token that a device chose, and what its logits say of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// Its natural-log probability at temperature 1, after the repetition penalty and before any filter.
    pub logprob: f32,
    /// The largest logit minus the second largest, as the model gave them; NaN if one of them is no number, or infinite.
    pub margin: f32,
}

/// What the host needs of a step that it does not wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostNeeds {
    /// The chosen tokens, and the logits only where [`Backend::read_choice`](crate::Backend::read_choice) does not tell enough.
    Choices,
    /// The logits too.
    Logits,
}

/// Divides the positive logits of recent tokens by a penalty and multiplies the negative ones by it. A token that
/// occurs several times is penalised once.
#[derive(Debug)]
pub struct Repetition<'a, I> {
    /// The penalty.
    pub penalty: f32,
    /// Tokens that the host knows.
    pub recent: &'a [u32],
    /// One more recent token, which may still be on the device, `[1]`.
    pub last: Option<&'a I>,
}
