//! Copies blocks from GPU memory to GPU memory, beside the steps of both instances.
//!
//! Each rank that takes blocks pulls its part on a queue and a thread of its own. A copy counts only if the lease lasts when it is
//! submitted and still does when it is done: else the blocks may hold something else by now.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallfree_core::{BlockId, Clock as _, InstanceId, LeaseBook, LeaseId, WallClock};
use stallfree_device::{Copies, DeviceError, Event, Rows, Stream};
use stallfree_kernels::cuda::CudaKv;

use crate::KvPart;
use crate::regions::{Region, regions};

/// For how long the end of a copy is waited for awake: most take less, and to be woken takes a tenth of a millisecond.
const AWAKE: Duration = Duration::from_millis(5);

/// A rank's cache in the memory of a GPU.
#[derive(Clone, Debug)]
pub struct RankMemory {
    /// Which part of the model's KV it holds.
    pub part: KvPart,
    /// The cache.
    pub cache: CudaKv,
}

/// The caches of all ranks of an instance, for others of its process to copy from.
#[derive(Clone, Debug)]
pub struct KvMemory {
    /// The ranks', in order.
    pub ranks: Arc<[RankMemory]>,
    /// Which blocks may be read.
    pub leases: LeaseBook,
}

/// Blocks to be copied.
#[derive(Debug)]
pub struct KvCopy {
    /// Where they are.
    pub from: KvMemory,
    /// Under which lease.
    pub lease: LeaseId,
    /// Where they are there, and where they go here.
    pub blocks: Vec<(BlockId, BlockId)>,
}

/// Hears of the end of a copy, on a thread of the copier: must be quick.
pub type Copied = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Copies into the caches of an instance's ranks.
#[derive(Debug)]
pub struct Copier {
    ranks: Arc<[RankMemory]>,
    jobs: Vec<Sender<Arc<Job>>>,
    threads: Vec<JoinHandle<()>>,
    /// Whether the memory of others can be reached from here, once that is known.
    reached: Mutex<HashMap<InstanceId, bool>>,
}

/// A copy that all ranks have a part in.
struct Job {
    copy: KvCopy,
    /// How many ranks are still at it, what went wrong, and who wants to know.
    state: Mutex<(usize, Result<(), String>, Option<Copied>)>,
}

