//! The server from its start to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use zmlx_kernels::Backend;
use zmlx_models::Engine;

use crate::engine::driver::{Limits, drive};
use crate::engine::{Command, EngineHandle};
use crate::error::Error;
use crate::http;
use crate::http::listen::Phase;
use crate::model::{Loaded, ServedModel};
use crate::options::ServerOptions;
use crate::state::State;

/// How long sending complete answers may take at the end.
const GOODBYE: Duration = Duration::from_secs(2);
/// Number of threads that render, tokenise and compile grammars.
const N_BLOCKING: usize = 8;

/// A server that listens. Before [`Server::run`] it answers that the model is being loaded.
#[derive(Debug)]
pub struct Server {
    state: Arc<State>,
    runtime: Runtime,
    commands: Receiver<Command>,
    phase: watch::Sender<Phase>,
    connections: tokio::task::JoinHandle<()>,
    address: SocketAddr,
}

/// Stops a server from another thread, or says that it has failed.
#[derive(Clone, Debug)]
pub struct StopHandle {
    state: Arc<State>,
    phase: watch::Sender<Phase>,
}

impl StopHandle {
    /// Accepts no more requests, and lets running ones finish.
    pub fn stop(&self) {
        self.state.stop();
        self.phase.send_replace(Phase::Draining);
    }

    /// Tells all clients that the model has failed: with status 503, or with an error event in a stream that has begun. The
    /// server listens on, so that new clients hear it. The engine need not answer any more.
    pub fn fail(&self, why: &str) {
        self.state.engine.lose(why);
    }
}

impl Server {
    /// Starts to listen.
    ///
    /// # Errors
    /// If the address cannot be used, or if the system refuses to start threads.
    pub fn bind(options: ServerOptions) -> Result<Self, Error> {
        let started = |source| Error::Start { source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(N_BLOCKING)
            .thread_name("zmlx-http")
            .enable_all()
            .build()
            .map_err(started)?;
        let host = options.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = format!("{}:{}", options.host, options.port);
        let listen = |source| Error::Listen { address: name.clone(), source };
        let listener = runtime.block_on(TcpListener::bind((host.as_str(), options.port))).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (engine, commands) = EngineHandle::new(options.n_slots, options.max_queue);
        let state = Arc::new(State::new(options, engine));
        let (phase, phases) = watch::channel(Phase::Open);
        let router = http::router(Arc::clone(&state));
        let connections = runtime.spawn(http::listen::serve(listener, router, phases));
        Ok(Self { state, runtime, commands, phase, connections, address })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that stops it from elsewhere.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { state: Arc::clone(&self.state), phase: self.phase.clone() }
    }

    /// Stops the server at SIGTERM and SIGINT. The first signal lets answers finish; the second ends the process with `exit`, which
    /// gets the exit code, and so does the first while the model is being loaded.
    ///
    /// # Errors
    /// If the system refuses to handle the signals.
    pub fn stop_at_signals(&self, exit: impl Fn(u8) + Send + 'static) -> Result<(), Error> {
        let stop = self.stop_handle();
        let _in_runtime = self.runtime.enter();
        let mut signals = Signals::new().map_err(|source| Error::Start { source })?;
        self.runtime.spawn(async move {
            signals.next().await;
            if stop.state.try_loaded().is_none() {
                // No client waits for an answer yet.
                return exit(0);
            }
            tracing::info!("stopping: answers that have begun may finish");
            stop.stop();
            signals.next().await;
            exit(130);
        });
        Ok(())
    }

    /// Serves a model on this thread until the server is stopped.
    ///
    /// # Errors
    /// If the vocabulary cannot be used for structured output.
    pub fn run<B: Backend>(self, model: ServedModel, engine: &mut Engine<'_, B>) -> Result<(), Error> {
        let Self { state, runtime, commands, phase, connections, .. } = self;
        let options = &state.options;
        let limits = Limits {
            queue_timeout: options.queue_timeout,
            request_timeout: options.request_timeout,
            shutdown_timeout: options.shutdown_timeout,
        };
        state.set_loaded(Loaded::new(model, engine.context(), options)?);
        drive(engine, &commands, &state.engine, &state.metrics, limits);
        phase.send_replace(Phase::Closing);
        // A client that does not read its answer does not keep the server running.
        let _ = runtime.block_on(async { tokio::time::timeout(GOODBYE, connections).await });
        runtime.shutdown_timeout(Duration::from_millis(100));
        Ok(())
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
