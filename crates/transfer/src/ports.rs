//! Where to read other instances' blocks.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stallfree_core::{BlockId, InstanceId, SeqId};

use crate::KvPayload;

/// Takes what was read, or why it could not be. Called on a thread of the instance that was read from: must be quick.
pub type Deliver = Box<dyn FnOnce(Result<KvPayload, String>) + Send>;

/// Where an instance's blocks can be read.
pub trait KvPort: fmt::Debug + Send + Sync {
    /// Reads blocks that are kept under the lease `lease`; returns at once.
    fn read(&self, lease: SeqId, blocks: &[BlockId], deliver: Deliver);
}

/// The ports of a deployment's instances.
#[derive(Clone, Debug, Default)]
pub struct Ports(Arc<Mutex<HashMap<InstanceId, Arc<dyn KvPort>>>>);

impl Ports {
    /// Opens an instance's port to all that share these.
    pub fn open(&self, instance: InstanceId, port: Arc<dyn KvPort>) {
        self.lock().insert(instance, port);
    }

    /// Closes it: the instance is gone.
    pub fn close(&self, instance: InstanceId) {
        self.lock().remove(&instance);
    }

    /// Returns an instance's port.
    #[must_use]
    pub fn get(&self, instance: InstanceId) -> Option<Arc<dyn KvPort>> {
        self.lock().get(&instance).cloned()
    }

    /// The map is whole after every operation, so that a poisoned lock is as good as new.
    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<dyn KvPort>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