/// Every critical section leaves what it guards whole, so that a poisoned lock is as good as new.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Copier {
    /// Starts a thread for each rank; they end with the copier.
    ///
    /// # Errors
    /// The system refuses a thread, or a GPU a queue.
    pub fn start(ranks: Vec<RankMemory>) -> io::Result<Self> {
        let mut this = Self {
            ranks: ranks.into(),
            jobs: Vec::new(),
            threads: Vec::new(),
            reached: Mutex::default(),
        };
        for (index, rank) in this.ranks.iter().enumerate() {
            let queue = Queue::new(rank.clone()).map_err(io::Error::other)?;
            let (sender, jobs) = channel();
            let thread = thread::Builder::new()
                .name(format!("stallfree-copier-{index}"))
                .spawn(move || queue.run(&jobs))?;
            this.jobs.push(sender);
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// Returns the caches that it copies into.
    #[must_use]
    pub const fn ranks(&self) -> &Arc<[RankMemory]> {
        &self.ranks
    }

    /// Returns whether the GPUs here can read the memory of instance `of`; asks the driver the first time.
    pub fn reaches(&self, of: InstanceId, memory: &KvMemory) -> bool {
        *lock(&self.reached).entry(of).or_insert_with(|| {
            let mut pairs = self.ranks.iter().flat_map(|to| {
                memory.ranks.iter().map(move |from| (to.cache.device(), from.cache.device()))
            });
            pairs.all(|(to, from)| to.ordinal() == from.ordinal() || to.reach(from).is_ok())
        })
    }

    /// Starts to copy; returns at once.
    pub fn copy(&self, copy: KvCopy, copied: Copied) {
        let state = Mutex::new((self.jobs.len(), Ok(()), Some(copied)));
        let job = Arc::new(Job { copy, state });
        for rank in &self.jobs {
            // A thread that is gone takes its share of the job with it; the last share to be dropped tells.
            drop(rank.send(Arc::clone(&job)));
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.jobs.clear(); // ends the threads' loops
        for thread in self.threads.drain(..) {
            // A panic was printed when it happened.
            drop(thread.join());
        }
    }
}

impl Job {
    /// Takes note that a rank is done; the last one tells.
    fn end_part(&self, result: Result<(), String>) {
        let mut state = lock(&self.state);
        state.0 = state.0.saturating_sub(1);
        if result.is_err() {
            state.1 = result;
        }
        if state.0 == 0 {
            let result = std::mem::replace(&mut state.1, Ok(()));
            let copied = state.2.take();
            drop(state);
            copied.into_iter().for_each(|copied| copied(result.clone()));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(copied) = lock(&self.state).2.take() {
            copied(Err("a copying thread is gone".to_owned()));
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("lease", &self.copy.lease).finish_non_exhaustive()
    }
}

/// A rank's queue of copies.
struct Queue {
    rank: RankMemory,
    stream: Stream,
    done: Event,
}

impl Queue {
    fn new(rank: RankMemory) -> Result<Self, DeviceError> {
        let device = rank.cache.device();
        let (stream, done) = (Stream::new(device)?, Event::new(device)?);
        Ok(Self { rank, stream, done })
    }

    fn run(&self, jobs: &Receiver<Arc<Job>>) {
        for job in jobs {
            job.end_part(self.copy(&job.copy));
        }
    }

    /// Copies this rank's part, and waits for it.
    fn copy(&self, copy: &KvCopy) -> Result<(), String> {
        let holds = || match copy.from.leases.holds(copy.lease) {
            true => Ok(()),
            false => Err(format!("the lease of sequence {} has ended", copy.lease.seq)),
        };
        holds()?;
        let submitted = self.submit(copy);
        let waited = self.wait();
        submitted?;
        waited.map_err(|error| error.to_string())?;
        holds()
    }

    /// Waits for all that was submitted.
    fn wait(&self) -> Result<(), DeviceError> {
        self.done.record(&self.stream)?;
        let clock = WallClock::start();
        while !self.done.is_done() && clock.now().since_start() < AWAKE {
            thread::yield_now();
        }
        self.done.synchronize()
    }

    fn submit(&self, copy: &KvCopy) -> Result<(), String> {
        let to = &self.rank;
        to.cache.device().bind().map_err(|error| error.to_string())?;
        let half = to.cache.half_bytes();
        let sources = &copy.from.ranks;
        if let Some(other) = sources.iter().find(|from| from.cache.half_bytes() != half) {
            return Err(format!(
                "a block of a head has {} bytes there and {half} here; instances need the same block size and KV cache type",
                other.cache.half_bytes()
            ));
        }
        let parts: Vec<&KvPart> = sources.iter().map(|from| &from.part).collect();
        for (source, region) in regions(&to.part, &parts, half)? {
            let from = &sources[source].cache;
            let across = from.device().ordinal() != to.cache.device().ordinal();
            let copies = copies(&to.cache, from, region, &copy.blocks);
            let submitted = copies.and_then(|copies| copies.submit(&self.stream, across));
            submitted.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// Lists the copies of a region of every block.
fn copies(
    to: &CudaKv,
    from: &CudaKv,
    region: Region,
    blocks: &[(BlockId, BlockId)],
) -> Result<Copies, DeviceError> {
    let Region { width, rows: count, from_pitch, to_pitch, .. } = region;
    let rows = Rows { width, count, from_pitch, to_pitch };
    let mut copies = Copies::default();
    for &(there, here) in blocks {
        let (from, to) = (from.block(there.0), to.block(here.0));
        copies.push(to.slice(region.to, to.len()), from.slice(region.from, from.len()), rows)?;
    }
    Ok(copies)
}
