//! Where to read other instances' blocks.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use stallfree_core::{BlockId, InstanceId, LeaseId, lock};

use crate::{KvMemory, KvPayload};

/// Takes what was read, or why it could not be. Called on a thread of the instance that was read from: must be quick.
pub type Deliver = Box<dyn FnOnce(Result<KvPayload, String>) + Send>;

/// Where an instance's blocks can be read.
pub trait KvPort: fmt::Debug + Send + Sync {
    /// Reads blocks that are kept under a lease; returns at once.
    fn read(&self, lease: LeaseId, blocks: &[BlockId], deliver: Deliver);

    /// Returns the memory that blocks can be copied out of instead, where all of it is on GPUs of this process; `None` by default.
    fn memory(&self) -> Option<&KvMemory> {
        None
    }
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

    /// Returns the ports that are open.
    #[must_use]
    pub fn all(&self) -> Vec<(InstanceId, Arc<dyn KvPort>)> {
        self.lock().iter().map(|(instance, port)| (*instance, Arc::clone(port))).collect()
    }

    /// Returns an instance's port.
    #[must_use]
    pub fn get(&self, instance: InstanceId) -> Option<Arc<dyn KvPort>> {
        self.lock().get(&instance).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<dyn KvPort>>> {
        lock(&self.0)
    }
}
