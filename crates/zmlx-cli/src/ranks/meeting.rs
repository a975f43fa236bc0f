//! How ranks find each other.

use std::io::ErrorKind;
use std::net::{TcpListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use zmlx_kernels::Shard;
use zmlx_models::{Lead, Order};

use super::watch::{Farewell, Watch};
use super::{Parallel, Place, hex, hostfile};

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(8);

/// Waits until all ranks and their devices have reached this point.
pub(crate) type Barrier = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// A process that has joined the others.
pub(super) struct Joined {
    place: Place,
    watch: Arc<Watch>,
    /// Those of rank 0.
    orders: Mutex<mpsc::Receiver<String>>,
    /// Set once a backend has connected the devices.
    barrier: OnceLock<Barrier>,
    /// What the ranks told each other first.
    greetings: Vec<String>,
}

impl Joined {
    /// Joins the ranks that `place` describes.
    pub(super) fn new(place: Place) -> Result<Self> {
        let until = Instant::now() + PATIENCE;
        let listener = own_listener(&place)?;
        let addresses = place.addresses.iter().map(|of_rank| hostfile::split(&of_rank[0]));
        let addresses = addresses.collect::<Result<Vec<_>>>()?;
        let met = Watch::new(place.shard, listener, &addresses, until).and_then(|(watch, orders)| {
            let own = format!("{} zmlx {}", hash(&place.addresses), env!("CARGO_PKG_VERSION"));
            let greetings = watch.gather(&own, Some(until))?;
            Ok((watch, orders, greetings))
        });
        let (watch, orders, greetings) = met.map_err(|error| {
            anyhow!(
                "the {} ranks did not find each other within {} seconds ({error:#}): each must run, with the same hostfile ({})",
                place.shard.n_ranks,
                PATIENCE.as_secs(),
                place.addresses.iter().map(|of_rank| of_rank.join("+")).collect::<Vec<_>>().join(", ")
            )
        })?;
        Ok(Self { place, watch, orders: Mutex::new(orders), barrier: OnceLock::new(), greetings })
    }

    /// Checks that all ranks have the same hostfile and version.
    pub(super) fn compare(&self) -> Result<()> {
        compare(&self.greetings)
    }

    /// The channel through which rank 0 tells the others what it does.
    pub(super) fn leader(&self) -> Arc<dyn Lead> {
        Arc::new(Leader(Arc::clone(&self.watch)))
    }

    /// From here on this rank does something before it ends for the failure of another.
    pub(super) fn set_farewell(&self, farewell: Farewell) {
        self.watch.set_farewell(farewell);
    }

    /// From here on ranks wait for each other's devices before they end.
    pub(super) fn set_barrier(&self, barrier: Barrier) {
        // A process has one backend.
        let _ = self.barrier.set(barrier);
    }

    /// Waits for the next order of rank 0; none after the last one.
    pub(super) fn next_order(&self) -> Option<String> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    pub(super) fn parallel(&self) -> Parallel {
        self.place.parallel
    }

    pub(super) fn shard(&self) -> Shard {
        self.place.shard
    }

    /// The ranks before this one that have the same host.
    #[cfg(all(target_os = "linux", feature = "cuda"))]
    pub(super) fn n_before_on_host(&self) -> usize {
        n_before_on_host(&self.place.addresses, self.shard().rank)
    }

    /// What each rank says, in their order. A text has one line.
    pub(super) fn gather(&self, own: &str) -> Result<Vec<String>> {
        self.watch.gather(own, None)
    }

    /// Ends the process: without an error once all ranks have reached this point.
    pub(super) fn leave(&self, code: u8, error: Option<&str>) -> ! {
        let all_are_here = match error {
            Some(_) => Ok(()),
            None => {
                if self.shard().rank == 0 {
                    self.watch.order(None);
                }
                match self.barrier.get() {
                    Some(barrier) => barrier(),
                    None => self.gather("").map(drop),
                }
            }
        };
        match all_are_here {
            Ok(()) => self.watch.leave(code, error),
            Err(fault) => self.watch.leave(2, Some(&fault.to_string())),
        }
    }
}

/// Rank 0, as its model sees it.
struct Leader(Arc<Watch>);

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Leader")
    }
}

