//! Mailboxes: memory of each GPU of a machine that the others write to.

use std::sync::Arc;

use zmlx_core::{Result, Shard};

use crate::communicator::{Exchange, tell_all};
use crate::compile::Unit;
use crate::device::Device;
use crate::driver::{Grid, IPC_HANDLE_BYTES};
use crate::hex::{from_hex, to_hex};
use crate::memory::Buffer;
use crate::tensor::View;

/// Most GPUs that have mailboxes; `MAX_RANKS` of the kernels.
const MAX_RANKS: usize = 8;
/// Values in a half of a sender's place. Longer tensors take several exchanges.
const CAPACITY: usize = 1 << 18;
/// Bytes of a value, which is beside the number of the exchange.
const VALUE_BYTES: usize = 8;
const HALVES: usize = 2;

/// The mailboxes of all ranks, as one of them reaches them.
pub(crate) struct Mailboxes {
    args: MailboxArgs,
    /// Of this GPU. Other ranks may have opened it even if mailboxes are not used, so it is kept.
    own: Arc<Buffer>,
    state: Arc<Buffer>,
    /// Whether all ranks reach each other's.
    pub(crate) are_open: bool,
}

/// `Mailboxes` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MailboxArgs {
    of_rank: [u64; MAX_RANKS],
    state: u64,
    rank: u32,
    n_ranks: u32,
    capacity: u32,
}

#[repr(C)]
struct AllSumArgs {
    mailboxes: MailboxArgs,
    x: u64,
    residual: u64,
    y: u64,
    n: u32,
}

#[repr(C)]
struct GatherColumnsArgs {
    mailboxes: MailboxArgs,
    x: u64,
    y: u64,
    own: u32,
    width: u32,
    n: u32,
    first: u32,
    end: u32,
}

/// All blocks are on the GPU at once: they wait for those of other ranks.
fn grid(device: &Device, n_values: usize) -> Grid {
    let blocks = n_values.div_ceil(256).min(device.driver.properties.n_multiprocessors as usize);
    Grid { blocks: [blocks, 1, 1], threads: 256, shared_bytes: 0, cluster: 1 }
}

/// The values of a tensor in parts that a mailbox has room for: where each begins and ends.
fn parts(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(CAPACITY).map(move |first| (first, (first + CAPACITY).min(n)))
}

impl Mailboxes {
    /// Opens the mailboxes of all ranks; `None` for ranks that have none: too many, or not all on one machine.
    pub(crate) fn open(device: &Arc<Device>, shard: Shard, exchange: Exchange<'_>) -> Result<Option<Self>> {
        let Shard { rank, n_ranks } = shard;
        // An address of another process's memory means something on the same machine only.
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let machines = tell_all(exchange, machine.trim())?;
        let are_together = machines.iter().all(|other| !other.is_empty() && *other == machines[0]);
        if n_ranks > MAX_RANKS || !are_together {
            return Ok(None);
        }
        let own = Buffer::lasting(device, HALVES * n_ranks * CAPACITY * VALUE_BYTES)?;
        let state = Buffer::lasting(device, 8)?;
        // Zeros are in place before another rank writes.
        device.driver.synchronize()?;
        let args = MailboxArgs {
            of_rank: [0; MAX_RANKS],
            state: state.at(),
            rank: rank as u32,
            n_ranks: n_ranks as u32,
            capacity: CAPACITY as u32,
        };
        let mut all = Self { args, own, state, are_open: false };
        let handle = device.driver.share(all.own.at()).map(|handle| to_hex(&handle)).unwrap_or_default();
        let handles = tell_all(exchange, &handle)?;
        let opened: Result<Vec<u64>> = (handles.iter().enumerate())
            .map(|(of, handle)| match from_hex::<IPC_HANDLE_BYTES>(handle) {
                _ if of == rank => Ok(all.own.at()),
                Some(handle) => device.driver.open_shared(&handle),
                None => Ok(0),
            })
            .collect();
        let opened = opened.inspect_err(|error| tracing::debug!("{error}")).unwrap_or_default();
        let are_open = opened.len() == n_ranks && !opened.contains(&0);
        if are_open {
            all.args.of_rank[..n_ranks].copy_from_slice(&opened);
        }
        all.are_open = all_say_yes(exchange, are_open)? && all.carry(exchange)?;
        Ok(Some(all))
    }

