//! The engine as the server's tasks see it: requests go in, what comes of them goes out.
//!
//! The engine itself stays on the thread that calls [`crate::Server::run`]; [`driver`] is its loop.

pub(crate) mod driver;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::time::Duration;

use tokio::sync::mpsc;
use zmlx_models::Request;
use zmlx_models::engine::{Finished, Token};

/// Updates that a request may be ahead of its reader before they are kept apart.
const N_UPDATES: usize = 64;

/// Something that happened to a request.
#[derive(Debug)]
pub(crate) enum Update {
    /// It got its place.
    Started { n_cached_tokens: usize, queue_time: Duration },
    /// A token was chosen.
    Token(Token),
    /// It is done.
    Finished(Finished),
    /// It is done, but badly.
    Failed(Failure),
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The engine refused it, or failed.
    #[error(transparent)]
    Engine(zmlx_models::Error),
    /// It would have been one too many.
    #[error("the server is busy: {n_waiting} requests wait already")]
    QueueFull { n_waiting: usize },
    /// It has waited for its place too long.
    #[error("the server is busy: the request waited {seconds} s for its place")]
    QueueTimeout { seconds: u64 },
    /// The server is about to end.
    #[error("the server is stopping")]
    Stopping,
}

/// What the engine's thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// A request.
    Submit { request: Box<Request>, updates: mpsc::Sender<Update> },
    /// No more requests: those that run may end.
    Stop,
}

/// What the engine is doing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// Tokens in the caches, for each sequence that runs.
    pub(crate) n_tokens: Vec<usize>,
    /// Seconds until the next place is free, as far as one can tell.
    pub(crate) retry_after: u64,
}

/// The way to the engine.
#[derive(Debug)]
pub(crate) struct EngineHandle {
    commands: Mutex<blocking::Sender<Command>>,
    status: Mutex<Status>,
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
            n_active: Arc::default(),
            n_slots,
            max_queue,
        };
        (handle, receiver)
    }

    /// Sends a request in. Dropping the ticket cancels it.
    pub(crate) fn submit(&self, request: Request) -> Result<Ticket, Failure> {
        let most = self.n_slots.saturating_add(self.max_queue);
        let active = Active { n: Arc::clone(&self.n_active) };
        if active.n.fetch_add(1, Ordering::SeqCst) >= most {
            return Err(Failure::QueueFull { n_waiting: self.max_queue });
        }
        let (updates, receiver) = mpsc::channel(N_UPDATES);
        let command = Command::Submit { request: Box::new(request), updates };
        self.send(command).map_err(|_| Failure::Stopping)?;
        Ok(Ticket { updates: receiver, _active: active })
    }

    /// Lets those that run end, and no others begin.
    pub(crate) fn stop(&self) {
        // If the engine's thread has gone there is nothing to end.
        let _ = self.send(Command::Stop);
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

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) updates: mpsc::Receiver<Update>,
    _active: Active,
}

/// Counts as a request until it is dropped.
#[derive(Debug)]
struct Active {
    n: Arc<AtomicUsize>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.n.fetch_sub(1, Ordering::SeqCst);
    }
}
