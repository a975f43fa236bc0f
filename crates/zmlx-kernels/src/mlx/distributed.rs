//! Several processes that compute together, over MLX's own groups.
//!
//! MLX connects the processes of a *ring* by TCP: each to the next, the last to the first. It finds its number in the
//! environment as `MLX_RANK` and the addresses of all in the file that `MLX_HOSTFILE` names, as JSON: for each process a list
//! of `"address:port"`. A process whose neighbour dies waits for it forever: whoever uses a group must watch the others by other
//! means.

use std::ffi::CStr;

use mlx_rs::{Array, Stream};
use mlx_sys::{mlx_array, mlx_distributed_group, mlx_stream};

use super::Runtime;
use super::runtime::NAME;
use crate::{Error, Result, Shard};

/// MLX's name of the ring.
const RING: &CStr = c"ring";

/// The processes of the group that MLX has made in this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    shard: Shard,
}

impl Group {
    /// Whether this build of MLX has the ring.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if MLX does not start.
    pub fn is_available() -> Result<bool> {
        Runtime::start()?;
        // SAFETY: the name is a constant text that ends in zero.
        Ok(unsafe { mlx_sys::mlx_distributed_is_available(RING.as_ptr()) })
    }

    /// Makes the group of this process, or returns the one that was made before. Waits until the neighbours are there, without
    /// an end if one never comes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if MLX does not start or has no ring; [`Error::Fault`] if the environment names no group, or its
    /// addresses cannot be used.
    pub fn ring() -> Result<Self> {
        const OP: &str = "group";
        if !Self::is_available()? {
            let why = "this build of MLX has no ring".to_owned();
            return Err(Error::Unavailable { backend: NAME, why });
        }
        // SAFETY: makes an empty handle, which is freed below on every path.
        let mut group = unsafe { mlx_sys::mlx_distributed_group_new() };
        // SAFETY: `group` is an empty handle that the call fills; the name is a constant text that ends in zero.
        let status = unsafe { mlx_sys::mlx_distributed_init(&mut group, true, RING.as_ptr()) };
        // SAFETY: a handle that the call before has filled.
        let numbers = (status == 0).then(|| unsafe {
            [mlx_sys::mlx_distributed_group_rank(group), mlx_sys::mlx_distributed_group_size(group)]
        });
        // SAFETY: the handle was made above and is freed once; MLX keeps the group itself.
        unsafe { mlx_sys::mlx_distributed_group_free(group) };
        let numbers = numbers.and_then(|[rank, n_ranks]| {
            let shard = Shard { rank: usize::try_from(rank).ok()?, n_ranks: usize::try_from(n_ranks).ok()? };
            (shard.rank < shard.n_ranks).then_some(shard)
        });
        let why = || "MLX cannot connect the processes that MLX_RANK and MLX_HOSTFILE describe".to_owned();
        let shard = numbers.ok_or_else(|| Error::Fault { op: OP, backend: NAME, why: why() })?;
        Ok(Self { shard })
    }

    /// This process among the others.
    pub fn shard(self) -> Shard {
        self.shard
    }

    /// The sum of `x` over all processes: the same bits on each. All must call the methods in the same order with equal shapes
    /// and types.
    ///
    /// **Source** `mx.distributed.all_sum`.
    ///
    /// # Errors
    /// [`Error::Fault`] if MLX refuses. What goes wrong on the way shows when the result is computed, or never.
    pub fn all_sum(self, x: &Array) -> Result<Array> {
        call("all_sum", |result, group, stream| {
            // SAFETY: all handles are live for the call; `result` is an empty handle that the call fills; the null group is
            // MLX's default, which `ring` has made.
            unsafe { mlx_sys::mlx_distributed_all_sum(result, x.as_ptr(), group, stream) }
        })
    }

    /// The arrays of all processes, one after the other along the first dimension. As [`Group::all_sum`] otherwise.
    ///
    /// **Shapes** x `[n, ..]` → `[n_ranks · n, ..]`. **Source** `mx.distributed.all_gather`.
    ///
    /// # Errors
    /// As [`Group::all_sum`].
    pub fn all_gather(self, x: &Array) -> Result<Array> {
        call("all_gather", |result, group, stream| {
            // SAFETY: as in `all_sum`.
            unsafe { mlx_sys::mlx_distributed_all_gather(result, x.as_ptr(), group, stream) }
        })
    }

    /// Sends `x` to the process `to`, which must be a neighbour in the ring. Nothing is sent before the result, which is `x`, is
    /// computed.
    ///
    /// **Source** `mx.distributed.send`.
    ///
    /// # Errors
    /// As [`Group::all_sum`].
    pub fn send(self, x: &Array, to: usize) -> Result<Array> {
        let to = i32::try_from(to).unwrap_or(i32::MAX);
        call("send", |result, group, stream| {
            // SAFETY: as in `all_sum`.
            unsafe { mlx_sys::mlx_distributed_send(result, x.as_ptr(), to, group, stream) }
        })
    }

    /// An array of the shape and type of `like`, which the process `from` sends, a neighbour in the ring. `like` is not computed.
    ///
    /// **Source** `mx.distributed.recv_like`.
    ///
    /// # Errors
    /// As [`Group::all_sum`].
    pub fn receive_like(self, like: &Array, from: usize) -> Result<Array> {
        let from = i32::try_from(from).unwrap_or(i32::MAX);
        call("receive", |result, group, stream| {
            // SAFETY: as in `all_sum`.
            unsafe { mlx_sys::mlx_distributed_recv_like(result, like.as_ptr(), from, group, stream) }
        })
    }

    /// The values of all processes in their order: for a few numbers of the host. Waits for all.
    ///
    /// # Errors
    /// As [`Group::all_sum`].
    pub fn all_gather_values(self, values: &[u32]) -> Result<Vec<u32>> {
        const OP: &str = "all_gather";
        let n = i32::try_from(values.len()).unwrap_or(i32::MAX);
        let gathered = self.all_gather(&Array::from_slice(values, &[n]))?;
        let mut all = Vec::with_capacity(values.len() * self.shard.n_ranks);
        super::backend::copy_out(OP, &gathered, &mut all)?;
        Ok(all)
    }
}

/// Calls a function that fills a handle. The ring computes on the CPU, so that is where its ops run.
fn call(
    op: &'static str,
    f: impl FnOnce(*mut mlx_array, mlx_distributed_group, mlx_stream) -> i32,
) -> Result<Array> {
    let stream = Stream::cpu();
    // SAFETY: makes an empty handle.
    let mut result = unsafe { mlx_sys::mlx_array_new() };
    let status = f(&mut result, mlx_distributed_group { ctx: std::ptr::null_mut() }, stream.as_ptr());
    // SAFETY: a live handle that nothing else owns: filled if the call succeeded, empty if not. The array frees it.
    let array = unsafe { Array::from_ptr(result) };
    if status == 0 {
        return Ok(array);
    }
    Err(Error::Fault { op, backend: NAME, why: "MLX refuses the arguments".to_owned() })
}