impl Lead for Leader {
    fn tell(&self, order: &Order) {
        match serde_json::to_string(order) {
            Ok(order) => self.0.order(Some(&order)),
            Err(error) => self.0.fail(&format!("an order of rank 0 cannot be written: {error}")),
        }
    }

    fn give_up(&self, error: &zmlx_models::Error) {
        self.0.fail(&format!("a step of rank 0 has failed: {error}"));
    }
}

/// Listens at the rank's first address. Also checks what a rank can find out by itself of the others: a backend would wait for
/// ranks that cannot come.
fn own_listener(place: &Place) -> Result<TcpListener> {
    let mut own = Vec::new();
    for (rank, of_rank) in place.addresses.iter().enumerate() {
        for address in of_rank {
            let (host, port) = hostfile::split(address)?;
            (host, port).to_socket_addrs().with_context(|| format!("{address}: the host is not known"))?;
            if rank == place.shard.rank {
                own.push(TcpListener::bind((host, port)).map_err(|error| match error.kind() {
                    ErrorKind::AddrInUse => anyhow!("{address}: the port is in use"),
                    ErrorKind::AddrNotAvailable => anyhow!(
                        "{address}: the hostfile gives rank {rank} an address that this machine does not have"
                    ),
                    _ => anyhow!("{address}: {error}"),
                })?);
            }
        }
    }
    own.into_iter().next().context("the hostfile has no address for this rank")
}

#[cfg(any(test, all(target_os = "linux", feature = "cuda")))]
fn n_before_on_host(addresses: &[Vec<String>], rank: usize) -> usize {
    let host = |of_rank: &Vec<String>| hostfile::split(&of_rank[0]).ok().map(|(host, _)| host.to_owned());
    addresses[..rank].iter().filter(|of_rank| host(of_rank) == host(&addresses[rank])).count()
}

fn hash(addresses: &[Vec<String>]) -> String {
    hex(&Sha256::digest(format!("{addresses:?}"))[..4])
}

/// Compares what the ranks tell each other first: the hash of the addresses in their hostfiles, and their versions. Its form must
/// never change, as ranks of different versions read it.
fn compare(greetings: &[String]) -> Result<()> {
    let parts = |greeting: &String| greeting.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    let Some((hostfile, version)) = greetings.first().and_then(parts) else { bail!("rank 0 says nothing") };
    for (rank, greeting) in greetings.iter().enumerate() {
        let (of_rank, own) = parts(greeting).with_context(|| format!("rank {rank} says {greeting:?}"))?;
        ensure!(version == own, "the versions differ: rank 0 is {version}, rank {rank} is {own}");
        ensure!(hostfile == of_rank, "the hostfile of rank {rank} is not that of rank 0");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_compare_their_greetings() {
        let greet = |of: [&str; 3]| compare(&of.map(str::to_owned));
        greet(["1 zmlx 0.2.0", "1 zmlx 0.2.0", "1 zmlx 0.2.0"]).unwrap();
        let error = greet(["1 zmlx 0.2.0", "1 zmlx 0.2.0", "1 zmlx 0.1.0"]).unwrap_err().to_string();
        assert!(error.contains("rank 0 is zmlx 0.2.0, rank 2 is zmlx 0.1.0"), "{error}");
        let error = greet(["1 zmlx 0.2.0", "2 zmlx 0.2.0", "1 zmlx 0.2.0"]).unwrap_err().to_string();
        assert!(error.contains("hostfile of rank 1"), "{error}");
        assert!(greet(["1 zmlx 0.2.0", "", ""]).is_err());
    }

    #[test]
    fn ranks_of_a_host_are_counted() {
        let addresses =
            ["127.0.0.1:1", "127.0.0.2:1", "127.0.0.1:2", "127.0.0.1:3"].map(|a| vec![a.to_owned()]);
        let counts = [0, 1, 2, 3].map(|rank| n_before_on_host(&addresses, rank));
        assert_eq!(counts, [0, 0, 1, 2]);
    }
}
