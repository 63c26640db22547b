//! What this process's threads have computed so far, by what they do.

use std::fs;
use std::ops::Sub;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::bench::cpu_time;

/// CPU time of groups of threads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuTimes {
    /// The engine's thread and the one that wakes readers for it: what plans steps and passes tokens on.
    pub(super) engine: Duration,
    /// The workers' threads: what makes inputs, starts steps and waits for them.
    pub(super) workers: Duration,
    /// All others; in a bench, those that read and detokenize.
    pub(super) others: Duration,
}

impl CpuTimes {
    /// Reads Linux's accounts of threads; elsewhere all of it is the others'.
    pub(super) fn now() -> Self {
        // Linux cuts names after 15 characters.
        let engine = threads_called(&["stallfree-engin", "stallfree-bell"]);
        let workers = threads_called(&["stallfree-worke", "stallfree-colle"]);
        Self { engine, workers, others: cpu_time().saturating_sub(engine + workers) }
    }

    /// Returns all three in microseconds, for each of `steps` steps.
    pub(super) fn per_step(self, steps: usize) -> [f64; 3] {
        [self.engine, self.workers, self.others]
            .map(|time| time.as_secs_f64() * 1e6 / steps.max(1) as f64)
    }
}

impl Sub for CpuTimes {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            engine: self.engine.saturating_sub(before.engine),
            workers: self.workers.saturating_sub(before.workers),
            others: self.others.saturating_sub(before.others),
        }
    }
}

/// What is computed between the moment when all readers have begun and that when the first has ended: while they decode.
#[derive(Debug)]
pub(super) struct Meter {
    num_readers: usize,
    num_begun: AtomicUsize,
    /// Before and after.
    marks: Mutex<[Option<CpuTimes>; 2]>,
}

impl Meter {
    pub(super) fn new(num_readers: usize) -> Self {
        Self { num_readers, num_begun: AtomicUsize::new(0), marks: Mutex::default() }
    }

    /// Takes note that a reader has its first token.
    pub(super) fn begin(&self) {
        if self.num_begun.fetch_add(1, Ordering::Relaxed) + 1 == self.num_readers {
            self.mark(0);
        }
    }

    /// Takes note that a reader has its last token.
    pub(super) fn end(&self) {
        self.mark(1);
    }

    fn mark(&self, place: usize) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks[place] = marks[place].or_else(|| Some(CpuTimes::now()));
    }

    /// Returns what was computed; nothing, if they never decoded all at once.
    pub(super) fn measured(&self) -> CpuTimes {
        let marks = *self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let [Some(before), Some(after)] = marks else { return CpuTimes::default() };
        after - before
    }
}

fn threads_called(names: &[&str]) -> Duration {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let account = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        names.contains(&name.trim()).then(|| account.split(' ').next()?.parse::<u64>().ok())?
    });
    Duration::from_nanos(nanoseconds.sum())
}
