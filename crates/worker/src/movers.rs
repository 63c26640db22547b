//! Who copies blocks between an executor's caches and the host's memory, on their way to or from another executor.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use stallfree_core::lock;
use stallfree_device::DeviceError;
use stallfree_kernels::Backend;
use stallfree_kernels::cuda::CudaKvHost;
use stallfree_transfer::{KvPart, RankMemory};

use crate::Runner;
use crate::executor::Work;
use crate::kv_port::{RankSenders, Reading, Writing};

/// A rank's cache, for who copies blocks of it.
pub(crate) trait KvStore {
    /// Returns which part of the model's KV it holds.
    fn part(&self) -> KvPart;

    /// Returns how many bytes a head's keys and values of a layer take in a block.
    fn piece_bytes(&self) -> usize;

    /// Copies blocks out: `[block, layer, head]` pieces.
    fn read(&mut self, blocks: &[u32]) -> Result<Vec<u8>, String>;

    /// Copies pieces into blocks.
    fn write(&mut self, blocks: &[u32], pieces: &[u8]) -> Result<(), String>;
}

/// What is to be copied.
#[derive(Clone, Debug)]
pub(crate) enum Move {
    /// Blocks out, for another instance.
    Read(Arc<Reading>),
    /// Blocks in, from another instance.
    Write(Arc<Writing>),
}

impl Move {
    /// Does a rank's part of it.
    pub(crate) fn take_part(&self, store: &mut impl KvStore) {
        match self {
            Self::Read(reading) => reading.take_part(store),
            Self::Write(writing) => writing.take_part(store),
        }
    }
}

/// Who copies.
#[derive(Clone, Debug)]
pub(crate) enum Movers {
    /// The ranks themselves, between their steps.
    Ranks(RankSenders),
    /// A thread for each rank, beside its steps.
    Beside(Arc<Mutex<Vec<Sender<Move>>>>),
}

impl Movers {
    /// Starts a thread for each of these caches; they end with [`stop`](Self::stop).
    ///
    /// # Errors
    /// A GPU refuses a queue, the host page-locked memory, or the system a thread.
    pub(crate) fn start(ranks: &[RankMemory]) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (mut senders, mut threads) = (Vec::new(), Vec::new());
        for (index, RankMemory { part, cache }) in ranks.iter().enumerate() {
            let host = CudaKvHost::new(cache.clone()).map_err(std::io::Error::other)?;
            let mut store = HostStore { part: part.clone(), host };
            let (sender, moves) = channel::<Move>();
            let work = move || moves.iter().for_each(|next| next.take_part(&mut store));
            let name = format!("stallfree-mover-{index}");
            threads.push(std::thread::Builder::new().name(name).spawn(work)?);
            senders.push(sender);
        }
        Ok((Self::Beside(Arc::new(Mutex::new(senders))), threads))
    }

    /// Returns whether they copy while the ranks compute.
    pub(crate) const fn are_beside_steps(&self) -> bool {
        matches!(self, Self::Beside(_))
    }

    /// Gives each of them its part of what `make` makes for so many.
    pub(crate) fn share(&self, make: impl FnOnce(usize) -> Move) {
        match self {
            Self::Ranks(ranks) => give_all(ranks, |count| Work::Move(make(count))),
            Self::Beside(threads) => give_all(threads, make),
        }
    }

    /// Lets threads end with what they have.
    pub(crate) fn stop(&self) {
        if let Self::Beside(threads) = self {
            lock(threads).clear();
        }
    }
}

/// Gives each the same work, made for so many.
fn give_all<T: Clone>(to: &Mutex<Vec<Sender<T>>>, make: impl FnOnce(usize) -> T) {
    let to = lock(to);
    let work = make(to.len());
    // One that is gone takes its part of the work with it; the last part to be dropped tells.
    to.iter().for_each(|one| drop(one.send(work.clone())));
}

/// A cache on a GPU, as a thread beside the steps sees it.
struct HostStore {
    part: KvPart,
    host: CudaKvHost,
}

impl KvStore for HostStore {
    fn part(&self) -> KvPart {
        self.part.clone()
    }

    fn piece_bytes(&self) -> usize {
        self.host.piece_bytes()
    }

    fn read(&mut self, blocks: &[u32]) -> Result<Vec<u8>, String> {
        self.host.read(blocks).map_err(|error| failed(&error))
    }

    fn write(&mut self, blocks: &[u32], pieces: &[u8]) -> Result<(), String> {
        self.host.write(blocks, pieces).map_err(|error| failed(&error))
    }
}

/// The steps meet the same failure, which is the loss of the executor.
fn failed(error: &DeviceError) -> String {
    format!("a GPU copies no blocks: {error}")
}

impl<B: Backend> KvStore for Runner<B> {
    fn part(&self) -> KvPart {
        self.kv_part()
    }

    fn piece_bytes(&self) -> usize {
        self.backend().kv_piece_bytes()
    }

    fn read(&mut self, blocks: &[u32]) -> Result<Vec<u8>, String> {
        Ok(self.backend_mut().read_kv(blocks))
    }

    fn write(&mut self, blocks: &[u32], pieces: &[u8]) -> Result<(), String> {
        self.backend_mut().write_kv(blocks, pieces);
        Ok(())
    }
}
