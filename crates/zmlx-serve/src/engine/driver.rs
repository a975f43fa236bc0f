//! The loop of the engine's thread.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use zmlx_kernels::Backend;
use zmlx_models::{Engine, Event, RequestId};

use super::{Command, EngineHandle, Failure, Status, Update};
use crate::metrics::Metrics;

/// A reader that takes no update for this time is treated as gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the loop checks for events while there is nothing to compute.
const TICK: Duration = Duration::from_millis(20);
/// How often the engine's state is published.
const PUBLISH: Duration = Duration::from_millis(50);
/// Number of recent ends of requests from which the time to the next free slot is estimated.
const N_ENDS: usize = 64;

/// The limits that the loop enforces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) queue_timeout: Duration,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) shutdown_timeout: Duration,
}

/// Runs an engine until it is told to stop and all requests have ended.
pub(crate) fn drive<B: Backend>(
    engine: &mut Engine<'_, B>,
    commands: &Receiver<Command>,
    handle: &EngineHandle,
    metrics: &Metrics,
    limits: Limits,
) {
    let mut driver = Driver {
        clients: HashMap::new(),
        leaving: Vec::new(),
        ends: VecDeque::new(),
        stop_by: None,
        metrics,
        limits,
    };
    let mut events = Vec::new();
    metrics.set_budget(engine.max_kv_bytes());
    let mut published = Instant::now();
    loop {
        if !driver.take_commands(engine, commands) {
            return;
        }
        driver.flush();
        driver.drop_clients(engine);
        if engine.is_idle() {
            driver.publish(engine, handle);
            if driver.stop_by.is_some() && driver.leaving.is_empty() {
                return;
            }
            continue;
        }
        engine.step(&mut events);
        if events.is_empty() && engine.stats().n_running == 0 {
            // Nothing could begin. The next step may succeed.
            std::thread::sleep(Duration::from_millis(1));
        }
        // Looking at every idle sequence costs more than a step of a small model. This comes before the events are
        // sent, so that a client that has its answer also finds it in the statistics.
        if engine.is_idle() || published.elapsed() > PUBLISH {
            driver.publish(engine, handle);
            published = Instant::now();
        }
        driver.route(events.drain(..));
    }
}

struct Driver<'a> {
    clients: HashMap<RequestId, Client>,
    /// Clients whose requests are done, but which have not taken all updates yet.
    leaving: Vec<Client>,
    ends: VecDeque<Instant>,
    /// While the server is stopping, the time at which requests that still run are ended.
    stop_by: Option<Instant>,
    metrics: &'a Metrics,
    limits: Limits,
}

/// The client that waits for a request.
struct Client {
    updates: mpsc::Sender<Update>,
    /// Updates that did not fit into the channel. There are at most as many as the answer has, because the sequence
    /// ends with the context.
    kept: VecDeque<Update>,
    kept_since: Option<Instant>,
    submitted: Instant,
    started: Option<Instant>,
    last_token: Option<Instant>,
}

impl Client {
    fn send(&mut self, update: Update) {
        if self.kept.is_empty() {
            match self.updates.try_send(update) {
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(update)) => {
                    self.kept.push_back(update);
                    self.kept_since = Some(Instant::now());
                }
            }
        } else {
            self.kept.push_back(update);
        }
    }

    fn flush(&mut self) {
        while let Some(update) = self.kept.pop_front() {
            match self.updates.try_send(update) {
                Ok(()) => self.kept_since = Some(Instant::now()),
                Err(TrySendError::Full(update)) => {
                    self.kept.push_front(update);
                    return;
                }
                Err(TrySendError::Closed(_)) => self.kept.clear(),
            }
        }
        self.kept_since = None;
    }

    fn has_gone(&self) -> bool {
        self.updates.is_closed() || self.kept_since.is_some_and(|since| since.elapsed() > PATIENCE)
    }
}

