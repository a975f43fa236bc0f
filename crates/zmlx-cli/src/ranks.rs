//! Several processes that compute one model together: ranks, started by `zmlx launch` or by MLX's own launcher.
//!
//! A rank finds its number in the environment as `MLX_RANK`, and the addresses of all in the file that `MLX_HOSTFILE` names. The
//! sums go over MLX's ring, whose ops wait forever for a rank that has died. So each rank also holds a connection to its two
//! neighbours ([`watch`]): over it rank 0 tells the others what to compute, a rank says how it ended, and its silence is its death.

#[cfg(any(target_os = "macos", feature = "mlx"))]
mod group;
pub(crate) mod hostfile;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use zmlx_kernels::{Backend, Fusion, Shard};
use zmlx_models::{Checkpoint, Model, Order};

use crate::output;

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
fn parallel() -> Result<Parallel> {
    let Some(value) = variable(ZMLX_PARALLEL) else { return Ok(Parallel::default()) };
    let known = [Parallel::Tensor, Parallel::Pipeline].into_iter().find(|known| value == known.name());
    known.with_context(|| format!("{ZMLX_PARALLEL}: expected tensor or pipeline, got {value:?}"))
}

/// Commands that several ranks can run.
pub(crate) const COMMANDS: [&str; 3] = ["generate", "logits", "serve"];

/// The commands in a sentence.
pub(crate) fn commands() -> String {
    COMMANDS.join(", ").replace(", serve", " and serve")
}

#[cfg(any(target_os = "macos", feature = "mlx"))]
static JOINED: OnceLock<group::Joined> = OnceLock::new();
#[cfg(not(any(target_os = "macos", feature = "mlx")))]
static JOINED: OnceLock<Never> = OnceLock::new();

/// In builds without MLX there is no group.
#[cfg(not(any(target_os = "macos", feature = "mlx")))]
enum Never {}

#[cfg(not(any(target_os = "macos", feature = "mlx")))]
impl Never {
    fn shard(&self) -> Shard {
        match *self {}
    }

    fn parallel(&self) -> Parallel {
        match *self {}
    }

    fn all_gather(&self, _: &[u32]) -> Result<Vec<u32>> {
        match *self {}
    }

    fn leader(&self) -> std::sync::Arc<dyn zmlx_models::Lead> {
        match *self {}
    }

    fn next_order(&self) -> Option<String> {
        match *self {}
    }

    fn set_farewell(&self, _: watch::Farewell) {
        match *self {}
    }

    fn leave(&self, _: u8, _: Option<&str>) -> ! {
        match *self {}
    }
}

/// What the environment says of this process.
#[derive(Debug)]
struct Place {
    shard: Shard,
    #[cfg_attr(
        not(any(target_os = "macos", feature = "mlx")),
        allow(dead_code, reason = "only MLX connects ranks")
    )]
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
            "{MLX_RANK} is set and {MLX_HOSTFILE} is not: of what connects MLX's processes, zmlx has the ring only"
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
    let parallel = parallel().with_context(|| format!("rank {rank}"))?;
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
    #[cfg(any(target_os = "macos", feature = "mlx"))]
    {
        let joined = group::Joined::new(&place).with_context(|| format!("rank {rank}"))?;
        let _ = JOINED.set(joined);
        if rank > 0 {
            crate::interrupt::leave_to_rank_0()?;
        }
        Ok(())
    }
    #[cfg(not(any(target_os = "macos", feature = "mlx")))]
    {
        let Place { addresses, .. } = place;
        bail!("rank {rank} of {}: this zmlx is built without MLX, which connects ranks", addresses.len())
    }
}

/// The group of MLX's, for a process that is one of several ranks, and how they share the model.
#[cfg(any(target_os = "macos", feature = "mlx"))]
pub(crate) fn group() -> Option<(zmlx_kernels::mlx::Group, Parallel)> {
    JOINED.get().map(|joined| (joined.group(), joined.parallel()))
}

/// Which rank this process is, if it is one of several.
pub(crate) fn shard() -> Option<Shard> {
    JOINED.get().map(|joined| joined.shard())
}

/// Whether this process does what rank 0 tells it.
pub(crate) fn is_follower() -> bool {
    shard().is_some_and(|shard| shard.rank > 0)
}

/// Lets the model of rank 0 lead those of the others. On the others it follows until rank 0 has done its work, and returns true.
///
/// # Errors
/// If this rank cannot do what rank 0 does.
pub(crate) fn follows<B: Backend>(model: &mut Model<B>, fusion: &Fusion) -> Result<bool> {
    let Some(joined) = JOINED.get() else { return Ok(false) };
    if joined.shard().rank == 0 {
        model.lead(joined.leader());
        return Ok(false);
    }
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
    let Some(joined) = JOINED.get() else { return Ok(n) };
    let all = joined.all_gather(&[(n >> 32) as u32, n as u32])?;
    let numbers = all.chunks_exact(2).map(|of| u64::from(of[0]) << 32 | u64::from(of[1]));
    Ok(numbers.min().unwrap_or(n))
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
    let own = [words(&checkpoint.fingerprint()), words(&Sha256::digest(work))].concat();
    let all = joined.all_gather(&own)?;
    let of_rank_0 = &all[..own.len()];
    for (rank, of_rank) in all.chunks_exact(own.len()).enumerate() {
        let [checkpoint_is, work_is] =
            [0..own.len() / 2, own.len() / 2..own.len()].map(|part| of_rank[part.clone()] == of_rank_0[part]);
        ensure!(checkpoint_is, "the checkpoint of rank {rank} is not that of rank 0 ({})", checkpoint.name());
        ensure!(work_is, "the arguments of rank {rank} are not those of rank 0");
    }
    Ok(())
}

/// The bytes as numbers that can be gathered.
fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks(4).map(word).collect()
}

/// Ends a process that is one of several ranks: all end together, or for the error of one. Returns if the process is alone.
pub(crate) fn leave(code: u8, error: Option<&str>) {
    if let Some(joined) = JOINED.get() {
        joined.leave(code, error);
    }
}

/// Ends the process without the destructors of MLX's group: after a failure they would wait for ever.
fn exit(code: u8) -> ! {
    use std::io::Write;
    output::remove_temporary();
    let _ = std::io::stdout().flush();
    #[cfg(unix)]
    signal_hook::low_level::exit(code.into());
    #[cfg(not(unix))]
    std::process::exit(code.into());
}
