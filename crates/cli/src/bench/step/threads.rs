//! What this process's threads have computed so far, by what they do.

use std::collections::HashMap;
use std::fs;
use std::ops::Sub;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::serve::FRONT_THREADS;

/// CPU time of groups of threads. What a thread waits for counts only where it does not sleep meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuTimes {
    /// The engine's thread: collects what was drawn, plans, makes batches, keeps the books, hands tokens to readers' streams.
    pub(super) engine: Duration,
    /// The workers' threads: make inputs and start steps.
    pub(super) workers: Duration,
    /// Those that wait for steps and take what was drawn.
    pub(super) collectors: Duration,
    /// The readers' threads: wake readers, switch between them, and detokenize.
    pub(super) readers: Duration,
}

impl CpuTimes {
    /// Reads Linux's accounts of threads; elsewhere nothing is known.
    pub(super) fn now() -> Self {
        let mut by_name: HashMap<String, Duration> = HashMap::new();
        for thread in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let read = |file| fs::read_to_string(thread.path().join(file)).ok();
            let account = read("schedstat")
                .and_then(|account| account.split(' ').next()?.parse::<u64>().ok());
            if let Some((mut name, nanoseconds)) = read("comm").zip(account) {
                // Linux cuts names after 15 characters; with several ranks a number may follow.
                name.truncate("stallfree-colle".len());
                *by_name.entry(name.trim().to_owned()).or_default() +=
                    Duration::from_nanos(nanoseconds);
            }
        }
        let of = |name: &str| by_name.get(name).copied().unwrap_or_default();
        Self {
            engine: of("stallfree-engin"),
            workers: of("stallfree-worke"),
            collectors: of("stallfree-colle"),
            readers: of(FRONT_THREADS),
        }
    }
}

impl Sub for CpuTimes {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            engine: self.engine.saturating_sub(before.engine),
            workers: self.workers.saturating_sub(before.workers),
            collectors: self.collectors.saturating_sub(before.collectors),
            readers: self.readers.saturating_sub(before.readers),
        }
    }
}

/// Knows when all readers have begun and when the first has ended: in between, all decode.
#[derive(Debug)]
pub(super) struct Meter {
    to_begin: AtomicUsize,
    all_begun: Notify,
    one_ended: Notify,
}

impl Meter {
    pub(super) fn new(num_readers: usize) -> Self {
        let to_begin = AtomicUsize::new(num_readers);
        Self { to_begin, all_begun: Notify::new(), one_ended: Notify::new() }
    }

    /// Takes note that a reader has its first token.
    pub(super) fn begin(&self) {
        if self.to_begin.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.all_begun.notify_one();
        }
    }

    /// Takes note that a reader has its last token.
    pub(super) fn end(&self) {
        self.one_ended.notify_one();
    }

    /// Returns what threads compute while all decode. Whoever waits for it should be none of them: reading the accounts takes time.
    pub(super) async fn measure(&self) -> CpuTimes {
        self.all_begun.notified().await;
        let before = CpuTimes::now();
        self.one_ended.notified().await;
        CpuTimes::now() - before
    }
}
