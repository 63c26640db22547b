//! What SIGTERM and SIGINT mean: the first one drains, a second SIGINT ends the process at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Exit status of a process that SIGINT ended, by the shells' custom.
const INTERRUPTED: i32 = 130;

/// Starts to watch; the future completes with the first signal.
///
/// # Errors
/// The system allows no handler.
pub(crate) fn first() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            interrupt.recv().await;
            exit();
        });
    })
}

/// Completes with the first signal; never, if the system allows no handler.
pub(crate) async fn stop() {
    match first() {
        Ok(signal) => signal.await,
        Err(_) => std::future::pending().await,
    }
}

#[expect(clippy::exit, reason = "asked twice to stop, nothing is worth another moment")]
fn exit() {
    std::process::exit(INTERRUPTED);
}
