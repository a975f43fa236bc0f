//! The engine as the server's tasks see it: they send requests and receive updates.
//!
//! The engine itself stays on the thread that calls [`crate::Server::run`]. The module [`driver`] is its loop.

pub(crate) mod driver;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc as blocking};
use std::time::Duration;

use tokio::sync::mpsc;
use zmlx_models::Request;
use zmlx_models::engine::{Finished, Token};

/// Number of updates in the channel of a request. Further ones are kept until its reader has taken these.
const N_UPDATES: usize = 64;

/// An update about a request.
#[derive(Debug)]
pub(crate) enum Update {
    /// It got a slot.
    Started { n_cached_tokens: usize, queue_time: Duration },
    /// A token was chosen.
    Token(Token),
    /// It is done.
    Finished(Finished),
    /// It failed.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The engine refused it, or the engine failed.
    #[error(transparent)]
    Engine(zmlx_models::Error),
    /// The queue was full.
    #[error("the server is busy: {n_waiting} requests are already waiting")]
    QueueFull { n_waiting: usize },
    /// It waited for a slot for too long.
    #[error("the server is busy: the request waited {seconds} s for a slot")]
    QueueTimeout { seconds: u64 },
    /// The server is shutting down.
    #[error("the server is stopping")]
    Stopping,
    /// The engine cannot go on.
    #[error("the model has failed: {why}")]
    Lost { why: Arc<str> },
}

/// A command for the engine's thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// A request.
    Submit { request: Box<Request>, updates: mpsc::Sender<Update> },
    /// Accept no more requests. Those that run may finish.
    Stop,
}

/// The present state of the engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// For each running sequence, its number of tokens in the caches.
    pub(crate) n_tokens: Vec<usize>,
    /// An estimate of the seconds until the next slot is free.
    pub(crate) retry_after: u64,
}

/// The connection to the engine.
#[derive(Debug)]
pub(crate) struct EngineHandle {
    commands: Mutex<blocking::Sender<Command>>,
    status: Mutex<Status>,
    /// To the clients of all requests.
    clients: Mutex<Vec<mpsc::WeakSender<Update>>>,
    /// Why the engine cannot go on.
    lost: OnceLock<Arc<str>>,
    n_active: Arc<AtomicUsize>,
    n_slots: usize,
    max_queue: usize,
}

impl EngineHandle {
    pub(crate) fn new(n_slots: usize, max_queue: usize) -> (Self, blocking::Receiver<Command>) {
        let (commands, receiver) = blocking::channel();
        let handle = Self {
            commands: Mutex::new(commands),
            status: Mutex::default(),
            clients: Mutex::default(),
            lost: OnceLock::new(),
            n_active: Arc::default(),
            n_slots,
            max_queue,
        };
        (handle, receiver)
    }

    /// Submits a request. Dropping the ticket cancels it.
    pub(crate) fn submit(&self, request: Request) -> Result<Ticket, Failure> {
        let most = self.n_slots.saturating_add(self.max_queue);
        let active = Active { n: Arc::clone(&self.n_active) };
        if active.n.fetch_add(1, Ordering::SeqCst) >= most {
            return Err(Failure::QueueFull { n_waiting: self.max_queue });
        }
        let (updates, receiver) = mpsc::channel(N_UPDATES);
        {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.retain(|client| client.strong_count() > 0);
            clients.push(updates.downgrade());
        }
        // `lose` sets this first and then tells the clients that it finds.
        if let Some(why) = self.lost() {
            return Err(Failure::Lost { why });
        }
        let command = Command::Submit { request: Box::new(request), updates };
        self.send(command).map_err(|_| Failure::Stopping)?;
        Ok(Ticket { updates: receiver, _active: active })
    }

    /// Lets running requests finish, and starts no others.
    pub(crate) fn stop(&self) {
        // If the engine's thread has ended, there is nothing to stop.
        let _ = self.send(Command::Stop);
    }

    /// Ends all requests: the engine's thread goes on no more.
    pub(crate) fn lose(&self, why: &str) {
        let why: Arc<str> = why.into();
        // The first reason counts.
        let _ = self.lost.set(Arc::clone(&why));
        let clients = std::mem::take(&mut *self.clients.lock().unwrap_or_else(PoisonError::into_inner));
        for client in clients.iter().filter_map(mpsc::WeakSender::upgrade) {
            // A client that does not read its answer will not read this either.
            let _ = client.try_send(Update::Failed(Failure::Lost { why: Arc::clone(&why) }));
        }
    }

    /// Why the engine cannot go on, if that is so.
    pub(crate) fn lost(&self) -> Option<Arc<str>> {
        self.lost.get().cloned()
    }

    pub(crate) fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_status(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    fn send(&self, command: Command) -> Result<(), blocking::SendError<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command)
    }
}

/// A submitted request.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) updates: mpsc::Receiver<Update>,
    _active: Active,
}

/// Counts as an active request until it is dropped.
#[derive(Debug)]
struct Active {
    n: Arc<AtomicUsize>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.n.fetch_sub(1, Ordering::SeqCst);
    }
}
