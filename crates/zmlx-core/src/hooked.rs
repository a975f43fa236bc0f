//! A backend whose ops all pass through hooks, which can count them, time them, or make one wrong on purpose.

use std::ops::Range;

use crate::ops::{fused_ops, output, plain_ops};
use crate::stock::{self, Routers};
use crate::{
    Activation, AttentionInputs, AttentionSettings, Backend, Barriers, CacheSpec, Choice, ConvActivation,
    ConvWeights, DeltaInputs, DeltaWeights, Down, GateUp, HostNeeds, HostWeight, Instrumented, MlaInputs,
    MlaWeights, NoauxTc, NormRope, NormRopeMla, Op, PrefillStyle, Result, Rope, SampleSettings, Shard,
    SoftmaxTopK, Span, StepKey,
};

/// Makes the method of [`Hooks`] for each fused op, which is called in place of the op.
macro_rules! hooks {
    ($B:ident; $(
        $(#[doc = $doc:literal])*
        #[op($const:ident, $stage:ident, $part:expr)]
        fn $op:ident($($arg:ident: $type:ty),* $(,)?) -> $out:tt;
    )*) => {$(
        #[doc = concat!("Runs in place of [`Backend::", stringify!($op), "`].\n\n# Errors\nThose of the op.")]
        fn $op(&self, backend: &B, $($arg: $type),*) -> Result<output!($B, $out)> {
            backend.$op($($arg),*)
        }
    )*};
}

/// What happens around the ops of a backend, and in place of them.
pub trait Hooks<B: Backend> {
    /// Runs an op. `op` is the name of its method in [`Backend`].
    ///
    /// # Errors
    /// Those of the op.
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R>;

    /// Whether each op is waited for ([`Backend::wait`]) before [`Hooks::around`] regains control. Timing an op needs
    /// this.
    fn waits(&self) -> bool {
        false
    }

    /// Whether some ops run as the plain ops of their compositions: fused ops that no [`Fusion`](crate::Fusion)
    /// switches, and the routers of a stock engine ([`Backend::stock_routers`]). Counting launches needs this.
    fn takes_apart(&self) -> bool {
        false
    }

    /// Runs in place of [`Backend::upload`].
    ///
    /// # Errors
    /// Those of the method.
    fn upload(&self, backend: &B, weight: HostWeight) -> Result<B::Weight> {
        backend.upload(weight)
    }

    /// What [`Backend::sample`] does.
    ///
    /// # Errors
    /// Those of the method.
    fn sample(
        &self,
        backend: &B,
        logits: &B::Tensor,
        rows: &[(usize, SampleSettings<'_, B::Indices>)],
    ) -> Result<Vec<Option<B::Indices>>> {
        backend.sample(logits, rows)
    }

    /// What [`Backend::eval_caches`] does.
    ///
    /// # Errors
    /// Those of the method.
    fn eval_caches(&self, backend: &B, caches: &[B::Cache]) -> Result<()> {
        backend.eval_caches(caches)
    }

    /// What [`Backend::shard`] says.
    fn shard(&self, backend: &B) -> Shard {
        backend.shard()
    }

    /// What [`Backend::all_sum`] does.
    ///
    /// # Errors
    /// Those of the method.
    fn all_sum(&self, backend: &B, x: B::Tensor) -> Result<B::Tensor> {
        backend.all_sum(x)
    }

    /// What [`Backend::gather_columns`] does.
    ///
    /// # Errors
    /// Those of the method.
    fn gather_columns(&self, backend: &B, x: B::Tensor, width: usize, n: usize) -> Result<B::Tensor> {
        backend.gather_columns(x, width, n)
    }

    /// What [`Backend::stage`] says.
    fn stage(&self, backend: &B) -> Shard {
        backend.stage()
    }

    /// What [`Backend::send`] does.
    ///
    /// # Errors
    /// Those of the method.
    fn send(&self, backend: &B, x: &B::Tensor, like: &B::Weight, to: usize) -> Result<()> {
        backend.send(x, like, to)
    }

    /// What [`Backend::receive`] does.
    ///
    /// # Errors
    /// Those of the method.
    fn receive(&self, backend: &B, shape: &[usize], like: &B::Weight, from: usize) -> Result<B::Tensor> {
        backend.receive(shape, like, from)
    }

    fused_ops! { hooks, B }
}

/// A backend with hooks. Apart from what the hooks do, it behaves as the backend itself.
#[derive(Clone, Debug)]
pub struct Hooked<B, H> {
    inner: B,
    hooks: H,
}

impl<B: Backend, H: Hooks<B>> Hooked<B, H> {
    /// Adds hooks to a backend.
    pub fn new(inner: B, hooks: H) -> Self {
        Self { inner, hooks }
    }

    /// The hooks.
    pub fn hooks(&self) -> &H {
        &self.hooks
    }

    /// The backend without hooks.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// Runs an op. `tensor` returns the part of its result to wait for.
    fn run<R>(
        &self,
        op: &'static str,
        run: impl FnOnce() -> Result<R>,
        tensor: impl FnOnce(&R) -> Option<&B::Tensor>,
    ) -> Result<R> {
        self.hooks.around(op, || {
            let result = run()?;
            if let Some(tensor) = tensor(&result).filter(|_| self.hooks.waits()) {
                self.inner.wait(tensor)?;
            }
            Ok(result)
        })
    }
}

/// The tensor of an op's result to wait for; `None` if the result is not a tensor.
macro_rules! waited {
    ($y:ident, Tensor) => {
        Some($y)
    };
    ($y:ident, Indices) => {
        None
    };
    ($y:ident, ($first:ident, Tensor)) => {
        Some(&$y.1)
    };
}

/// Plain ops, passed to the backend.
macro_rules! pass {
    ($B:ident; $(
        $(#[doc = $doc:literal])*
        #[op($const:ident, $stage:ident)]
        fn $op:ident($($arg:ident: $type:ty),* $(,)?) -> $out:tt;
    )*) => {$(
        fn $op(&self, $($arg: $type),*) -> Result<output!($B, $out)> {
            self.run(stringify!($op), || self.inner.$op($($arg),*), |_y| waited!(_y, $out))
        }
    )*};
}

/// Fused ops, passed to their hooks.
macro_rules! pass_to_hooks {
    ($B:ident; $(
        $(#[doc = $doc:literal])*
        #[op($const:ident, $stage:ident, $part:expr)]
        fn $op:ident($($arg:ident: $type:ty),* $(,)?) -> $out:tt;
    )*) => {$(
        fn $op(&self, $($arg: $type),*) -> Result<output!($B, $out)> {
            if Op::$const.part.is_none() && self.hooks.takes_apart() {
                return stock::$op(self, $($arg),*);
            }
            self.run(stringify!($op), || self.hooks.$op(&self.inner, $($arg),*), |y| waited!(y, $out))
        }
    )*};
}

/// Methods that are no work for the device, or whose work is timed with what follows.
macro_rules! passed_on {
    ($($method:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {$(
        fn $method(&self, $($arg: $type),*) -> $out {
            self.inner.$method($($arg),*)
        }
    )*};
}

impl<B: Backend, H: Hooks<B>> Backend for Hooked<B, H> {
    type Tensor = B::Tensor;
    type Indices = B::Indices;
    type Weight = B::Weight;
    type Cache = B::Cache;
    type Step = B::Step;

    passed_on! {
        name() -> &'static str;
        concat_rows(parts: &[&B::Weight]) -> Result<B::Weight>;
        join_rows(parts: Vec<B::Weight>) -> Result<(B::Weight, Vec<B::Weight>)>;
        tensor(values: &[f32], shape: &[usize]) -> Result<B::Tensor>;
        shape(x: &B::Tensor) -> Vec<usize>;
        indices(values: &[u32], shape: &[usize]) -> Result<B::Indices>;
        join_indices(lists: &[&B::Indices]) -> Result<B::Indices>;
        step(spans: &[Span]) -> Result<B::Step>;
        n_tokens(step: &B::Step) -> usize;
        cache(spec: &CacheSpec) -> Result<B::Cache>;
        cache_bytes(spec: &CacheSpec, n_tokens: usize) -> u64;
        resident_bytes(cache: &B::Cache) -> u64;
        slot_bytes(cache: &B::Cache, slot: usize) -> u64;
        growth_bytes(cache: &B::Cache, slot: usize, n_tokens: usize) -> u64;
        reserve(cache: &mut B::Cache, slot: usize, n_tokens: usize) -> Result<()>;
        fork(cache: &mut B::Cache, from: usize, to: usize, n_tokens: usize) -> Result<()>;
        truncate(cache: &mut B::Cache, slot: usize, n_tokens: usize) -> Result<()>;
        release(cache: &mut B::Cache, slot: usize) -> ();
        shortest(cache: &B::Cache, slot: usize) -> usize;
        commit(cache: &mut B::Cache, step: &B::Step) -> ();
        rollback(cache: &mut B::Cache, step: &B::Step) -> ();
        wait(x: &B::Tensor) -> Result<()>;
        takes_shared_experts() -> bool;
        prefill_style() -> PrefillStyle;
        read_choice(chosen: &B::Indices) -> Result<Option<Choice>>;
        eval_async(logits: B::Tensor, chosen: &[&B::Indices], needs: HostNeeds) -> Result<B::Tensor>;
        of_rank_0(indices: B::Indices, n_values: usize) -> Result<B::Indices>;
        reshape(x: &B::Tensor, shape: &[usize]) -> Result<B::Tensor>;
        slice_last(x: &B::Tensor, range: Range<usize>) -> Result<B::Tensor>;
    }

    plain_ops! { pass, B }
    fused_ops! { pass_to_hooks, B }

    fn upload(&self, weight: HostWeight) -> Result<B::Weight> {
        self.hooks.upload(&self.inner, weight)
    }

    /// Seen as the product.
    fn linear_parts<const N: usize>(
        &self,
        x: &B::Tensor,
        weight: &B::Weight,
        widths: [usize; N],
    ) -> Result<[B::Tensor; N]> {
        let run = || self.inner.linear_parts(x, weight, widths);
        self.run(Op::LINEAR.name, run, |parts| parts.last())
    }

    fn sample(
        &self,
        logits: &B::Tensor,
        rows: &[(usize, SampleSettings<'_, B::Indices>)],
    ) -> Result<Vec<Option<B::Indices>>> {
        self.hooks.sample(&self.inner, logits, rows)
    }

    fn eval_caches(&self, caches: &[B::Cache]) -> Result<()> {
        self.hooks.eval_caches(&self.inner, caches)
    }

    fn shard(&self) -> Shard {
        self.hooks.shard(&self.inner)
    }

    fn all_sum(&self, x: B::Tensor) -> Result<B::Tensor> {
        self.hooks.all_sum(&self.inner, x)
    }

    fn gather_columns(&self, x: B::Tensor, width: usize, n: usize) -> Result<B::Tensor> {
        self.hooks.gather_columns(&self.inner, x, width, n)
    }

    fn stage(&self) -> Shard {
        self.hooks.stage(&self.inner)
    }

    fn send(&self, x: &B::Tensor, like: &B::Weight, to: usize) -> Result<()> {
        self.hooks.send(&self.inner, x, like, to)
    }

    fn receive(&self, shape: &[usize], like: &B::Weight, from: usize) -> Result<B::Tensor> {
        self.hooks.receive(&self.inner, shape, like, from)
    }

    fn held_experts(
        &self,
        experts: &B::Indices,
        weights: &B::Tensor,
        held: Range<usize>,
    ) -> Result<(B::Indices, B::Tensor)> {
        self.inner.held_experts(experts, weights, held)
    }

    /// Hooks that time or count ops need every op to run, so the body is called.
    fn run_step(
        &self,
        key: &StepKey,
        step: &B::Step,
        ids: &B::Indices,
        body: &mut dyn FnMut(&B::Indices) -> Result<B::Tensor>,
    ) -> Result<B::Tensor> {
        if self.hooks.waits() || self.hooks.takes_apart() {
            return body(ids);
        }
        self.inner.run_step(key, step, ids, body)
    }

    // Reading waits for the result, so these need no further wait.

    fn read(&self, x: &B::Tensor, out: &mut Vec<f32>) -> Result<()> {
        self.hooks.around("read", || self.inner.read(x, out))
    }

    fn read_indices(&self, indices: &B::Indices, out: &mut Vec<u32>) -> Result<()> {
        self.hooks.around("read_indices", || self.inner.read_indices(indices, out))
    }

    fn stock_routers(&self) -> Option<&dyn Routers<Self>> {
        let are_seen = self.inner.stock_routers().is_some() && !self.hooks.takes_apart();
        are_seen.then_some(self as &dyn Routers<Self>)
    }
}

/// The backend's routers, each seen as one op.
impl<B: Backend, H: Hooks<B>> Routers<Self> for Hooked<B, H> {
    fn softmax_top_k(&self, logits: &B::Tensor, settings: &SoftmaxTopK) -> Result<(B::Indices, B::Tensor)> {
        let run = || stock::route_softmax_top_k(&self.inner, logits, settings);
        self.run("stock_route_softmax_top_k", run, |(_, weights)| Some(weights))
    }

    fn noaux_tc(
        &self,
        logits: &B::Tensor,
        bias: &B::Weight,
        settings: &NoauxTc,
    ) -> Result<(B::Indices, B::Tensor)> {
        let run = || stock::route_noaux_tc(&self.inner, logits, bias, settings);
        self.run("stock_route_noaux_tc", run, |(_, weights)| Some(weights))
    }
}

impl<B: Instrumented, H: Hooks<B>> Instrumented for Hooked<B, H> {
    fn kernel_runs(&self, op: &str) -> Option<u64> {
        self.inner.kernel_runs(op)
    }

    fn barriers(&self) -> Option<Barriers> {
        self.inner.barriers()
    }

    fn peak_memory_bytes(&self) -> Option<u64> {
        self.inner.peak_memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    /// A method with a default body could be forgotten in `Hooked`, which would then run that body instead of the
    /// backend's.
    #[test]
    fn every_method_is_passed_on() {
        let hooked = include_str!("hooked.rs");
        let hooked = &hooked[hooked.find("Backend for Hooked").expect("the implementation")..];
        let methods = include_str!("backend.rs").lines().filter_map(|line| {
            let name = line.strip_prefix("    fn ")?.split(['(', '<']).next()?;
            (!name.starts_with('$')).then_some(name)
        });
        let mut n_methods = 0;
        for name in methods {
            let is_passed =
                [format!("        {name}("), format!("    fn {name}("), format!("    fn {name}<")]
                    .iter()
                    .any(|start| hooked.lines().any(|line| line.starts_with(start)));
            assert!(is_passed, "Hooked does not pass {name} on");
            n_methods += 1;
        }
        assert!(n_methods > 25, "found {n_methods} methods in backend.rs");
    }
}