impl Driver<'_> {
    /// Takes the commands that have come. Waits for one if there is nothing to compute. Returns false if no more can
    /// come.
    fn take_commands<B: Backend>(
        &mut self,
        engine: &mut Engine<'_, B>,
        commands: &Receiver<Command>,
    ) -> bool {
        if engine.is_idle() {
            // An idle server wakes up early only for readers that have not taken all updates.
            let wait = if self.leaving.is_empty() { Duration::from_secs(1) } else { TICK };
            match commands.recv_timeout(wait) {
                Ok(command) => self.take(engine, command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => self.take(engine, command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take<B: Backend>(&mut self, engine: &mut Engine<'_, B>, command: Command) {
        match command {
            Command::Submit { request, updates } => {
                let mut client = Client {
                    updates,
                    kept: VecDeque::new(),
                    kept_since: None,
                    submitted: Instant::now(),
                    started: None,
                    last_token: None,
                };
                if self.stop_by.is_some() {
                    client.send(Update::Failed(Failure::Stopping));
                    return;
                }
                match engine.submit(*request) {
                    Ok(id) => {
                        self.clients.insert(id, client);
                    }
                    Err(error) => client.send(Update::Failed(Failure::Engine(error))),
                }
            }
            Command::Stop => {
                self.stop_by.get_or_insert_with(|| Instant::now() + self.limits.shutdown_timeout);
            }
        }
    }

    fn flush(&mut self) {
        for client in self.clients.values_mut().chain(&mut self.leaving) {
            client.flush();
        }
        self.leaving.retain(|client| !client.kept.is_empty() && !client.has_gone());
    }

    /// Ends requests whose client has gone, that have waited too long, or that have exceeded their time.
    fn drop_clients<B: Backend>(&mut self, engine: &mut Engine<'_, B>) {
        let Limits { queue_timeout, request_timeout, .. } = self.limits;
        let is_over = self.stop_by.is_some_and(|by| Instant::now() >= by);
        let ids: Vec<RequestId> = self.clients.keys().copied().collect();
        for id in ids {
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let waited = client.submitted.elapsed();
            let is_late = request_timeout.is_some_and(|limit| waited > limit);
            let update = if client.has_gone() {
                None
            } else if client.started.is_none() && self.stop_by.is_some() {
                Some(Update::Failed(Failure::Stopping))
            } else if client.started.is_none() && (waited > queue_timeout || is_late) {
                Some(Update::Failed(Failure::QueueTimeout { seconds: waited.as_secs() }))
            } else if is_late || is_over {
                engine.cancel(id).map(Update::Finished)
            } else {
                continue;
            };
            self.metrics.cancelled.inc();
            engine.cancel(id);
            let Some(mut client) = self.clients.remove(&id) else { continue };
            if let Some(update) = update {
                self.leave(&mut client, update);
                self.leaving.extend((!client.kept.is_empty()).then_some(client));
            }
        }
    }

    fn leave(&mut self, client: &mut Client, update: Update) {
        if client.started.is_some() {
            self.ends.push_back(Instant::now());
            if self.ends.len() > N_ENDS {
                self.ends.pop_front();
            }
        }
        self.metrics.request_seconds.observe(client.submitted.elapsed().as_secs_f64());
        client.send(update);
    }

    fn route(&mut self, events: impl Iterator<Item = Event>) {
        let now = Instant::now();
        let mut n_tokens = 0;
        for event in events {
            let id = event.id();
            let Some(client) = self.clients.get_mut(&id) else { continue };
            match event {
                Event::Started { n_cached_tokens, queue_time, .. } => {
                    client.started = Some(now);
                    self.metrics.queue_seconds.observe(queue_time.as_secs_f64());
                    client.send(Update::Started { n_cached_tokens, queue_time });
                }
                Event::Token { token, .. } => {
                    n_tokens += 1;
                    match client.last_token.replace(now) {
                        None => {
                            self.metrics.first_token_seconds.observe((now - client.submitted).as_secs_f64())
                        }
                        Some(last) => self.metrics.inter_token_seconds.observe((now - last).as_secs_f64()),
                    }
                    client.send(Update::Token(token));
                }
                Event::Finished { finished, .. } => self.end(id, Update::Finished(finished)),
                Event::Failed { error, .. } => self.end(id, Update::Failed(Failure::Engine(error))),
                _ => {}
            }
        }
        if n_tokens > 0 {
            self.metrics.batch_size.observe(f64::from(n_tokens));
        }
    }

    fn end(&mut self, id: RequestId, update: Update) {
        let Some(mut client) = self.clients.remove(&id) else { return };
        self.leave(&mut client, update);
        if !client.kept.is_empty() {
            self.leaving.push(client);
        }
    }

    fn publish<B: Backend>(&self, engine: &Engine<'_, B>, handle: &EngineHandle) {
        let stats = engine.stats();
        self.metrics.update(&stats);
        let n_tokens = engine.running().map(|(_, n_tokens)| n_tokens).collect();
        handle.set_status(Status { n_tokens, retry_after: self.retry_after() });
    }

    /// The median time between two ends, in whole seconds from 1 to 60.
    fn retry_after(&self) -> u64 {
        let mut gaps: Vec<f64> = self
            .ends
            .iter()
            .zip(self.ends.iter().skip(1))
            .map(|(earlier, later)| (*later - *earlier).as_secs_f64())
            .collect();
        gaps.sort_unstable_by(f64::total_cmp);
        let median = gaps.get(gaps.len() / 2).copied().unwrap_or(1.0);
        (median.ceil() as u64).clamp(1, 60)
    }
}
