//! Several GPUs that compute one model: each process has one.
//!
//! NCCL connects them. Sums of few values, of which a decoded token needs two for each layer, take NCCL longer than the kernels
//! between them. So where the GPUs reach each other's memory, those go through mailboxes there, with a kernel of our own.

use std::sync::Arc;

use zmlx_core::{Error, Result, Shard};

use crate::NAME;
use crate::compile::Unit;
use crate::device::Device;
use crate::driver::{Grid, IPC_HANDLE_BYTES};
use crate::memory::Buffer;
use crate::nccl::{Connected, Nccl, UniqueId};
use crate::rows;
use crate::tensor::{CudaTensor, Shape, View, ensure};

/// Tells all ranks a text of one line, and returns those of all in the order of their numbers. Every rank calls it equally often.
pub type Exchange<'a> = &'a dyn Fn(&str) -> std::result::Result<Vec<String>, String>;

/// Most ranks whose sums go through mailboxes; `MAX_RANKS` of the kernel.
const MAX_RANKS: usize = 8;
/// Most pairs of values that a GPU sends another one for a sum through mailboxes.
const CAPACITY: usize = 1 << 17;
/// Bytes of a pair in a mailbox: each value is beside the number of the sum.
const PAIR_BYTES: usize = 16;
/// A sender writes to the halves of its place in turn.
const HALVES: usize = 2;

/// The GPUs that compute together, as one of them sees them.
pub struct Communicator {
    shard: Shard,
    connected: Connected,
    /// `None` where the GPUs do not reach each other's memory.
    mailboxes: Option<Mailboxes>,
    nccl_version: String,
    device: Arc<Device>,
}

/// Memory of each GPU that the others write to.
struct Mailboxes {
    /// Addresses by rank, 0 for those that are not.
    at: [u64; MAX_RANKS],
    /// Of this GPU.
    _own: Arc<Buffer>,
    state: Arc<Buffer>,
}

#[repr(C)]
struct AllSumArgs {
    x: u64,
    residual: u64,
    y: u64,
    mailboxes: [u64; MAX_RANKS],
    state: u64,
    n: u32,
    rank: u32,
    n_ranks: u32,
    capacity: u32,
}

impl Communicator {
    /// Connects the GPU with those of the other ranks. Waits until all have called this.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no NCCL; [`Error::Fault`] if it cannot connect the GPUs.
    pub(crate) fn new(device: &Arc<Device>, shard: Shard, exchange: Exchange<'_>) -> Result<Self> {
        let nccl = Nccl::find()?;
        let nccl_version = nccl.version()?;
        device.driver.bind()?;
        let id = if shard.rank == 0 { to_hex(&nccl.unique_id()?.0) } else { String::new() };
        let ids = told(exchange, &id)?;
        let id = from_hex(&ids[0]).ok_or_else(|| fault("ncclGetUniqueId", format!("got {:?}", ids[0])))?;
        let connected = nccl.join(shard, UniqueId(id))?;
        let mailboxes = Mailboxes::new(device, shard, exchange)?;
        Ok(Self { shard, connected, mailboxes, nccl_version, device: Arc::clone(device) })
    }

    /// Which of the GPUs this one is.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// How the GPUs are connected, for people.
    pub fn description(&self) -> String {
        let n = self.shard.n_ranks;
        let through = if self.mailboxes.is_some() { "direct sums" } else { "no direct sums" };
        format!("{n} GPUs, NCCL {}, {through}", self.nccl_version)
    }

    /// Waits until all GPUs have come as far.
    ///
    /// # Errors
    /// A device fault.
    pub fn wait_for_all(&self) -> Result<()> {
        self.device.driver.bind()?;
        let buffer = Buffer::lasting(&self.device, 4)?;
        // SAFETY: one value, which stays until the stream has come past this.
        unsafe { self.connected.all_sum(buffer.at(), buffer.at(), 1, self.stream())? };
        self.device.driver.synchronize()
    }

    /// The stream, for an op that is not ours.
    fn stream(&self) -> crate::nccl::Stream {
        self.device.driver.foreign()
    }

    /// The sum of `x` over all ranks, and `residual`.
    pub(crate) fn all_sum(&self, x: &View, residual: Option<&View>) -> Result<View> {
        let y = Buffer::scratch(&self.device, 4 * x.len)?;
        let view = View::whole(Arc::clone(&y), x.len);
        let n_pairs = x.len.div_ceil(2);
        match &self.mailboxes {
            Some(mailboxes) if n_pairs * (self.shard.n_ranks - 1) <= CAPACITY => {
                let args = AllSumArgs {
                    x: x.at(),
                    residual: residual.map_or(0, View::at),
                    y: y.at(),
                    mailboxes: mailboxes.at,
                    state: mailboxes.state.at(),
                    n: x.len as u32,
                    rank: self.shard.rank as u32,
                    n_ranks: self.shard.n_ranks as u32,
                    capacity: CAPACITY as u32,
                };
                let blocks = n_pairs.div_ceil(256).min(128);
                let grid = Grid { blocks: [blocks, 1, 1], threads: 256, shared_bytes: 0, cluster: 1 };
                // SAFETY: the struct is the kernel's; x, y and the residual have n values; a half of a place has room for the pairs.
                unsafe {
                    self.device.launch("all_sum", (Unit::new("all_sum", &[]), "all_sum"), grid, &args)?
                };
                Ok(view)
            }
            _ => {
                self.device.driver.bind()?;
                // SAFETY: both have so many values.
                unsafe { self.connected.all_sum(x.at(), y.at(), x.len, self.stream())? };
                let Some(residual) = residual else { return Ok(view) };
                let sum = CudaTensor::ready(Shape::new("all_sum", &[x.len])?, view);
                rows::binary(&self.device, ("all_sum", "add"), &sum, (residual.at(), residual.len))?
                    .view(&self.device)
            }
        }
    }

