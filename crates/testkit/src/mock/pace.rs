//! How time passes for a mock device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use stallfree_core::lock;

/// How a batch's time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It is known ahead when a batch completes.
    Virtual,
    /// A thread sleeps as long as a batch takes, then wakes the engine.
    Real,
}

/// Sleeps for a device.
#[derive(Debug)]
pub(super) struct Timer {
    batches: mpsc::Sender<Duration>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    num_done: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Timer {
    /// Starts a thread that ends when the timer is dropped.
    pub(super) fn start() -> Self {
        let (batches, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let work = move || {
            for duration in inbox {
                thread::sleep(duration);
                theirs.num_done.fetch_add(1, Ordering::Release);
                if let Some(waker) = &*lock(&theirs.waker) {
                    waker.wake_by_ref();
                }
            }
        };
        let name = "mock-device".to_owned();
        thread::Builder::new().name(name).spawn(work).expect("the system has a thread");
        Self { batches, shared }
    }

    pub(super) fn start_batch(&self, duration: Duration) {
        self.batches.send(duration).expect("the thread lives as long as the timer");
    }

    pub(super) fn num_done(&self) -> u64 {
        self.shared.num_done.load(Ordering::Acquire)
    }

    pub(super) fn set_waker(&self, waker: Waker) {
        *lock(&self.shared.waker) = Some(waker);
    }
}
