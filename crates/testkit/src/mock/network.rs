//! Mock executors that can fetch from each other's caches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use stallfree_core::{InstanceId, KvFetch, KvGeometry, LeaseBook, lock};

use crate::Language;

/// A mock's cache, a value a token.
#[derive(Clone, Debug)]
pub(super) struct Kv(Arc<Mutex<Vec<Option<Language>>>>);

impl Kv {
    pub(super) fn new(geometry: KvGeometry) -> Self {
        Self(Arc::new(Mutex::new(vec![None; geometry.num_tokens()])))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Language>>> {
        lock(&self.0)
    }

    pub(super) fn get(&self, slot: usize) -> Option<Language> {
        self.lock()[slot]
    }

    pub(super) fn set(&self, slot: usize, value: Language) {
        self.lock()[slot] = Some(value);
    }

    pub(super) fn put(&self, slot: usize, value: Option<Language>) {
        self.lock()[slot] = value;
    }
}

/// Caches that mocks on it can fetch from.
#[derive(Clone, Debug, Default)]
pub struct MockNetwork(Arc<Mutex<HashMap<InstanceId, (LeaseBook, Kv)>>>);

impl MockNetwork {
    pub(super) fn add(&self, instance: InstanceId, leases: LeaseBook, kv: Kv) {
        self.lock().insert(instance, (leases, kv));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, (LeaseBook, Kv)>> {
        lock(&self.0)
    }

    /// Reads what is to be fetched.
    pub(super) fn read(
        &self,
        fetch: &KvFetch,
        block_size: usize,
    ) -> Result<Vec<Option<Language>>, String> {
        let network = self.lock();
        let from = fetch.lease.instance;
        let (leases, kv) =
            network.get(&from).ok_or_else(|| format!("there is no instance {from}"))?;
        let read = || {
            let slots = fetch.sources().iter().flat_map(|block| {
                let first = block.0 as usize * block_size;
                first..first + block_size
            });
            slots.map(|slot| kv.get(slot)).collect()
        };
        let ended = || format!("instance {from} keeps nothing of sequence {} any more", fetch.seq);
        leases.holds(fetch.lease.id).then(read).ok_or_else(ended)
    }
}
