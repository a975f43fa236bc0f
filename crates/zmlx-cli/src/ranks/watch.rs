//! A rank's connections to its neighbours in the ring: over them each hears what rank 0 does, and how the others end.
//!
//! Lines of text: an empty one each second, `do …` with an order of rank 0, `done` after the last one, `end` from a rank that has
//! done its work, `error …` from one that has failed. Orders go around the ring from rank 0 to the last rank. A rank that ends
//! without a word, or is silent for too long, has died. A rank that hears of a
//! failure passes it on to its other neighbour and ends.
#![cfg_attr(
    not(any(target_os = "macos", feature = "mlx")),
    allow(dead_code, reason = "only MLX connects ranks")
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use zmlx_kernels::Shard;

use super::exit;
use crate::output::note;

/// How long neighbours may take to connect, once MLX's ring stands.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a rank shows that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// A rank that was silent for so long has died.
const SILENCE: Duration = Duration::from_secs(8);
/// How long a rank may work after a neighbour has ended.
const AFTER_END: Duration = Duration::from_secs(4);
/// How long a rank that ends waits for its neighbours to end.
const LEAVING: Duration = Duration::from_secs(2);

/// What a rank does when another has failed, before it ends: it is told why.
pub(super) type Farewell = Box<dyn Fn(&str) + Send + Sync>;

/// The connections of a rank.
pub(super) struct Watch {
    shard: Shard,
    /// From the left and from the right neighbour.
    links: [TcpStream; 2],
    /// The same connections for writing: a line is written as a whole.
    writers: [Mutex<TcpStream>; 2],
    /// Where orders go; none after the last one.
    orders: Mutex<Option<mpsc::Sender<String>>>,
    farewell: OnceLock<Farewell>,
    /// Neighbours that have ended as they should.
    n_ended: AtomicUsize,
    /// Whether this rank ends, for whatever reason.
    is_over: AtomicBool,
}

impl Watch {
    /// Connects a rank with its neighbours. `listener` is its own; `others` has host and port of each rank's. Also returns the
    /// orders of rank 0.
    pub(super) fn new(
        shard: Shard,
        listener: &TcpListener,
        others: &[(String, u16)],
    ) -> Result<(Arc<Self>, mpsc::Receiver<String>)> {
        let Shard { rank, n_ranks } = shard;
        let [left, right] = [(rank + n_ranks - 1) % n_ranks, (rank + 1) % n_ranks];
        let to_right = connect(&others[right]).with_context(|| format!("no connection to rank {right}"))?;
        (&to_right).write_all(greeting(rank).as_bytes())?;
        let to_left = accept(listener, left)?;
        for link in [&to_left, &to_right] {
            link.set_nodelay(true)?;
            link.set_read_timeout(Some(SILENCE))?;
            link.set_write_timeout(Some(BEAT))?;
        }
        let (sender, orders) = mpsc::channel();
        let watch = Arc::new(Self {
            shard,
            writers: [Mutex::new(to_left.try_clone()?), Mutex::new(to_right.try_clone()?)],
            links: [to_left, to_right],
            orders: Mutex::new(Some(sender)),
            farewell: OnceLock::new(),
            n_ended: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        for (link, neighbour) in [(0, left), (1, right)] {
            let watch = Arc::clone(&watch);
            spawn(move || watch.listen(link, neighbour))?;
        }
        let beating = Arc::clone(&watch);
        spawn(move || {
            loop {
                std::thread::sleep(BEAT);
                beating.tell("\n");
            }
        })?;
        Ok((watch, orders))
    }

    /// Writes a line to one neighbour. Returns false if it cannot be told; it is then found dead where it is heard.
    fn write(&self, link: usize, line: &str) -> bool {
        let mut writer = self.writers[link].lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(line.as_bytes()).is_ok()
    }

    fn tell(&self, line: &str) {
        for link in 0..self.writers.len() {
            self.write(link, line);
        }
    }

    /// Passes an order on to the next rank; none means that there are no more.
    pub(super) fn order(&self, order: Option<&str>) {
        let line = order.map_or_else(|| "done\n".to_owned(), |order| format!("do {order}\n"));
        let to = self.shard.rank + 1;
        // A line of which only a part was written would be read as another one.
        if to < self.shard.n_ranks && !self.write(1, &line) {
            self.fail(&format!("rank {to} does not listen"));
        }
    }

    /// Takes an order of rank 0.
    fn take(&self, order: Option<&str>) {
        self.order(order);
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        match (order, &*orders) {
            // A rank that ends takes no more orders.
            (Some(order), Some(sender)) => drop(sender.send(order.to_owned())),
            _ => *orders = None,
        }
    }

    /// From here on this rank does something before it ends for the failure of another.
    pub(super) fn set_farewell(&self, farewell: Farewell) {
        // A rank has one only.
        let _ = self.farewell.set(farewell);
    }

    fn listen(&self, link: usize, neighbour: usize) {
        for line in BufReader::new(&self.links[link]).lines() {
            match line {
                Ok(line) if line.is_empty() => {}
                Ok(line) if line == "done" => self.take(None),
                Ok(line) if line.starts_with("do ") => self.take(line.strip_prefix("do ")),
                Ok(line) if line == "end" => {
                    self.n_ended.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(AFTER_END);
                    return self.fail(&format!("rank {neighbour} has ended before this one"));
                }
                Ok(line) => return self.fail(line.strip_prefix("error ").unwrap_or(&line)),
                Err(_) => break,
            }
        }
        self.fail(&format!("rank {neighbour} has died"));
    }

    /// Ends this rank for what has happened to another, unless it ends already.
    pub(super) fn fail(&self, what: &str) {
        if self.is_over.swap(true, Ordering::SeqCst) {
            return;
        }
        self.say_error(what);
        note(format_args!("error: rank {}: {what}", self.shard.rank));
        if let Some(farewell) = self.farewell.get() {
            farewell(what);
        }
        exit(2);
    }

    fn say_error(&self, what: &str) {
        self.tell(&format!("error {}\n", what.replace(['\n', '\r'], "; ")));
    }

    /// Ends this rank, with `error` if that is why.
    pub(super) fn leave(&self, code: u8, error: Option<&str>) -> ! {
        if self.is_over.swap(true, Ordering::SeqCst) {
            // Another thread ends the process.
            loop {
                std::thread::park();
            }
        }
        match error {
            Some(error) => self.say_error(&format!("rank {}: {error}", self.shard.rank)),
            None => {
                self.tell("end\n");
                // What a neighbour has not read would be lost if it sent something to a process that is gone.
                let until = Instant::now() + LEAVING;
                while self.n_ended.load(Ordering::SeqCst) < self.links.len() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        exit(code);
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name("ranks".to_owned()).spawn(run)?;
    Ok(())
}

/// What a rank says first.
fn greeting(rank: usize) -> String {
    format!("zmlx rank {rank}\n")
}

fn connect((host, port): &(String, u16)) -> Result<TcpStream> {
    let mut last = None;
    for address in (host.as_str(), *port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => bail!("{host} has no address"),
    }
}

/// The connection from the left neighbour; others are dropped.
fn accept(listener: &TcpListener, left: usize) -> Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    listener.set_nonblocking(true)?;
    while Instant::now() < until {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let want = greeting(left);
        let mut got = vec![0; want.len()];
        if (&stream).read_exact(&mut got).is_ok() && got == want.as_bytes() {
            return Ok(stream);
        }
    }
    bail!("no connection from rank {left}")
}
