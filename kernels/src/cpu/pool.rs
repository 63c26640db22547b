//! A fork-join pool for regions of a few microseconds.
//!
//! A decode step is some two hundred parallel regions. Workers spin between them and sleep when none came for a while, so that an
//! idle server burns nothing. The caller works too, and waits only for workers that have joined its region: where the system
//! gives a worker no core, the caller does the region alone. What a region computes is not known here.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

use stallfree_core::lock;

/// Spins of a worker before it sleeps: about 0.2 ms, longer than any gap within a step.
const SPINS_BEFORE_SLEEP: u32 = 8192;
/// Spins between two offers of the core to whoever waits for it.
const SPINS_BEFORE_YIELD: u32 = 256;

/// Elements that a task of a region goes over at least; below, a region costs more than it saves.
pub(super) const TASK_ELEMENTS: usize = 16 << 10;

/// The gate's fields: workers inside (low 16 bits), whether more may enter, and the region's number (high 32 bits).
const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const REGION_SHIFT: u32 = 32;

/// A task of a region: called with the thread's index and the task's.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that share regions of tasks.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

struct Shared {
    gate: AtomicU64,
    next_task: AtomicUsize,
    region: UnsafeCell<Region>,
    asleep: Vec<AtomicBool>,
    shutdown: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Region {
    task: Option<*const Task<'static>>,
    num_tasks: usize,
}

// SAFETY: `region` is written only by the caller while the gate is closed and nobody is inside, and read only inside; entering
// acquires what opening the gate released.
unsafe impl Sync for Shared {}
// SAFETY: the task behind the pointer is `Sync` and outlives the region, see `Pool::run`.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `num_threads - 1` workers; the caller is thread 0.
    pub(super) fn new(num_threads: usize) -> io::Result<Self> {
        let num_workers = num_threads.clamp(1, INSIDE as usize) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next_task: AtomicUsize::new(0),
            region: UnsafeCell::new(Region { task: None, num_tasks: 0 }),
            asleep: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            shutdown: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), sleepers: Vec::new() };
        for worker in 0..num_workers {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("cpu-kernel-{}", worker + 1))
                .spawn(move || shared.work(worker))?;
            pool.sleepers.push(thread.thread().clone());
            pool.workers.push(thread);
        }
        Ok(pool)
    }

    /// Returns how many threads work, the caller among them.
    pub(super) fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(thread, i)` for each `i` below `num_tasks`, in any order, and returns when all are done.
    ///
    /// `&mut`, because a region must end before the next begins.
    pub(super) fn run(&mut self, num_tasks: usize, task: &Task<'_>) {
        if self.workers.is_empty() || num_tasks <= 1 {
            (0..num_tasks).for_each(|i| task(0, i));
            return;
        }
        // SAFETY: the lifetime is erased, but this function returns only once the gate is closed with nobody inside.
        let task: &'static Task<'static> =
            unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        // SAFETY: the gate is closed and nobody is inside, so nobody else looks at the region.
        unsafe { *self.shared.region.get() = Region { task: Some(task), num_tasks } };
        self.shared.next_task.store(0, Ordering::Relaxed);
        let region = (self.shared.gate.load(Ordering::Relaxed) >> REGION_SHIFT).wrapping_add(1);
        self.shared.gate.store((region << REGION_SHIFT) | OPEN, Ordering::SeqCst);
        self.wake();

        self.shared.take_tasks(0, Region { task: Some(task), num_tasks });
        self.shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            spin(&mut spins);
        }
        let panicked = lock(&self.shared.panic).take();
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }

    /// Wakes the workers that sleep.
    pub(super) fn wake(&self) {
        for (asleep, thread) in self.shared.asleep.iter().zip(&self.sleepers) {
            if asleep.load(Ordering::SeqCst) {
                asleep.store(false, Ordering::SeqCst);
                thread.unpark();
            }
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, worker: usize) {
        let mut last_region = 0;
        let mut spins = 0u32;
        while !self.shutdown.load(Ordering::Relaxed) {
            let gate = self.gate.load(Ordering::Acquire);
            let region = gate >> REGION_SHIFT;
            if gate & OPEN != 0 && region != last_region {
                // A strong exchange could only fail because another worker came or went: look again.
                let entered =
                    self.gate.compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    // SAFETY: inside, the region does not change.
                    self.take_tasks(worker + 1, unsafe { *self.region.get() });
                    self.gate.fetch_sub(1, Ordering::Release);
                    last_region = region;
                    spins = 0;
                }
            } else if spins < SPINS_BEFORE_SLEEP {
                spin(&mut spins);
            } else {
                self.sleep(worker, gate);
                spins = 0;
            }
        }
    }

    fn sleep(&self, worker: usize, seen_gate: u64) {
        self.asleep[worker].store(true, Ordering::SeqCst);
        // Either this sees the region that was just opened, or the caller that opened it sees the flag.
        let same_region = (self.gate.load(Ordering::SeqCst) ^ seen_gate) >> REGION_SHIFT == 0;
        while same_region
            && self.asleep[worker].load(Ordering::SeqCst)
            && !self.shutdown.load(Ordering::SeqCst)
        {
            thread::park();
        }
        self.asleep[worker].store(false, Ordering::SeqCst);
    }

    fn take_tasks(&self, thread: usize, region: Region) {
        let Some(task) = region.task else { return };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next_task.fetch_add(1, Ordering::Relaxed);
                if i >= region.num_tasks {
                    return;
                }
                // SAFETY: the caller of `run` waits until every thread inside has left.
                unsafe { (*task)(thread, i) };
            }
        }));
        if let Err(panic) = result {
            *lock(&self.panic) = Some(panic);
        }
    }
}

fn spin(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
        thread::yield_now();
    } else {
        spin_loop();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        for (asleep, thread) in self.shared.asleep.iter().zip(&self.sleepers) {
            asleep.store(false, Ordering::SeqCst);
            thread.unpark();
        }
        for worker in self.workers.drain(..) {
            // A worker's panic was already handed to the caller of its region.
            worker.join().unwrap_or_default();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("num_threads", &self.num_threads()).finish()
    }
}
