//! Several processes that compute one model together: ranks, started by `zmlx launch` or by MLX's own launcher.
//!
//! A rank finds its number in the environment as `MLX_RANK`, and the addresses of all in the file that `MLX_HOSTFILE` names. It
//! first connects to its two neighbours ([`watch`]): over these connections ranks compare what they are, rank 0 tells the others
//! what to compute, a rank says how it ended, and its silence is its death. Sums are the backend's: they go over MLX's ring, at
//! the same addresses, or over NCCL. Both wait forever for a rank that has died.

pub(crate) mod hostfile;
mod meeting;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use zmlx_kernels::{Backend, Fusion, Shard};
use zmlx_models::{Checkpoint, Lead, Model, Order};

use crate::output;
use meeting::Joined;

/// The process's number.
pub(crate) const MLX_RANK: &str = "MLX_RANK";
/// The file with the addresses of all.
pub(crate) const MLX_HOSTFILE: &str = "MLX_HOSTFILE";

/// The environment variable that says how ranks share a model: `tensor` or `pipeline`.
pub(crate) const ZMLX_PARALLEL: &str = "ZMLX_PARALLEL";

/// How ranks share a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Parallel {
    /// Each rank computes a part of every layer.
    #[default]
    Tensor,
    /// Each rank computes some of the layers.
    Pipeline,
}

impl Parallel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::Pipeline => "pipeline",
        }
    }
}

/// How the ranks share the model, as the environment says it.
fn parallel_of_environment() -> Result<Parallel> {
    let Some(value) = variable(ZMLX_PARALLEL) else { return Ok(Parallel::default()) };
    let known = [Parallel::Tensor, Parallel::Pipeline].into_iter().find(|known| value == known.name());
    known.with_context(|| format!("{ZMLX_PARALLEL}: expected tensor or pipeline, got {value:?}"))
}

/// Commands that several ranks can run.
pub(crate) const COMMANDS: [&str; 4] = ["bench", "generate", "logits", "serve"];

/// The commands in a sentence.
pub(crate) fn commands() -> String {
    COMMANDS.join(", ").replace(", serve", " and serve")
}

static JOINED: OnceLock<Joined> = OnceLock::new();

