//! A rank's connections to its neighbours in the ring: over them each hears what rank 0 does, and how the others end.
//!
//! Lines of text: an empty one each second, `all RANK …` with what a rank tells all others, `do …` with an order of rank 0, `done`
//! after the last one, `end` from a rank that has done its work, `error …` from one that has failed. Orders go around the ring from
//! rank 0 to the last rank. A rank that closes its connection without `end` or `error`, or is silent for too long, has died. A rank that hears of a failure
//! passes it on to its other neighbour and ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use zmlx_kernels::Shard;

use super::exit;
use crate::output::note;

/// How long a connection may take to be answered, and how soon a refused one is tried again.
const ANSWER: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);
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
    /// What other ranks tell all: their numbers and texts.
    said: mpsc::Sender<(usize, String)>,
    heard: Mutex<mpsc::Receiver<(usize, String)>>,
    farewell: OnceLock<Farewell>,
    /// Neighbours that have ended as they should.
    n_ended: AtomicUsize,
    /// Whether this rank ends, for whatever reason.
    is_over: AtomicBool,
}

impl Watch {
    /// Connects a rank with its neighbours. `listener` is its own; `addresses` has host and port of each rank's. Also returns the
    /// orders of rank 0.
    pub(super) fn new(
        shard: Shard,
        listener: TcpListener,
        addresses: &[(&str, u16)],
        until: Instant,
    ) -> Result<(Arc<Self>, mpsc::Receiver<String>)> {
        let Shard { rank, n_ranks } = shard;
        let [left, right] = [(rank + n_ranks - 1) % n_ranks, (rank + 1) % n_ranks];
        let to_right =
            connect(addresses[right], until).with_context(|| format!("no connection to rank {right}"))?;
        (&to_right).write_all(greeting(rank).as_bytes())?;
        let to_left = accept(&listener, left, until)?;
        // A backend may listen at the same address.
        drop(listener);
        for link in [&to_left, &to_right] {
            link.set_nodelay(true)?;
            link.set_read_timeout(Some(SILENCE))?;
            link.set_write_timeout(Some(BEAT))?;
        }
        let (sender, orders) = mpsc::channel();
        let (said, heard) = mpsc::channel();
        let watch = Arc::new(Self {
            shard,
            writers: [Mutex::new(to_left.try_clone()?), Mutex::new(to_right.try_clone()?)],
            links: [to_left, to_right],
            orders: Mutex::new(Some(sender)),
            said,
            heard: Mutex::new(heard),
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

    /// Passes on what a rank tells all, unless the next rank is that one.
    fn pass_on(&self, of: usize, text: &str) {
        let to = (self.shard.rank + 1) % self.shard.n_ranks;
        if to != of && !self.write(1, &format!("all {of} {text}\n")) {
            self.fail(&format!("rank {to} does not listen"));
        }
    }

    /// What each rank says, in their order. All ranks must call it equally often. A text has one line.
    ///
    /// # Errors
    /// If not all have said something in time.
    pub(super) fn gather(&self, own: &str, until: Option<Instant>) -> Result<Vec<String>> {
        let Shard { rank, n_ranks } = self.shard;
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = vec![None; n_ranks];
        all[rank] = Some(own.to_owned());
        self.pass_on(rank, own);
        while let Some(missing) = all.iter().position(Option::is_none) {
            let next = match until {
                Some(until) => heard.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
                None => heard.recv().ok(),
            };
            let (of, text) = next.with_context(|| format!("rank {missing} says nothing"))?;
            // A rank's texts come one after the other, and its second one only when it has all first ones.
            *all.get_mut(of).with_context(|| format!("there is no rank {of}"))? = Some(text);
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// Takes what a rank tells all: passed on first, so that what this rank says next comes after it everywhere.
    fn hear(&self, line: &str) {
        let Some((of, text)) = line.split_once(' ').and_then(|(of, text)| Some((of.parse().ok()?, text)))
        else {
            return self.fail(&format!("expected a rank and a text, got {line:?}"));
        };
        self.pass_on(of, text);
        // The receiver lives as long as the watch.
        drop(self.said.send((of, text.to_owned())));
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
                Ok(line) if line.starts_with("all ") => {
                    self.hear(line.strip_prefix("all ").unwrap_or_default())
                }
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

/// Connects with another rank, which may not be there yet.
fn connect((host, port): (&str, u16), until: Instant) -> Result<TcpStream> {
    loop {
        let mut last = None;
        for address in (host, port).to_socket_addrs()? {
            let left = until.saturating_duration_since(Instant::now()).max(RETRY);
            match TcpStream::connect_timeout(&address, left.min(ANSWER)) {
                // A port that is free may be the connection's own: then it is one with itself.
                Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {}
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        if Instant::now() >= until {
            match last {
                Some(error) => return Err(error.into()),
                None => bail!("{host} has no address"),
            }
        }
        std::thread::sleep(RETRY);
    }
}

/// The connection from the left neighbour; others are dropped.
fn accept(listener: &TcpListener, left: usize, until: Instant) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    while Instant::now() < until {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let want = greeting(left);
        let mut got = vec![0; want.len()];
        if (&stream).read_exact(&mut got).is_ok() && got == want.as_bytes() {
            return Ok(stream);
        }
    }
    bail!("no connection from rank {left}")
}
