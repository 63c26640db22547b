//! Serves connections until told to stop, and then to the end of what is under way.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{AppState, log_stats, ringer_on, router};

/// Serves until `shutdown` completes; then the engine takes no new requests, and open ones run to their end.
///
/// # Errors
/// The listener has no address.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    state.engine().set_ringer(ringer_on(&Handle::current()));
    let limits = &state.config().limits;
    let listener = LimitedListener {
        inner: listener,
        permits: Arc::new(Semaphore::new(limits.max_connections)),
    };
    let log = (!state.config().report.disable_log_stats)
        .then(|| tokio::spawn(log_stats::run(state.clone())));
    let drained = state.clone();
    let shutdown = async move {
        shutdown.await;
        drained.engine().drain();
    };
    let served = axum::serve(listener, router(state)).with_graceful_shutdown(shutdown).await;
    if let Some(log) = log {
        log.abort();
    }
    served
}

/// Accepts connections only while fewer than the limit are open; further clients wait in the system's queue.
struct LimitedListener {
    inner: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for LimitedListener {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (inner, address) = Listener::accept(&mut self.inner).await;
        // Tokens are small and each one is awaited: none may wait for the next. A socket that can't do it works all the same.
        if let Err(error) = inner.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
        (LimitedStream { inner, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection that counts as open until it is dropped.
struct LimitedStream {
    inner: TcpStream,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
