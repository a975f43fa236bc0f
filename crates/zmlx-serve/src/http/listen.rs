//! Connections: how many, how long, how large.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutWriter;

/// Connections at once.
const N_CONNECTIONS: usize = 1024;
/// The headers of a request come within this time.
const HEADERS: Duration = Duration::from_secs(15);
/// What is sent is taken within this time.
const WRITE: Duration = Duration::from_secs(30);
/// The size of a request's headers.
const HEADER_BYTES: usize = 32 << 10;

/// How far the server is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It takes connections.
    Open,
    /// It takes no new ones.
    Draining,
    /// Connections end with the answers that they have.
    Closing,
}

/// Takes connections until the phase says otherwise, and waits until all have ended.
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
    // All permits are back once all connections have ended.
    let _ = permits.acquire_many(N_CONNECTIONS as u32).await;
}

/// Waits until the server is so far, or nobody can say any more.
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
            // Out of file descriptors, or the client has gone: neither is the end.
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