    /// The columns of all ranks, `width` of each, `n` together; the last rank may have fewer. `own` is this rank's number.
    pub(crate) fn gather_columns(&self, x: &View, [n_rows, own, width, n]: [usize; 4]) -> Result<View> {
        const OP: &str = "gather_columns";
        let n_ranks = self.shard.n_ranks;
        ensure(own <= width, OP, "x", format_args!("at most {width} columns"), own)?;
        ensure(n <= n_ranks * width, OP, "n", format_args!("at most {n_ranks} times {width}"), n)?;
        let driver = &self.device.driver;
        driver.bind()?;
        let (from, _padded) = if own < width {
            let padded = Buffer::scratch(&self.device, 4 * n_rows * width)?;
            // SAFETY: rows of `own` values go into rows of `width`.
            unsafe { driver.copy_rows((padded.at(), 4 * width), (x.at(), 4 * own), 4 * own, n_rows)? };
            (padded.at(), Some(padded))
        } else {
            (x.at(), None)
        };
        let all = Buffer::scratch(&self.device, 4 * n_ranks * n_rows * width)?;
        // SAFETY: the sender has n_rows rows of width, the receiver as many of each rank.
        unsafe { self.connected.all_gather(from, all.at(), n_rows * width, self.stream())? };
        if n_rows == 1 {
            return Ok(View { len: n, segment: n, stride: n, ..View::whole(all, n_ranks * width) });
        }
        let y = Buffer::scratch(&self.device, 4 * n_rows * n)?;
        for rank in 0..n_ranks {
            let first = rank * width;
            let columns = width.min(n.saturating_sub(first));
            let to = (y.at() + 4 * first as u64, 4 * n);
            let from = (all.at() + 4 * (rank * n_rows * width) as u64, 4 * width);
            // SAFETY: the columns lie within the rows of both.
            unsafe { driver.copy_rows(to, from, 4 * columns, n_rows)? };
        }
        Ok(View::whole(y, n_rows * n))
    }

    /// `n` indices of rank 0. Those of other ranks do not count.
    pub(crate) fn of_rank_0(&self, own: u64, n: usize) -> Result<Arc<Buffer>> {
        self.device.driver.bind()?;
        let all = Buffer::scratch(&self.device, 4 * n)?;
        // SAFETY: both have n values.
        unsafe { self.connected.of_rank_0(own, all.at(), n, self.stream())? };
        Ok(all)
    }

    /// Sends values to another rank.
    pub(crate) fn send(&self, x: &View, to: usize) -> Result<()> {
        self.device.driver.bind()?;
        // SAFETY: the view has so many values, and the stream is in order: nothing writes there before they are sent.
        unsafe { self.connected.send(x.at(), x.len, to, self.stream()) }
    }

    /// What another rank sends.
    pub(crate) fn receive(&self, n: usize, from: usize) -> Result<View> {
        self.device.driver.bind()?;
        let y = Buffer::scratch(&self.device, 4 * n)?;
        // SAFETY: there is room for so many values.
        unsafe { self.connected.receive(y.at(), n, from, self.stream())? };
        Ok(View::whole(y, n))
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Mailboxes {
    /// Opens the memory of all ranks; `None` if one of them cannot open that of another.
    fn new(device: &Arc<Device>, shard: Shard, exchange: Exchange<'_>) -> Result<Option<Self>> {
        let Shard { rank, n_ranks } = shard;
        let own = Buffer::lasting(device, HALVES * n_ranks * CAPACITY * PAIR_BYTES)?;
        let state = Buffer::lasting(device, 8)?;
        // Zeros are in place before another rank writes.
        device.driver.synchronize()?;
        let handle = device.driver.share(own.at()).map(|handle| to_hex(&handle)).unwrap_or_default();
        // A handle means something on the same machine only.
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let own_card = format!("{}:{handle}", machine.trim());
        let cards = told(exchange, &own_card)?;
        let mut at = [0; MAX_RANKS];
        let mut is_open = n_ranks <= MAX_RANKS && !machine.is_empty();
        for (of, card) in cards.iter().enumerate().take(MAX_RANKS) {
            if of == rank {
                at[of] = own.at();
                continue;
            }
            let handle = card.strip_prefix(machine.trim()).and_then(|card| card.strip_prefix(':'));
            let opened = handle.and_then(from_hex).and_then(|handle: [u8; IPC_HANDLE_BYTES]| {
                device
                    .driver
                    .open_shared(&handle)
                    .inspect_err(|error| tracing::debug!("rank {of}: {error}"))
                    .ok()
            });
            at[of] = opened.unwrap_or(0);
            is_open &= at[of] != 0;
        }
        let all_are_open =
            told(exchange, if is_open { "open" } else { "closed" })?.iter().all(|s| s == "open");
        Ok(all_are_open.then_some(Self { at, _own: own, state }))
    }
}

fn fault(op: &'static str, why: String) -> Error {
    Error::Fault { op, backend: NAME, why }
}

fn told(exchange: Exchange<'_>, own: &str) -> Result<Vec<String>> {
    exchange(own).map_err(|why| fault("ranks", why))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_as_text() {
        let bytes = [0, 255, 16, 7];
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex::<4>("00ff1"), None);
        assert_eq!(from_hex::<2>("00fg"), None);
        assert_eq!(from_hex::<2>("+0ff"), None);
        assert_eq!(from_hex::<1>("é"), None);
    }
}
