//! How ranks find each other.

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use zmlx_kernels::Shard;
use zmlx_kernels::mlx::{Group, Runtime};
use zmlx_models::{Lead, Order};

use super::watch::{Farewell, Watch};
use super::{Parallel, Place, hostfile, words};

/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long another process on this machine may take to answer at a port.
const ANSWER: Duration = Duration::from_millis(300);

/// A process that has joined the others.
pub(super) struct Joined {
    group: Group,
    parallel: Parallel,
    watch: Arc<Watch>,
    /// Those of rank 0.
    orders: Mutex<mpsc::Receiver<String>>,
}

impl Joined {
    /// Joins the ranks that `place` describes.
    pub(super) fn new(place: &Place) -> Result<Self> {
        let Place { shard, parallel, addresses } = place;
        check_addresses(place)?;
        let (host, _) = hostfile::split(&addresses[shard.rank][0])?;
        let listener = TcpListener::bind((host, 0)).with_context(|| format!("{host}: no port is free"))?;
        let own = Card::new(addresses, listener.local_addr()?.port())?;
        let (sender, receiver) = mpsc::channel();
        let sent = own.words();
        // MLX waits for the others without an end.
        std::thread::Builder::new().name("group".to_owned()).spawn(move || {
            let joined = Group::ring().and_then(|group| Ok((group, group.all_gather_values(&sent)?)));
            let _ = sender.send(joined);
        })?;
        let joined = receiver.recv_timeout(PATIENCE).map_err(|_| {
            anyhow!(
                "the {} ranks did not find each other within {} seconds: each must run, with the same hostfile ({})",
                shard.n_ranks,
                PATIENCE.as_secs(),
                addresses.iter().map(|of_rank| of_rank.join("+")).collect::<Vec<_>>().join(", ")
            )
        })?;
        let (group, all) = joined?;
        ensure!(group.shard() == *shard, "MLX has made {:?} of {shard:?}", group.shard());
        let cards: Vec<_> = all.chunks_exact(own.words().len()).map(Card::read).collect();
        check_cards(&cards)?;
        let hosts =
            addresses.iter().map(|of_rank| hostfile::split(&of_rank[0]).map(|(host, _)| host.to_owned()));
        let hosts = hosts.collect::<Result<Vec<_>>>()?;
        let others: Vec<_> = hosts.into_iter().zip(cards.iter().map(|card| card.port)).collect();
        let (watch, orders) = Watch::new(*shard, &listener, &others)?;
        Ok(Self { group, parallel: *parallel, watch, orders: Mutex::new(orders) })
    }

    /// With what rank 0 tells the others what it does.
    pub(super) fn leader(&self) -> Arc<dyn Lead> {
        Arc::new(Leader(Arc::clone(&self.watch)))
    }

    /// From here on this rank does something before it ends for the failure of another.
    pub(super) fn set_farewell(&self, farewell: Farewell) {
        self.watch.set_farewell(farewell);
    }

    /// Waits for the next order of rank 0; none after the last one.
    pub(super) fn next_order(&self) -> Option<String> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    pub(super) fn group(&self) -> Group {
        self.group
    }

    pub(super) fn parallel(&self) -> Parallel {
        self.parallel
    }

    pub(super) fn shard(&self) -> Shard {
        self.group.shard()
    }

    pub(super) fn all_gather(&self, values: &[u32]) -> Result<Vec<u32>> {
        Ok(self.group.all_gather_values(values)?)
    }

    /// Ends the process: without an error once all ranks have come as far.
    pub(super) fn leave(&self, code: u8, error: Option<&str>) -> ! {
        let all_are_here = match error {
            Some(_) => Ok(()),
            None => {
                if self.shard().rank == 0 {
                    self.watch.order(None);
                }
                self.all_gather(&[0]).map(drop)
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

/// Checks what a rank can find out by itself: MLX would wait for others, or name no reason.
fn check_addresses(place: &Place) -> Result<()> {
    let resolve = |address: &str| -> Result<Vec<_>> {
        let at = hostfile::split(address)?.to_socket_addrs();
        Ok(at.with_context(|| format!("{address}: the host is not known"))?.collect())
    };
    for (rank, of_rank) in place.addresses.iter().enumerate() {
        for address in of_rank {
            let resolved = resolve(address)?;
            if rank != place.shard.rank {
                continue;
            }
            let mut is_own = false;
            for at in resolved {
                is_own |= TcpListener::bind((at.ip(), 0)).is_ok();
                let answer = TcpStream::connect_timeout(&at, ANSWER).ok();
                // A connection may be one with itself.
                if answer.is_some_and(|s| s.local_addr().ok() != s.peer_addr().ok()) {
                    bail!("{address}: the port is in use");
                }
            }
            ensure!(
                is_own,
                "{address}: the hostfile gives rank {rank} an address that this machine does not have"
            );
        }
    }
    Ok(())
}

/// What a rank tells the others of itself first. Its form must never change: ranks of different versions compare theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Card {
    /// Where it waits for its neighbour.
    port: u16,
    /// Of the addresses in its hostfile.
    hostfile: u32,
    /// Of this program and of MLX.
    version: String,
}

/// Bytes of a version.
const VERSION_BYTES: usize = 64;

impl Card {
    fn new(addresses: &[Vec<String>], port: u16) -> Result<Self> {
        let hostfile = words(&Sha256::digest(format!("{addresses:?}")))[0];
        let mut version =
            format!("zmlx {} with MLX {}", env!("CARGO_PKG_VERSION"), Runtime::start()?.version());
        version.truncate(VERSION_BYTES);
        Ok(Self { port, hostfile, version })
    }

    fn words(&self) -> Vec<u32> {
        let mut version = self.version.clone().into_bytes();
        version.resize(VERSION_BYTES, b' ');
        [vec![self.port.into(), self.hostfile], words(&version)].concat()
    }

    fn read(words: &[u32]) -> Self {
        let version: Vec<u8> = words[2..].iter().flat_map(|word| word.to_be_bytes()).collect();
        Self {
            port: words[0] as u16,
            hostfile: words[1],
            version: String::from_utf8_lossy(&version).trim_end().to_owned(),
        }
    }
}

fn check_cards(cards: &[Card]) -> Result<()> {
    let Some(first) = cards.first() else { bail!("there are no ranks") };
    for (rank, card) in cards.iter().enumerate() {
        let [of_0, own] = [first, card].map(|card| &card.version);
        ensure!(of_0 == own, "the versions differ: rank 0 is {of_0}, rank {rank} is {own}");
        ensure!(first.hostfile == card.hostfile, "the hostfile of rank {rank} is not that of rank 0");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_compare_their_cards() {
        let addresses = [vec!["a:1".to_owned()], vec!["b:1".to_owned()]];
        let card = Card::new(&addresses, 65_535).unwrap();
        assert_eq!(Card::read(&card.words()), card);
        check_cards(&[card.clone(), Card { port: 3, ..card.clone() }]).unwrap();
        let older = Card { version: "zmlx 0.1.0 with MLX 0.31.0".to_owned(), ..card.clone() };
        let error = check_cards(&[card.clone(), card.clone(), older]).unwrap_err().to_string();
        assert!(error.contains("rank 2 is zmlx 0.1.0 with MLX 0.31.0"), "{error}");
        let other = Card { hostfile: card.hostfile ^ 1, ..card.clone() };
        assert!(check_cards(&[card, other]).unwrap_err().to_string().contains("hostfile of rank 1"));
    }
}
