//! Copies blocks from GPU memory to GPU memory, beside the steps of both instances.
//!
//! Each rank that takes blocks pulls its part on a queue and a thread of its own. A copy counts only if the lease lasts when it is
//! submitted and still does when it is done: else the blocks may hold something else by now.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallfree_core::{BlockId, Clock as _, InstanceId, LeaseBook, LeaseId, WallClock, lock};
use stallfree_device::{Copies, DeviceError, Event, Rows, Stream};
use stallfree_kernels::cuda::CudaKv;

use crate::regions::{Region, regions};
use crate::{Countdown, KvPart};

/// For how long the end of a copy is waited for awake: most take less.
const AWAKE: Duration = Duration::from_millis(5);

/// How often it is looked for after that.
const PERIOD: Duration = Duration::from_micros(100);

/// After so long a copy counts as one that does not end: none takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Hears that a copy does not end, on a thread of the copier. What it writes into may change at any time from then on: the instance is lost.
pub type Stuck = Arc<dyn Fn(String) + Send + Sync>;

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
    parts: Countdown<(), String>,
}

impl Copier {
    /// Starts a thread for each rank; they end with the copier. `stuck` hears of a copy that does not end.
    ///
    /// # Errors
    /// The system refuses a thread, or a GPU a queue.
    pub fn start(ranks: Vec<RankMemory>, stuck: &Stuck) -> io::Result<Self> {
        let mut this = Self {
            ranks: ranks.into(),
            jobs: Vec::new(),
            threads: Vec::new(),
            reached: Mutex::default(),
        };
        for (index, rank) in this.ranks.iter().enumerate() {
            let queue = Queue::new(rank.clone(), Arc::clone(stuck)).map_err(io::Error::other)?;
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
        let gone = "a copying thread is gone".to_owned();
        let parts = Countdown::new(self.jobs.len(), gone, copied);
        let job = Arc::new(Job { copy, parts });
        for rank in &self.jobs {
            // A thread that is gone takes its share of the job with it.
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

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("lease", &self.copy.lease).finish_non_exhaustive()
    }
}

/// A rank's queue of copies.
struct Queue {
    rank: RankMemory,
    stuck: Stuck,
    stream: Stream,
    done: Event,
}

impl Queue {
    fn new(rank: RankMemory, stuck: Stuck) -> Result<Self, DeviceError> {
        let device = rank.cache.device();
        let (stream, done) = (Stream::new(device)?, Event::new(device)?);
        Ok(Self { rank, stuck, stream, done })
    }

    fn run(&self, jobs: &Receiver<Arc<Job>>) {
        for job in jobs {
            let Some(copied) = self.copy(&job.copy) else {
                // Its share of the job goes with the thread, and so do those of jobs to come.
                let seconds = PATIENCE.as_secs();
                return (self.stuck)(format!("KV is still being copied after {seconds} s"));
            };
            job.parts.end_part(|()| copied);
        }
    }

    /// Copies this rank's part, and waits for it; `None` if it does not end.
    fn copy(&self, copy: &KvCopy) -> Option<Result<(), String>> {
        let holds = || match copy.from.leases.holds(copy.lease) {
            true => Ok(()),
            false => Err(format!("the lease of sequence {} has ended", copy.lease.seq)),
        };
        if let Err(ended) = holds() {
            return Some(Err(ended));
        }
        let submitted = self.submit(copy);
        let waited = self.wait().transpose()?;
        Some(submitted.and(waited.map_err(|error| error.to_string())).and_then(|()| holds()))
    }

    /// Waits for all that was submitted; `None` if it does not end.
    fn wait(&self) -> Result<Option<()>, DeviceError> {
        self.done.record(&self.stream)?;
        wait_until(|| self.done.is_done(), PATIENCE)
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

/// Waits until something is done, but no longer than `patience`; `None` if it is not.
fn wait_until<E>(
    is_done: impl Fn() -> Result<bool, E>,
    patience: Duration,
) -> Result<Option<()>, E> {
    let clock = WallClock::start();
    while !is_done()? {
        match clock.now().since_start() {
            waited if waited < AWAKE.min(patience) => thread::yield_now(),
            waited if waited < patience => thread::sleep(PERIOD),
            _ => return Ok(None),
        }
    }
    Ok(Some(()))
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::{AWAKE, wait_until};

    #[test]
    fn a_copy_is_not_waited_for_without_end() {
        let after = |count: u32, outcome: Result<bool, &'static str>| {
            let looked = Cell::new(0);
            let is_done = || {
                looked.set(looked.get() + 1);
                if looked.get() < count { Ok(false) } else { outcome }
            };
            wait_until(is_done, AWAKE + Duration::from_millis(20))
        };
        assert_eq!(after(1, Ok(true)), Ok(Some(())));
        assert_eq!(after(5, Ok(true)), Ok(Some(())));
        assert_eq!(after(5, Err("it failed")), Err("it failed"));
        assert_eq!(after(1, Ok(false)), Ok(None));
    }
}
