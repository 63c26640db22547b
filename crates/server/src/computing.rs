//! Work on texts, away from the threads that serve connections where a text is long.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::ApiError;

/// Work on longer texts is done elsewhere.
const INLINE_BYTES: usize = 4096;

/// The threads for long texts: no more are busy at once than there are cores.
#[derive(Debug)]
pub(crate) struct Computing(Arc<Semaphore>);

impl Computing {
    /// Does `work` on a text of so many bytes: if that is long, where it holds up no connection.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= INLINE_BYTES {
            return Ok(work());
        }
        let permit = Arc::clone(&self.0).acquire_owned().await;
        let done = spawn_blocking(move || {
            // Held to the end of the work, which goes on when the client has left.
            let _permit = permit;
            work()
        });
        done.await.map_err(|e| ApiError::Internal(format!("the text could not be processed: {e}")))
    }
}

impl Default for Computing {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(available_parallelism().map_or(1, usize::from))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use futures::FutureExt;
    use tokio::sync::Semaphore;

    use super::{Computing, INLINE_BYTES};

    #[tokio::test]
    async fn work_that_nobody_waits_for_keeps_its_place() {
        let computing = Computing(Arc::new(Semaphore::new(1)));
        let (go_on, told) = mpsc::channel::<()>();
        let left = computing.run(INLINE_BYTES + 1, move || told.recv().is_ok());
        assert!(left.now_or_never().is_none(), "it waits to be told");
        assert_eq!(computing.0.available_permits(), 0, "its client has left, it hasn't");
        assert_eq!(computing.run(INLINE_BYTES, || 1).await, Ok(1), "short work needs no place");
        go_on.send(()).expect("the work listens");
        assert_eq!(computing.run(INLINE_BYTES + 1, || 2).await, Ok(2));
    }
}