/// What the environment says of this process.
#[derive(Debug)]
struct Place {
    shard: Shard,
    parallel: Parallel,
    /// Of each rank, as `host:port`.
    addresses: Vec<Vec<String>>,
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// True for a rank other than 0, which prints errors only.
pub(crate) fn is_silent() -> bool {
    let is_other = variable(MLX_RANK).is_some_and(|rank| rank != "0");
    is_other && variable(MLX_HOSTFILE).is_some()
}

/// Reads the environment; `None` for a process that is alone.
fn place() -> Result<Option<Place>> {
    let (rank, hostfile) = match (variable(MLX_RANK), variable(MLX_HOSTFILE)) {
        // MLX's launcher sets the first one whatever connects the ranks.
        (Some(_), None) => bail!(
            "{MLX_RANK} is set and {MLX_HOSTFILE} is not: it names the file with the addresses of all ranks"
        ),
        (None, _) => return Ok(None),
        (Some(rank), Some(hostfile)) => (rank, PathBuf::from(hostfile)),
    };
    let rank: Option<usize> = rank.to_str().and_then(|rank| rank.parse().ok());
    let rank =
        rank.with_context(|| format!("{MLX_RANK}: expected a number, got {:?}", variable(MLX_RANK)))?;
    let addresses = hostfile::addresses(&hostfile).with_context(|| format!("rank {rank}"))?;
    if addresses.len() < 2 {
        return Ok(None);
    }
    let n_ranks = addresses.len();
    ensure!(
        rank < n_ranks,
        "{MLX_RANK} is {rank}, but {} has the addresses of {n_ranks} ranks",
        hostfile.display()
    );
    let parallel = parallel_of_environment().with_context(|| format!("rank {rank}"))?;
    Ok(Some(Place { shard: Shard { rank, n_ranks }, parallel, addresses }))
}

/// Joins the other ranks, if this process has any.
///
/// # Errors
/// If the environment or the hostfile is wrong, the ranks do not find each other in time, or they are of other versions.
pub(crate) fn join(command: &str) -> Result<()> {
    let Some(place) = place()? else { return Ok(()) };
    let Shard { rank, n_ranks } = place.shard;
    ensure!(
        COMMANDS.contains(&command),
        "rank {rank}: {n_ranks} ranks can run {}, not {command}",
        commands()
    );
    let joined = Joined::new(place).with_context(|| format!("rank {rank}"))?;
    // From here on an error reaches the others.
    JOINED.get_or_init(|| joined).compare()?;
    if rank > 0 {
        crate::interrupt::leave_to_rank_0()?;
    }
    Ok(())
}

/// How the ranks share the model, if this process is one of several.
pub(crate) fn parallel() -> Option<Parallel> {
    JOINED.get().map(Joined::parallel)
}

/// The ranks before this one on the same machine.
#[cfg(all(target_os = "linux", feature = "cuda"))]
pub(crate) fn n_before_on_host() -> usize {
    JOINED.get().map_or(0, Joined::n_before_on_host)
}

/// From here on ranks that end without an error wait for each other with this.
pub(crate) fn set_barrier(barrier: impl Fn() -> Result<()> + Send + Sync + 'static) {
    if let Some(joined) = JOINED.get() {
        joined.set_barrier(Box::new(barrier));
    }
}

/// What each rank says, in their order: a text of one line. Alone, what this process says.
pub(crate) fn gather(own: &str) -> Result<Vec<String>> {
    JOINED.get().map_or_else(|| Ok(vec![own.to_owned()]), |joined| joined.gather(own))
}

/// Checks that all ranks say the same of something.
pub(crate) fn agree_on(what: &str, own: &str) -> Result<()> {
    let all = gather(own)?;
    for (rank, of_rank) in all.iter().enumerate() {
        ensure!(*of_rank == all[0], "the {what} of rank {rank} is {of_rank}, that of rank 0 is {}", all[0]);
    }
    Ok(())
}

/// Which rank this process is, if it is one of several.
pub(crate) fn shard() -> Option<Shard> {
    JOINED.get().map(|joined| joined.shard())
}

/// Whether this process does what rank 0 tells it.
pub(crate) fn is_follower() -> bool {
    shard().is_some_and(|shard| shard.rank > 0)
}

/// The channel through which the model of rank 0 leads those of the others; `None` for a process that is alone or follows.
pub(crate) fn leader() -> Option<Arc<dyn Lead>> {
    JOINED.get().filter(|joined| joined.shard().rank == 0).map(Joined::leader)
}

/// Lets the model of rank 0 lead those of the others. On the others it follows until rank 0 has done its work, and returns true.
///
/// # Errors
/// If this rank cannot do what rank 0 does.
pub(crate) fn follows<B: Backend>(model: &mut Model<B>, fusion: &Fusion) -> Result<bool> {
    if let Some(leader) = leader() {
        model.lead(leader);
    }
    let Some(joined) = JOINED.get().filter(|joined| joined.shard().rank > 0) else { return Ok(false) };
    let mut unreadable = None;
    let next = || {
        let order = serde_json::from_str::<Order>(&joined.next_order()?);
        order.map_err(|error| unreadable = Some(error)).ok()
    };
    zmlx_models::follow(model, fusion, next)?;
    match unreadable {
        Some(error) => Err(error).context("an order of rank 0 cannot be read"),
        None => Ok(true),
    }
}

/// The smallest of the numbers of all ranks.
pub(crate) fn least(n: u64) -> Result<u64> {
    let all = gather(&n.to_string())?;
    let numbers = all.iter().map(|of_rank| of_rank.parse::<u64>()).collect::<Result<Vec<_>, _>>()?;
    Ok(numbers.into_iter().min().unwrap_or(n))
}

/// Says what this process does when another rank has failed, before it ends: it is told why.
pub(crate) fn before_failure(farewell: impl Fn(&str) + Send + Sync + 'static) {
    if let Some(joined) = JOINED.get() {
        joined.set_farewell(Box::new(farewell));
    }
}

/// Checks that all ranks have opened the same checkpoint and do the same work, which a text describes.
pub(crate) fn agree(checkpoint: &Checkpoint, work: &str) -> Result<()> {
    let Some(joined) = JOINED.get() else { return Ok(()) };
    let work = format!("{work} {}", joined.parallel().name());
    let own = format!("{} {}", hex(&checkpoint.fingerprint()), hex(&Sha256::digest(work)));
    let all = joined.gather(&own)?;
    let parts = |of_rank: &str| of_rank.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    let of_rank_0 = parts(&all[0]).unwrap_or_default();
    for (rank, of_rank) in all.iter().enumerate() {
        let (its_checkpoint, its_work) = parts(of_rank).unwrap_or_default();
        let name = checkpoint.name();
        ensure!(
            its_checkpoint == of_rank_0.0,
            "the checkpoint of rank {rank} is not that of rank 0 ({name})"
        );
        ensure!(its_work == of_rank_0.1, "the arguments of rank {rank} are not those of rank 0");
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ends a process that is one of several ranks: all end together, or for the error of one. Returns if the process is alone.
pub(crate) fn leave(code: u8, error: Option<&str>) {
    if let Some(joined) = JOINED.get() {
        joined.leave(code, error);
    }
}

/// Ends the process without destructors: after a failure, those of a group of ranks would wait for ever.
fn exit(code: u8) -> ! {
    use std::io::Write;
    output::remove_temporary();
    let _ = std::io::stdout().flush();
    #[cfg(unix)]
    signal_hook::low_level::exit(code.into());
    #[cfg(not(unix))]
    std::process::exit(code.into());
}
