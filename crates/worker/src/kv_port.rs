//! Blocks on their way from one executor to another.
//!
//! Between GPUs of this process that reach each other, the ranks that want them copy them out themselves, beside all steps. Else all ranks
//! of the one copy them out and all of the other copy them in. Both then happen between steps, in the order of everything else that a
//! rank does: what is read is what the steps before have left, and steps to come see what was written.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use stallfree_core::{BlockId, InstanceId, KvFetch, LeaseBook, LeaseId, SeqId, lock};
use stallfree_kernels::Backend;
use stallfree_transfer::{
    Copier, Countdown, Deliver, KvBytes, KvCopy, KvMemory, KvPayload, KvPort, Ports,
};

use crate::Runner;
use crate::executor::{SharedWaker, Work};

/// The way to an executor's ranks; empty once it ends.
pub(crate) type Ranks = Arc<Mutex<Vec<Sender<Work>>>>;

/// Where others read this executor's blocks.
#[derive(Debug)]
pub(crate) struct RankPort {
    pub(crate) instance: InstanceId,
    pub(crate) ranks: Ranks,
    pub(crate) leases: LeaseBook,
    /// How many blocks there are.
    pub(crate) num_blocks: usize,
    /// Where the ranks' caches are, if others may copy from there.
    pub(crate) memory: Option<KvMemory>,
}

impl KvPort for RankPort {
    fn read(&self, lease: LeaseId, blocks: &[BlockId], deliver: Deliver) {
        let num_blocks = self.num_blocks;
        if let Some(strange) = blocks.iter().find(|block| block.0 as usize >= num_blocks) {
            let instance = self.instance;
            return deliver(Err(format!(
                "block {strange} was asked for of instance {instance}, which has {num_blocks}"
            )));
        }
        if blocks.len() > num_blocks {
            let (wanted, instance) = (blocks.len(), self.instance);
            return deliver(Err(format!(
                "{wanted} blocks were asked for of instance {instance}, which has {num_blocks}"
            )));
        }
        let ranks = lock(&self.ranks);
        let gone = format!("instance {} is lost", self.instance);
        let reading = Arc::new(Reading {
            instance: self.instance,
            lease,
            leases: self.leases.clone(),
            blocks: blocks.iter().map(|block| block.0).collect(),
            parts: Countdown::new(ranks.len(), gone, deliver),
        });
        for rank in ranks.iter() {
            // A rank that is gone takes its share of the reading with it.
            drop(rank.send(Work::Read(Arc::clone(&reading))));
        }
    }

    fn memory(&self) -> Option<&KvMemory> {
        self.memory.as_ref()
    }
}

/// Blocks that the ranks of one executor copy out.
pub(crate) struct Reading {
    instance: InstanceId,
    lease: LeaseId,
    leases: LeaseBook,
    blocks: Vec<u32>,
    parts: Countdown<KvPayload, String>,
}

impl Reading {
    /// Copies a rank's part out; the last one delivers.
    pub(crate) fn take_part<B: Backend>(&self, runner: &mut Runner<B>) {
        let part = runner.kv_part();
        let read = self.read(runner);
        self.parts.end_part(|payload| {
            let gone = || format!("instance {} keeps it no more", self.instance);
            let (piece, bytes) = read.ok_or_else(gone)?;
            payload.parts.push(KvBytes { part, piece, bytes });
            Ok(())
        });
    }

    /// Steps and copies that are to write into the blocks come later on this thread, once the lease has ended; what others copy in
    /// beside the steps shows in that.
    fn read<B: Backend>(&self, runner: &mut Runner<B>) -> Option<(usize, Vec<u8>)> {
        let holds = || self.leases.holds(self.lease).then_some(());
        holds()?;
        let read = runner.read_kv(&self.blocks);
        holds().map(|()| read)
    }
}

/// Blocks that the ranks of one executor copy in.
#[derive(Debug)]
pub(crate) struct Writing {
    payload: KvPayload,
    blocks: Vec<u32>,
    parts: Countdown<(), String>,
}

impl Writing {
    /// Copies a rank's part in; the last one tells.
    pub(crate) fn take_part<B: Backend>(&self, runner: &mut Runner<B>) {
        let written = runner.write_kv(&self.blocks, &self.payload);
        self.parts.end_part(|()| written);
    }
}

/// A fetch that has ended, for this sequence.
type Fetched = (SeqId, Result<(), String>);

/// Fetches that have ended, and who wants to hear of it.
#[derive(Clone, Debug)]
struct Ended {
    results: Arc<Mutex<Vec<Fetched>>>,
    waker: SharedWaker,
}

