//! Serves connections until told to stop, and then to the end of what is under way. HTTP/1.1 alone: a proxy in front speaks the rest.

use std::future::Future;
use std::sync::Arc;

use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::{AppState, log_stats, ringer_on, router};

/// How many more connections may be open than requests under way: idle ones, and those that only look how the server is.
const SPARE_CONNECTIONS: usize = 1024;

/// Serves until `shutdown` completes; then the engine takes no new requests, and open ones run to their end.
pub async fn serve(listener: TcpListener, state: AppState, shutdown: impl Future<Output = ()>) {
    state.engine().set_ringer(ringer_on(&Handle::current()));
    let log = (!state.config().report.disable_log_stats)
        .then(|| tokio::spawn(log_stats::run(state.clone())));
    let connections = GracefulShutdown::new();
    tokio::select! {
        never = accept(listener, &state, &connections) => never,
        () = shutdown => {}
    }
    state.engine().drain();
    connections.shutdown().await;
    if let Some(log) = log {
        log.abort();
    }
}

/// Accepts connections only while fewer than the limit are open; further clients wait in the system's queue.
async fn accept(mut listener: TcpListener, state: &AppState, connections: &GracefulShutdown) -> ! {
    let limits = &state.config().limits;
    let most = limits.max_concurrent_requests.saturating_add(SPARE_CONNECTIONS);
    let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    let service = TowerToHyperService::new(router(state.clone()));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.ok();
        let (stream, _) = Listener::accept(&mut listener).await;
        // Tokens are small and each one is awaited: none may wait for the next. A socket that can't do it works all the same.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }
}