    /// Whether what this rank writes to the others arrives, and what they write here. A kernel would wait for it without an end.
    fn carry(&self, exchange: Exchange<'_>) -> Result<bool> {
        let device = self.own.device();
        let Self { args, own, state, .. } = self;
        let mark = |rank: usize| 0x5eed_0000 | rank as u32;
        let (rank, n_ranks) = (args.rank as usize, args.n_ranks as usize);
        state.write(0, &mark(rank).to_le_bytes())?;
        let send = |to: usize| {
            // SAFETY: the place of this rank in a mailbox, which the other rank keeps while it waits below.
            unsafe { device.driver.copy_within(args.of_rank[to] + 4 * rank as u64, state.at(), 4) }
        };
        let sent: Result<()> = (0..n_ranks).filter(|to| *to != rank).try_for_each(send);
        let sent = sent.inspect_err(|error| tracing::debug!("{error}")).is_ok();
        device.driver.synchronize()?;
        tell_all(exchange, "")?;
        let mut words: Vec<u32> = Vec::new();
        own.read(0, n_ranks, &mut words)?;
        let has_all = sent && (0..n_ranks).all(|from| from == rank || words[from] == mark(from));
        own.write(0, &vec![0; 4 * n_ranks])?;
        state.write(0, &[0; 8])?;
        device.driver.synchronize()?;
        all_say_yes(exchange, has_all)
    }

    /// What a kernel of another op needs to exchange `n_values` itself; `None` if they are too many for one exchange.
    pub(crate) fn args(&self, n_values: usize) -> Option<MailboxArgs> {
        (n_values <= CAPACITY).then_some(self.args)
    }

    /// The sum of `x` over all ranks, and a residual, into `y`.
    pub(crate) fn all_sum(&self, x: &View, residual: Option<&View>, y: &Buffer) -> Result<()> {
        for (first, end) in parts(x.len) {
            let at = |begin: u64| begin + 4 * first as u64;
            let args = AllSumArgs {
                mailboxes: self.args,
                x: at(x.at()),
                residual: residual.map_or(0, |residual| at(residual.at())),
                y: at(y.at()),
                n: (end - first) as u32,
            };
            // SAFETY: the struct is the kernel's; x, y and the residual have these values; a half of a place has room for them.
            unsafe { self.launch("all_sum", end - first, &args)? };
        }
        Ok(())
    }

    /// The columns of all ranks into `y`: `width` of each, `n` together. This one has `own`.
    pub(crate) fn gather_columns(
        &self,
        x: &View,
        [n_rows, own, width, n]: [usize; 4],
        y: &Buffer,
    ) -> Result<()> {
        for (first, end) in parts(n_rows * width) {
            let args = GatherColumnsArgs {
                mailboxes: self.args,
                x: x.at(),
                y: y.at(),
                own: own as u32,
                width: width as u32,
                n: n as u32,
                first: first as u32,
                end: end as u32,
            };
            // SAFETY: the struct is the kernel's; x has n_rows rows of `own` values, y as many of n; a half of a place has room for a
            // part.
            unsafe { self.launch("gather_columns", end - first, &args)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`Device::launch`].
    unsafe fn launch<A>(&self, kernel: &'static str, n_values: usize, args: &A) -> Result<()> {
        let device = self.own.device();
        // SAFETY: the caller's promise.
        unsafe { device.launch(kernel, (Unit::new(kernel, &[]), kernel), grid(device, n_values), args) }
    }
}

fn all_say_yes(exchange: Exchange<'_>, own: bool) -> Result<bool> {
    Ok(tell_all(exchange, if own { "yes" } else { "no" })?.iter().all(|said| said == "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_tensors_have_parts() {
        assert_eq!(parts(5).collect::<Vec<_>>(), [(0, 5)]);
        assert_eq!(parts(CAPACITY).collect::<Vec<_>>(), [(0, CAPACITY)]);
        let n = CAPACITY + 1;
        assert_eq!(parts(n).collect::<Vec<_>>(), [(0, CAPACITY), (CAPACITY, n)]);
        assert_eq!(parts(0).count(), 0);
    }
}
