//! Several GPUs that compute one model: each process has one.
//!
//! NCCL connects them. But its sums of few values, which a decoded token needs twice for each layer, take longer than the kernels
//! between them. And NCCL wants all ranks to record a step or none, which rank 0 cannot promise: it also looks into steps. So
//! tensors of few rows go through [`Mailboxes`], where the GPUs reach each other's memory.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use zmlx_core::{Error, Result, Shard};

use crate::NAME;
use crate::device::Device;
use crate::hex::{from_hex, to_hex};
use crate::mailboxes::{MailboxArgs, Mailboxes};
use crate::memory::Buffer;
use crate::nccl::{Connected, Nccl, Stream, UniqueId};
use crate::rows;
use crate::tensor::{CudaTensor, Shape, View, ensure};

/// Tells all ranks a text of one line, and returns the texts of all in the order of their numbers. Every rank calls it equally often.
pub type Exchange<'a> = &'a dyn Fn(&str) -> std::result::Result<Vec<String>, String>;

/// Tensors of so many rows go through mailboxes, and steps of so many tokens are recorded.
const MOST_ROWS: usize = 64;

/// How long NCCL may take to connect the GPUs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The GPUs that compute together, as one of them sees them.
pub struct Communicator {
    shard: Shard,
    connected: Connected,
    mailboxes: Option<Mailboxes>,
    nccl_version: String,
    device: Arc<Device>,
}

impl Communicator {
    /// Connects the GPU with those of the other ranks. Waits until all have called this.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no NCCL; [`Error::Fault`] if it cannot connect the GPUs.
    pub(crate) fn new(device: &Arc<Device>, shard: Shard, exchange: Exchange<'_>) -> Result<Self> {
        let nccl = Nccl::find()?;
        let nccl_version = nccl.version()?;
        let id = if shard.rank == 0 { to_hex(&nccl.unique_id()?.0) } else { String::new() };
        let ids = tell_all(exchange, &id)?;
        let id = from_hex(&ids[0]).ok_or_else(|| fault("ncclGetUniqueId", format!("got {:?}", ids[0])))?;
        let connected = connect(device, nccl, shard, UniqueId(id))?;
        let mailboxes = Mailboxes::open(device, shard, exchange)?;
        Ok(Self { shard, connected, mailboxes, nccl_version, device: Arc::clone(device) })
    }

    /// Which of the GPUs this one is.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// How the GPUs are connected, for people.
    pub fn description(&self) -> String {
        let directly = if self.open_mailboxes().is_some() {
            "which reach each other's memory"
        } else {
            "through NCCL only"
        };
        format!("{} GPUs, {directly}, NCCL {}", self.shard.n_ranks, self.nccl_version)
    }

    /// Whether a step of single tokens can be recorded, if the ranks share every layer: nothing of it goes through NCCL.
    pub(crate) fn can_be_recorded(&self, n_tokens: usize) -> bool {
        self.mailboxes_for(n_tokens).is_some()
    }

    /// Waits until all GPUs have reached this point.
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

    /// The stream, for an op of NCCL's.
    fn stream(&self) -> Stream {
        self.device.driver.stream_for_other_code()
    }

    /// `None` where the GPUs do not reach each other's memory.
    fn open_mailboxes(&self) -> Option<&Mailboxes> {
        self.mailboxes.as_ref().filter(|mailboxes| mailboxes.are_open)
    }

    /// The mailboxes for a tensor of so many rows. The choice depends on shapes alone, so that all ranks choose alike.
    fn mailboxes_for(&self, n_rows: usize) -> Option<&Mailboxes> {
        self.open_mailboxes().filter(|_| n_rows <= MOST_ROWS)
    }

    /// What a kernel of another op needs to sum up a tensor of `n_values` in `n_rows` rows itself; `None` if it cannot.
    pub(crate) fn mailbox_args(&self, n_rows: usize, n_values: usize) -> Option<MailboxArgs> {
        self.mailboxes_for(n_rows)?.args(n_values)
    }

    /// The sum of `x`, of `n_rows` rows, over all ranks, and `residual`.
    pub(crate) fn all_sum(&self, x: &View, n_rows: usize, residual: Option<&View>) -> Result<View> {
        let y = Buffer::scratch(&self.device, 4 * x.len)?;
        let view = View::whole(Arc::clone(&y), x.len);
        if let Some(mailboxes) = self.mailboxes_for(n_rows) {
            mailboxes.all_sum(x, residual, &y)?;
            return Ok(view);
        }
        self.device.driver.bind()?;
        // SAFETY: both have so many values.
        unsafe { self.connected.all_sum(x.at(), y.at(), x.len, self.stream())? };
        let Some(residual) = residual else { return Ok(view) };
        let sum = CudaTensor::ready(Shape::new("all_sum", &[x.len])?, view);
        rows::binary(&self.device, ("all_sum", "add"), &sum, (residual.at(), residual.len))?
            .view(&self.device)
    }

    /// The columns of all ranks side by side: `width` of each, `n` together. This one has `own`; the last rank may have fewer.
    pub(crate) fn gather_columns(&self, x: &View, [n_rows, own, width, n]: [usize; 4]) -> Result<View> {
        const OP: &str = "gather_columns";
        let n_ranks = self.shard.n_ranks;
        ensure(own <= width, OP, "x", format_args!("at most {width} columns"), own)?;
        ensure(n <= n_ranks * width, OP, "n", format_args!("at most {n_ranks} times {width}"), n)?;
        let y = Buffer::scratch(&self.device, 4 * n_rows * n)?;
        if let Some(mailboxes) = self.mailboxes_for(n_rows) {
            mailboxes.gather_columns(x, [n_rows, own, width, n], &y)?;
            return Ok(View::whole(y, n_rows * n));
        }
        let driver = &self.device.driver;
        driver.bind()?;
        let padded = Buffer::scratch(&self.device, 4 * n_rows * width)?;
        let all = Buffer::scratch(&self.device, 4 * n_ranks * n_rows * width)?;
        // SAFETY: rows of `own` values go into rows of `width`; the sender has n_rows of these, the receiver as many of each rank.
        unsafe {
            driver.copy_rows((padded.at(), 4 * width), (x.at(), 4 * own), 4 * own, n_rows)?;
            self.connected.all_gather(padded.at(), all.at(), n_rows * width, self.stream())?;
        }
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

/// Joins the ranks. NCCL itself would wait without an end for one that it cannot reach.
fn connect(device: &Arc<Device>, nccl: Nccl, shard: Shard, id: UniqueId) -> Result<Connected> {
    const OP: &str = "ncclCommInitRank";
    let (sender, receiver) = mpsc::channel();
    let device = Arc::clone(device);
    let join = move || {
        let _ = sender.send(device.driver.bind().and_then(|()| nccl.join(shard, id)));
    };
    let thread = std::thread::Builder::new().name("nccl".to_owned()).spawn(join);
    thread.map_err(|error| fault(OP, error.to_string()))?;
    let late = |_| {
        let why = "NCCL has not connected the GPUs within";
        let hint = "NCCL_DEBUG=WARN shows more, and NCCL_SOCKET_IFNAME chooses the network";
        fault(OP, format!("{why} {} seconds: {hint}", PATIENCE.as_secs()))
    };
    receiver.recv_timeout(PATIENCE).map_err(late)?
}

fn fault(op: &'static str, why: String) -> Error {
    Error::Fault { op, backend: NAME, why }
}

/// What all ranks say.
pub(crate) fn tell_all(exchange: Exchange<'_>, own: &str) -> Result<Vec<String>> {
    exchange(own).map_err(|why| fault("ranks", why))
}
