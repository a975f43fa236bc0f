//! The [`Backend`] trait: every op of a decoder, plain and fused.

mod cache;
mod recurrent;
mod shard;
mod step;
mod types;

pub use cache::{AttentionInputs, AttentionSettings, CacheKind, CacheSpec, KvFormat};
pub use recurrent::{ConvActivation, ConvWeights, DeltaDims, DeltaInputs, DeltaWeights};
pub use shard::Shard;
pub use step::{Logits, MAX_POSITIONS, MAX_SLOTS, Span, StepKey, check_spans, logit_rows};
pub use types::{
    Activation, Barriers, Choice, Down, GateUp, HostNeeds, MlaInputs, MlaWeights, NoauxTc, NormRope,
    NormRopeMla, PREFILL_CHUNK, PrefillStyle, Renormalize, Repetition, Rope, RopeFrequencies, RopePairing,
    SampleSettings, SoftmaxTopK,
};

use crate::ops::{fused_ops, output, plain_ops};
use crate::{Error, HostWeight, Result, stock};

/// Methods that every backend has.
macro_rules! required {
    ($B:ident; $(
        $(#[doc = $doc:literal])*
        #[op($const:ident, $stage:ident)]
        fn $op:ident($($arg:ident: $type:ty),* $(,)?) -> $out:tt;
    )*) => {$(
        $(#[doc = $doc])*
        fn $op(&self, $($arg: $type),*) -> Result<output!($B, $out)>;
    )*};
}

/// Methods whose default body is the composition of that name.
macro_rules! composed {
    ($B:ident; $(
        $(#[doc = $doc:literal])*
        #[op($const:ident, $stage:ident, $part:expr)]
        fn $op:ident($($arg:ident: $type:ty),* $(,)?) -> $out:tt;
    )*) => {$(
        $(#[doc = $doc])*
        fn $op(&self, $($arg: $type),*) -> Result<output!($B, $out)> {
            stock::$op(self, $($arg),*)
        }
    )*};
}

/// A device, its memory, and the ops on it.
///
/// Ops are functional: they return new tensors and never change their inputs. The one exception is a cache: ops write
/// the entries of new tokens to it. Shapes are checked before anything is written. `n` stands for the number of tokens
/// in the batch. Tensors are row-major.
///
/// A fused op has a default body: its composition of plain ops. A backend overrides it with one kernel, and the
/// conformance suite holds both to the same oracle. Unless a backend says otherwise, activations are f32, and every
/// product accumulates in f32 and rounds once (the *accurate* mode of the crate docs).
pub trait Backend {
    /// Activations: a row-major array on the device. Cloning is cheap.
    type Tensor: Clone;
    /// Token ids and expert indices: an array of u32 on the device. Cloning is cheap.
    type Indices: Clone;
    /// A dense or quantised matrix or bank of matrices in the backend's own layout. Cloning is cheap.
    type Weight: Clone;
    /// What one layer remembers of all sequences. Each sequence has a slot.
    type Cache;
    /// A step's tokens, positions, slots and wanted logits, in the backend's own form.
    type Step;

    /// The name that the command line and the errors use.
    fn name(&self) -> &'static str;

    // ---- between host and device

    /// Takes over a weight. Backends that compute on the CPU use its bytes in place.
    ///
    /// # Errors
    /// If the backend does not support the format.
    fn upload(&self, weight: HostWeight) -> Result<Self::Weight>;

    /// The weight whose rows are those of all `parts`, in order (within each matrix of a bank). One product with it
    /// replaces several. Formats may differ; widths and bank sizes may not.
    ///
    /// # Errors
    /// If `n_in` or the number of matrices differ, or `parts` is empty.
    fn concat_rows(&self, parts: &[&Self::Weight]) -> Result<Self::Weight>;

    /// [`Backend::concat_rows`], and the parts to keep beside it: where the concatenation is a copy, they become views of it, so
    /// that nothing is stored twice.
    ///
    /// # Errors
    /// As [`Backend::concat_rows`].
    fn join_rows(&self, parts: Vec<Self::Weight>) -> Result<(Self::Weight, Vec<Self::Weight>)> {
        let whole = self.concat_rows(&parts.iter().collect::<Vec<_>>())?;
        Ok((whole, parts))
    }

    /// A tensor with these values.
    ///
    /// # Errors
    /// If the number of values does not fit the shape, or the shape does not have one to four dimensions.
    fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Self::Tensor>;

    /// Replaces the contents of `out` with the values of `x`. Waits for them if the device is lazy.
    ///
    /// # Errors
    /// A device fault.
    fn read(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<()>;

    /// The dimensions of `x`.
    fn shape(&self, x: &Self::Tensor) -> Vec<usize>;

    /// Indices with these values: token ids `[n]`, or expert choices `[n, top_k]`.
    ///
    /// # Errors
    /// If the number of values does not fit the shape.
    fn indices(&self, values: &[u32], shape: &[usize]) -> Result<Self::Indices>;

    /// Replaces the contents of `out` with the indices.
    ///
    /// # Errors
    /// A device fault.
    fn read_indices(&self, indices: &Self::Indices, out: &mut Vec<u32>) -> Result<()>;

    /// One list of indices after the other. They stay on the device, so a step can be built on tokens of several sequences
    /// before they are computed.
    ///
    /// **Shapes** each `[n_i]` → `[Σ n_i]`. **Source** `mx.concatenate`.
    ///
    /// # Errors
    /// If there are no lists, or one of them is a matrix.
    fn join_indices(&self, lists: &[&Self::Indices]) -> Result<Self::Indices>;

    // ---- steps and caches

    /// Prepares a step: checks its spans once, and puts what the ops need to know about them where the device can read
    /// it. Numbers that change from token to token reach the ops only through the step, so a device can replay the same
    /// ops.
    ///
    /// # Errors
    /// As [`check_spans`](crate::check::check_spans).
    fn step(&self, spans: &[Span]) -> Result<Self::Step>;

    /// Number of tokens of a step: the rows of its tensors.
    fn n_tokens(&self, step: &Self::Step) -> usize;

    /// Runs the ops of a step: `body` turns the token ids into logits. A backend may record what the body does as a
    /// program of its own, and run that program instead of the body in later steps with the same key and shapes. The
    /// caller has [reserved](Backend::reserve) memory in the caches before. The default body calls `body`.
    ///
    /// # Errors
    /// Those of the ops.
    fn run_step(
        &self,
        _key: &StepKey,
        _step: &Self::Step,
        ids: &Self::Indices,
        body: &mut dyn FnMut(&Self::Indices) -> Result<Self::Tensor>,
    ) -> Result<Self::Tensor> {
        body(ids)
    }

    /// An empty cache for one layer. All its slots are empty, and any slot number below [`MAX_SLOTS`] may be used.
    ///
    /// # Errors
    /// If a dimension is zero; [`Error::Unsupported`](crate::Error::Unsupported) for kinds and formats that the backend
    /// does not have.
    fn cache(&self, spec: &CacheSpec) -> Result<Self::Cache>;

    /// Bytes that one sequence of `n_tokens` tokens takes in a cache of this kind, if it shares none of them.
    fn cache_bytes(&self, spec: &CacheSpec, n_tokens: usize) -> u64;

    /// Bytes that the sequences of a cache take together. What several sequences share counts once.
    fn resident_bytes(&self, cache: &Self::Cache) -> u64;

    /// Bytes that one sequence takes, shared ones included.
    fn slot_bytes(&self, cache: &Self::Cache, slot: usize) -> u64;

    /// An upper bound of the bytes by which [`Backend::resident_bytes`] grows when the sequence grows to `n_tokens`
    /// tokens. It is exact unless sequences that share a part are extended in one step.
    fn growth_bytes(&self, cache: &Self::Cache, slot: usize, n_tokens: usize) -> u64;

    /// Allocates the memory that the sequence in `slot` needs to grow to `n_tokens` tokens. The next step up to that
    /// length needs no more memory.
    ///
    /// # Errors
    /// If the slot is not below [`MAX_SLOTS`], or if the device is out of memory.
    fn reserve(&self, cache: &mut Self::Cache, slot: usize, n_tokens: usize) -> Result<()>;

    /// Makes the sequence in `to` equal to the first `n_tokens` tokens of the one in `from`, without copying them. What
    /// `to` held is released. Later each of the two grows on its own. With all tokens of `from` this is a snapshot,
    /// which every kind of cache allows.
    ///
    /// # Errors
    /// If `from` holds fewer tokens, if it no longer holds what a sequence of that length needs, or if the slots are
    /// equal. Then nothing has changed.
    fn fork(&self, cache: &mut Self::Cache, from: usize, to: usize, n_tokens: usize) -> Result<()>;

    /// Shortens the sequence in `slot` to its first `n_tokens` tokens and frees what only the removed tokens needed.
    ///
    /// # Errors
    /// If it holds fewer tokens, or no longer holds what a sequence of that length needs. Then nothing has changed.
    fn truncate(&self, cache: &mut Self::Cache, slot: usize, n_tokens: usize) -> Result<()>;

    /// Empties a slot and frees what no other sequence shares.
    fn release(&self, cache: &mut Self::Cache, slot: usize);

    /// The smallest number of tokens above 0 to which the sequence in `slot` can be shortened or forked. 0 if every
    /// length is possible.
    fn shortest(&self, _cache: &Self::Cache, _slot: usize) -> usize {
        0
    }

    /// Ends a step whose ops have all succeeded: its tokens now belong to their sequences. Before this call the caches
    /// have their old lengths, and their contents up to those lengths are unchanged.
    fn commit(&self, cache: &mut Self::Cache, step: &Self::Step);

    /// Ends a step that failed: the sequences are as they were before it. The ops of the step need not have run on this
    /// cache.
    fn rollback(&self, cache: &mut Self::Cache, step: &Self::Step);

    // ---- the order of steps: default bodies for backends that compute at once

    /// Waits until `x` is computed.
    ///
    /// # Errors
    /// A device fault.
    fn wait(&self, _x: &Self::Tensor) -> Result<()> {
        Ok(())
    }

    /// The routers of the stock engine that this backend follows, if their order of experts or their rounding differs
    /// from that of the plain ops. The compositions [`stock::route_softmax_top_k`] and [`stock::route_noaux_tc`] then
    /// use these routers. `None` if they use the plain ops.
    fn stock_routers(&self) -> Option<&dyn stock::Routers<Self>> {
        None
    }

    /// How prompts are cut.
    fn prefill_style(&self) -> PrefillStyle {
        PrefillStyle::Whole { chunk: PREFILL_CHUNK }
    }

    /// Computes what the caches hold, so that a lazy device does not collect the work of a whole prompt.
    ///
    /// # Errors
    /// A device fault.
    fn eval_caches(&self, _caches: &[Self::Cache]) -> Result<()> {
        Ok(())
    }

    /// Chooses the next tokens of some sequences, each from a row of the logits. The tokens stay on the device, so the next
    /// step can be built on them before they are computed. `None` for tokens that the host must choose: all of them on
    /// backends whose ops compute at once, where there is nothing to overlap.
    ///
    /// **Formula** apply the repetition penalty; `p = softmax(logits)`; rank the tokens by p; keep the tokens with less
    /// than `top_p` of probability above them, the first `top_k`, and those with at least `min_p` times the largest p;
    /// draw one of them at random with weight `p^(1 / temperature)`. At temperature 0 take the most probable one.
    /// **Shapes** logits `[n, vocab]` → `[1]` for each row. **Numerics** f32. Of equal logits the lowest index ranks first. A
    /// backend that follows a stock engine may take the most probable token from that engine's rounded
    /// log-probabilities. Equal settings and logits give equal tokens. Which tokens are left to the host
    /// depends on the settings alone, and neither on the seed nor on recent tokens.
    /// **Source** mlx-lm `sample_utils`.
    ///
    /// # Errors
    /// If the logits are not a matrix or lack a row, or if a recent token has no logit.
    fn sample(
        &self,
        _logits: &Self::Tensor,
        rows: &[(usize, SampleSettings<'_, Self::Indices>)],
    ) -> Result<Vec<Option<Self::Indices>>> {
        Ok(rows.iter().map(|_| None).collect())
    }

    /// The token that [`Backend::sample`] chose, with what the host would find in its logits; `None` where it must look itself.
    ///
    /// **Numerics** f32.
    ///
    /// # Errors
    /// A device fault.
    fn read_choice(&self, _chosen: &Self::Indices) -> Result<Option<Choice>> {
        Ok(None)
    }

    /// Starts to compute a step's results, its logits and the tokens `chosen` from them, without waiting for them. Returns the
    /// logits in a form that [`Backend::read`] only has to copy: a read of what the host needs does not wait for steps that
    /// were started later.
    ///
    /// # Errors
    /// A device fault.
    fn eval_async(
        &self,
        logits: Self::Tensor,
        _chosen: &[&Self::Indices],
        _needs: HostNeeds,
    ) -> Result<Self::Tensor> {
        Ok(logits)
    }

    // ---- several ranks: default bodies for backends that run alone

    /// Which part of every layer this process holds (tensor parallelism): the weights that it is given are that part's.
    fn shard(&self) -> Shard {
        Shard::WHOLE
    }

    /// The sum of `x` over all ranks of the group, which all of them get with the same bits. All ranks must call it in the
    /// same order, with equal shapes.
    ///
    /// **Numerics** sums in the type of `x`, in an order that depends on the number of ranks. **Source** `mx.distributed.all_sum`.
    ///
    /// # Errors
    /// A device fault.
    fn all_sum(&self, x: Self::Tensor) -> Result<Self::Tensor> {
        Ok(x)
    }

    /// The columns of all ranks, one rank's after the other's: `width` of each, `n` together. The last rank may give fewer.
    ///
    /// **Shapes** x `[n_rows, width]` → `[n_rows, n]`. **Source** `mx.distributed.all_gather`.
    ///
    /// # Errors
    /// A device fault.
    fn gather_columns(&self, x: Self::Tensor, _width: usize, _n: usize) -> Result<Self::Tensor> {
        Ok(x)
    }

    /// The indices of rank 0, all below `n_values`, on every rank. Those of other ranks do not count, but their shape.
    ///
    /// # Errors
    /// A device fault.
    fn of_rank_0(&self, indices: Self::Indices, _n_values: usize) -> Result<Self::Indices> {
        Ok(indices)
    }

    /// Which layers this process holds, where each holds some of them whole (pipeline parallelism): its part of all layers in a
    /// row.
    fn stage(&self) -> Shard {
        Shard::WHOLE
    }

    /// Begins to compute `x` and to send it to the rank `to`, a neighbour of this one. `like` is a weight whose products and
    /// norms have the type of `x`.
    ///
    /// **Source** `mx.distributed.send`.
    ///
    /// # Errors
    /// If `x` has another type; a device fault.
    fn send(&self, _x: &Self::Tensor, _like: &Self::Weight, _to: usize) -> Result<()> {
        Err(Error::Unsupported { op: "send", backend: self.name(), why: "it runs alone".into() })
    }

    /// What the rank `from`, a neighbour, [sends](Backend::send), in the type of `like`.
    ///
    /// **Shapes** → `shape`. **Source** `mx.distributed.recv`.
    ///
    /// # Errors
    /// A device fault.
    fn receive(&self, _shape: &[usize], _like: &Self::Weight, _from: usize) -> Result<Self::Tensor> {
        Err(Error::Unsupported { op: "receive", backend: self.name(), why: "it runs alone".into() })
    }

    /// The part of a choice of experts that falls on the experts `held`: for each of these its index among them, and its weight;
    /// for the others index 0 and weight 0.
    ///
    /// **Shapes** experts, weights `[n, top_k]` → the same.
    ///
    /// # Errors
    /// If the shapes differ or `held` is empty.
    fn held_experts(
        &self,
        experts: &Self::Indices,
        weights: &Self::Tensor,
        held: std::ops::Range<usize>,
    ) -> Result<(Self::Indices, Self::Tensor)> {
        stock::held_experts(self, experts, weights, held)
    }

    /// Whether kernels of the chosen experts take a shared expert along now, so that models call
    /// [`Backend::gather_qmm_swiglu_shared`] and [`Backend::gather_qmm_combine_shared`]. Elsewhere they call the ops of which these
    /// consist.
    fn takes_shared_experts(&self) -> bool {
        false
    }

    // ---- views: no work for the device

    /// The same values with another shape.
    ///
    /// # Errors
    /// If the numbers of values differ.
    fn reshape(&self, x: &Self::Tensor, shape: &[usize]) -> Result<Self::Tensor>;

    /// The columns `range` of the last dimension.
    ///
    /// # Errors
    /// If the range is empty or reaches past the width.
    fn slice_last(&self, x: &Self::Tensor, range: std::ops::Range<usize>) -> Result<Self::Tensor>;

    /// [`Backend::linear`] with a weight whose rows follow each other in parts ([`Backend::concat_rows`]), and the result of each part:
    /// `widths` are their numbers of rows. A backend may take a product for each part.
    ///
    /// # Errors
    /// As [`Backend::linear`] and [`Backend::slice_last`].
    fn linear_parts<const N: usize>(
        &self,
        x: &Self::Tensor,
        weight: &Self::Weight,
        widths: [usize; N],
    ) -> Result<[Self::Tensor; N]> {
        stock::linear_parts(self, x, weight, widths)
    }

    // ---- ops: crate::ops holds their table

    plain_ops! { required, Self }
    fused_ops! { composed, Self }
}
