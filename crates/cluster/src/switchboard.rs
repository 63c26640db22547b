//! Carries out what the directory decides.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use stallfree_core::{InstanceId, KvLease, KvOffer, SeqId};
use stallfree_engine::{Command, HandedOver, Peers};

use crate::Directory;
use crate::directory::Place;

/// The way to the engines.
pub(crate) trait Lines: Send + Sync {
    /// Sends a command; it comes back if the engine is lost.
    fn send(&self, to: InstanceId, command: Command) -> Result<(), Command>;
}

/// The directory and the way to the engines. The directory stays locked while a command is sent, so that a cancellation never
/// overtakes the sequence that it is for.
pub(crate) struct Switchboard {
    directory: Mutex<Directory>,
    lines: Box<dyn Lines>,
}

impl Switchboard {
    pub(crate) fn new(directory: Directory, lines: Box<dyn Lines>) -> Arc<Self> {
        Arc::new(Self { directory: Mutex::new(directory), lines })
    }

    /// Every operation leaves the books whole, so that a poisoned lock is as good as new.
    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a sequence to an instance; `lost` says why another one left it, if it is lost.
    pub(crate) fn route(&self, mut seq: HandedOver, lost: Option<&str>) {
        let mut reason = lost.unwrap_or("every instance is lost").to_owned();
        let mut rescued = lost.is_some();
        let mut directory = self.directory();
        loop {
            let next = directory.next(seq.id);
            let place = directory.place(&seq, rescued);
            let goes_there = |next: &InstanceId| match place {
                Place::Instance(to, _) => to == *next && seq.kv.is_some(),
                Place::Nowhere | Place::Lost => false,
            };
            if let Some(next) = next.filter(|next| !goes_there(next)) {
                drop(self.lines.send(next, Command::Retract(seq.id)));
            }
            match place {
                Place::Nowhere => {
                    if let Some(lease) = seq.kv {
                        self.free(&mut directory, &lease);
                    }
                    return;
                }
                Place::Lost => {
                    // Without its KV there may still be a place for it.
                    let Some(lease) = seq.kv.take() else { return seq.output.fail(&reason) };
                    self.free(&mut directory, &lease);
                }
                Place::Instance(to, until) => {
                    match self.lines.send(to, Command::Resume { seq: Box::new(seq), until }) {
                        Err(Command::Resume { seq: back, .. }) => seq = *back,
                        Ok(()) | Err(_) => return,
                    }
                    directory.lose(to);
                    reason = format!("instance {to} is lost");
                    rescued = false;
                }
            }
        }
    }

    fn free(&self, directory: &mut Directory, lease: &KvLease) {
        directory.release(lease);
        // A lost engine keeps nothing.
        drop(self.lines.send(lease.instance, Command::Release(lease.id.seq)));
    }

    pub(crate) fn begin_requests(&self) -> Vec<bool> {
        self.directory().begin_requests()
    }

    fn offer(&self, offer: KvOffer) {
        let mut directory = self.directory();
        if let Some(next) = directory.offer(&offer) {
            // One that is lost shows when the sequence comes.
            drop(self.lines.send(next, Command::Offer(offer)));
        }
    }

    fn take_back(&self, id: SeqId) {
        let mut directory = self.directory();
        if let Some(next) = directory.take_back(id) {
            drop(self.lines.send(next, Command::Retract(id)));
        }
    }

    pub(crate) fn cancel(&self, id: SeqId) {
        let mut directory = self.directory();
        if let Some(instance) = directory.cancel(id) {
            // What a lost engine had comes back and is dropped then.
            drop(self.lines.send(instance, Command::Cancel(id)));
        }
    }

    /// Lets instances keep what others still want.
    pub(crate) fn renew_leases(&self) {
        let directory = self.directory();
        for (instance, seqs) in directory.leases() {
            drop(self.lines.send(instance, Command::Renew(seqs)));
        }
    }
}

impl fmt::Debug for Switchboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switchboard").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The others, as one instance sees them.
pub(crate) struct Link {
    pub(crate) instance: InstanceId,
    pub(crate) switchboard: Weak<Switchboard>,
}

impl Peers for Link {
    fn take(&mut self, mut seq: HandedOver, lost: Option<&str>) {
        // Without a deployment the reader hears that the engine is gone.
        let Some(switchboard) = self.switchboard.upgrade() else { return };
        if let Some(reason) = lost {
            tracing::warn!(instance = %self.instance, seq = %seq.id, reason, "taking on what a lost instance leaves");
            let mut directory = switchboard.directory();
            directory.lose(self.instance);
            if let Some(lease) = seq.kv.take() {
                switchboard.free(&mut directory, &lease);
            }
            drop(directory);
            seq.progress.num_preemptions += 1;
        }
        switchboard.route(seq, lost);
    }

    fn release(&mut self, lease: &KvLease) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.free(&mut switchboard.directory(), lease);
        }
    }

    fn ended(&mut self, seq: SeqId) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.directory().ended(seq);
        }
    }

    fn offer(&mut self, offer: KvOffer) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.offer(offer);
        }
    }

    fn take_back(&mut self, seq: SeqId) {
        if let Some(switchboard) = self.switchboard.upgrade() {
            switchboard.take_back(seq);
        }
    }
}
