//! Blocks on their way from one executor to another.
//!
//! Between GPUs of this process that reach each other, the ranks that want them copy them out themselves, beside all steps. Else
//! all ranks of the one are copied out of and all of the other into: of GPUs also beside the steps, on threads of their own; on CPUs by the
//! ranks between their steps, in the order of everything else that a rank does: what is read is what the steps before have left, and steps to
//! come see what was written.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use stallfree_core::{BlockId, InstanceId, KvFetch, LeaseBook, LeaseId, SeqId, lock};
use stallfree_transfer::{
    Copier, Countdown, Deliver, KvBytes, KvCopy, KvMemory, KvPayload, KvPort, Ports,
};

use crate::executor::{SharedWaker, Work};
use crate::movers::{KvStore, Move, Movers};

/// Blocks that are read at once where they are copied beside the steps: while some are copied in, the next are copied out. 16 MiB of
/// Llama-3-8B: so much the allocator keeps and gives again, where more comes from the system anew each time, page by page. Ranks that
/// copy between their steps get all at once, or there would be steps between the reads.
const BLOCKS_A_READ: usize = 8;

/// The way to an executor's ranks; empty once it ends.
pub(crate) type RankSenders = Arc<Mutex<Vec<Sender<Work>>>>;

/// Where others read this executor's blocks.
#[derive(Debug)]
pub(crate) struct RankPort {
    pub(crate) instance: InstanceId,
    pub(crate) movers: Movers,
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
        let gone = format!("instance {} is lost", self.instance);
        self.movers.share(|num_ranks| {
            Move::Read(Arc::new(Reading {
                instance: self.instance,
                lease,
                leases: self.leases.clone(),
                blocks: blocks.iter().map(|block| block.0).collect(),
                parts: Countdown::new(num_ranks, gone, deliver),
            }))
        });
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
    pub(crate) fn take_part(&self, store: &mut impl KvStore) {
        let read = self.read(store);
        self.parts.end_part(|payload| {
            let (part, piece) = (store.part(), store.piece_bytes());
            payload.parts.push(KvBytes { part, piece, bytes: read? });
            Ok(())
        });
    }

    /// Whoever is to write into the blocks does so after the lease has ended: what is read counts if it lasts until the end.
    fn read(&self, store: &mut impl KvStore) -> Result<Vec<u8>, String> {
        let holds = || match self.leases.holds(self.lease) {
            true => Ok(()),
            false => Err(format!("instance {} keeps it no more", self.instance)),
        };
        holds()?;
        let read = store.read(&self.blocks)?;
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
    pub(crate) fn take_part(&self, store: &mut impl KvStore) {
        let pieces = self.payload.cut(&store.part(), store.piece_bytes(), self.blocks.len());
        let written = pieces.and_then(|pieces| store.write(&self.blocks, &pieces));
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

    /// Returns whether what this fetches is copied by no rank, but straight from another GPU.
    pub(crate) fn is_direct(&self, fetch: &KvFetch) -> bool {
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
        movers: &Movers,
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
        // The other side has a cache of the same kind.
        let at_once = if movers.are_beside_steps() { BLOCKS_A_READ } else { fetch.blocks.len() };
        let reads = fetch.sources().chunks(at_once).zip(fetch.blocks.chunks(at_once));
        let tell = move |all| ended.add(seq, all);
        let reads_left = Countdown::new(reads.len(), "a read was dropped".to_owned(), tell);
        let reads_left = Arc::new(reads_left);
        for (there, here) in reads {
            let blocks = here.iter().map(|block| block.0).collect();
            let (movers, reads_left) = (movers.clone(), Arc::clone(&reads_left));
            let deliver = move |read: Result<KvPayload, String>| match read {
                Err(reason) => reads_left.end_part(|()| Err(reason)),
                Ok(payload) => movers.share(|num_ranks| {
                    let tell = move |written| reads_left.end_part(|()| written);
                    let parts = Countdown::new(num_ranks, "a rank is gone".to_owned(), tell);
                    Move::Write(Arc::new(Writing { payload, blocks, parts }))
                }),
            };
            port.read(fetch.lease.id, there, Box::new(deliver));
        }
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

    use super::{RankPort, RankSenders};
    use crate::movers::Movers;

    #[test]
    fn blocks_that_are_not_there_are_refused() {
        let leases = LeaseBook::default();
        let lease = leases.grant(SeqId(1));
        let (instance, movers) = (InstanceId(0), Movers::Ranks(RankSenders::default()));
        let port = RankPort { instance, movers, leases, num_blocks: 4, memory: None };
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