impl Ended {
    fn add(&self, seq: SeqId, result: Result<(), String>) {
        lock(&self.results).push((seq, result));
        if let Some(waker) = lock(&self.waker).as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// What an executor fetches from others.
#[derive(Debug, Default)]
pub(crate) struct Fetches {
    /// The others, and its own number among them.
    membership: Option<(Ports, InstanceId)>,
    /// Copies from others' memory into the ranks'.
    copier: Option<Copier>,
    results: Arc<Mutex<Vec<Fetched>>>,
}

impl Fetches {
    pub(crate) fn join(&mut self, ports: Ports, instance: InstanceId, copier: Option<Copier>) {
        if let Some(copier) = &copier {
            // Opening the way to another GPU's memory takes milliseconds, which no request should wait for.
            for (other, port) in ports.all() {
                let reaches = port.memory().is_some_and(|memory| copier.reaches(other, memory));
                tracing::debug!(%instance, %other, reaches, "KV can be copied from GPU to GPU");
            }
        }
        self.membership = Some((ports, instance));
        self.copier = copier;
    }

    /// Returns whether what this fetches is copied beside the steps, and not between them.
    pub(crate) fn is_beside_steps(&self, fetch: &KvFetch) -> bool {
        let port = self.membership.as_ref().and_then(|(ports, _)| ports.get(fetch.lease.instance));
        port.is_some_and(|port| self.direct(fetch, &*port).is_some())
    }

    /// Returns what copies and from where, if there is a direct way.
    fn direct<'a>(
        &'a self,
        fetch: &KvFetch,
        port: &'a dyn KvPort,
    ) -> Option<(&'a Copier, &'a KvMemory)> {
        let (copier, memory) = self.copier.as_ref().zip(port.memory())?;
        copier.reaches(fetch.lease.instance, memory).then_some((copier, memory))
    }

    /// Closes its port.
    pub(crate) fn leave(&mut self) {
        if let Some((ports, instance)) = self.membership.take() {
            ports.close(instance);
        }
    }

    /// Takes note that a fetch has failed.
    pub(crate) fn fail(&self, seq: SeqId, reason: String, waker: &SharedWaker) {
        self.ended(waker).add(seq, Err(reason));
    }

    fn ended(&self, waker: &SharedWaker) -> Ended {
        Ended { results: Arc::clone(&self.results), waker: Arc::clone(waker) }
    }

    /// Copies, or reads there and writes here, and tells.
    pub(crate) fn start(
        &self,
        fetch: &KvFetch,
        ranks: &Ranks,
        waker: &SharedWaker,
    ) -> Result<(), String> {
        let from = fetch.lease.instance;
        let (ended, seq) = (self.ended(waker), fetch.seq);
        if fetch.blocks.is_empty() {
            // All of it was found here.
            ended.add(seq, Ok(()));
            return Ok(());
        }
        let port = self.membership.as_ref().and_then(|(ports, _)| ports.get(from));
        let port = port.ok_or_else(|| format!("there is no way to instance {from}"))?;
        if let Some((copier, memory)) = self.direct(fetch, &*port) {
            let pairs = fetch.sources().iter().copied().zip(fetch.blocks.iter().copied());
            let (from, lease) = (memory.clone(), fetch.lease.id);
            let copy = KvCopy { from, lease, blocks: pairs.collect() };
            copier.copy(copy, Box::new(move |copied| ended.add(seq, copied)));
            return Ok(());
        }
        let blocks = fetch.blocks.iter().map(|block| block.0).collect();
        let ranks = Arc::clone(ranks);
        let deliver = move |read: Result<KvPayload, String>| match read {
            Err(reason) => ended.add(seq, Err(reason)),
            Ok(payload) => {
                let ranks = lock(&ranks);
                let tell = move |written| ended.add(seq, written);
                let parts = Countdown::new(ranks.len(), "a rank is gone".to_owned(), tell);
                let writing = Arc::new(Writing { payload, blocks, parts });
                for rank in ranks.iter() {
                    // If a rank is gone, so is the engine that would hear of it.
                    drop(rank.send(Work::Write(Arc::clone(&writing))));
                }
            }
        };
        port.read(fetch.lease.id, fetch.sources(), Box::new(deliver));
        Ok(())
    }

    pub(crate) fn take_ended(&self) -> Vec<Fetched> {
        std::mem::take(&mut lock(&self.results))
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("lease", &self.lease).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use stallfree_core::{BlockId, InstanceId, LeaseBook, SeqId};
    use stallfree_transfer::KvPort;

    use super::{RankPort, Ranks};

    #[test]
    fn blocks_that_are_not_there_are_refused() {
        let leases = LeaseBook::default();
        let lease = leases.grant(SeqId(1));
        let (instance, ranks) = (InstanceId(0), Ranks::default());
        let port = RankPort { instance, ranks, leases, num_blocks: 4, memory: None };
        let check = |blocks: &[u32], words: &str| {
            let (sender, told) = channel();
            let blocks: Vec<BlockId> = blocks.iter().map(|&block| BlockId(block)).collect();
            port.read(lease, &blocks, Box::new(move |read| drop(sender.send(read))));
            let error = told.try_recv().expect("an answer").expect_err("a refusal");
            assert!(error.contains(words), "{error}");
        };
        check(&[0, 4], "block 4");
        check(&[0; 5], "5 blocks");
        check(&[0, 3], "instance 0 is lost"); // it has no rank
    }
}
