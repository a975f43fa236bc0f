//! Connections: the limits of their number, time and size.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutWriter;

/// The largest number of connections at once.
const N_CONNECTIONS: usize = 1024;
/// The time within which the headers of a request must come.
const HEADERS: Duration = Duration::from_secs(15);
/// The time within which a client must read what is sent.
const WRITE: Duration = Duration::from_secs(30);
/// The largest size of a request's headers.
const HEADER_BYTES: usize = 32 << 10;

/// The phases of the server's shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It accepts connections.
    Open,
    /// It accepts no new ones.
    Draining,
    /// Connections end with the answers that they have begun.
    Closing,
}

/// Accepts connections until the phase changes, and waits until all have ended.
pub(crate) async fn serve(listener: TcpListener, router: Router, mut phase: watch::Receiver<Phase>) {
    let permits = Arc::new(Semaphore::new(N_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = reached(&mut phase, Phase::Draining) => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        let (router, phase) = (router.clone(), phase.clone());
        tokio::spawn(async move {
            connection(stream, router, phase).await;
            drop(permit);
        });
    }
    drop(listener);
    // All permits are available again when all connections have ended.
    let _ = permits.acquire_many(N_CONNECTIONS as u32).await;
}

/// Waits until the phase is reached, or until it can no longer change.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // There are no more file descriptors, or the client has gone. The server continues in both cases.
            tracing::debug!("accept: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, router: Router, mut phase: watch::Receiver<Phase>) {
    // Tokens are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(WRITE));
    let io = TokioIo::new(Box::pin(stream));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .half_close(false);
    let connection = builder.serve_connection(io, TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = reached(&mut phase, Phase::Closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("connection: {error}");
    }
}
