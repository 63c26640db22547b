//! An instance as those see it who give it sequences.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use stallfree_core::InstanceId;
use stallfree_engine::{
    Command, EngineHandle, EngineStats, Health, PromptLimits, Ringer, SubmitError, ThreadedEngine,
};

use crate::switchboard::Lines;

/// An instance: an engine on a thread of this process, or one in another process.
pub(crate) trait Instance: fmt::Debug + Send + Sync {
    /// Sends a command; it comes back if the instance is lost.
    fn send(&self, command: Command) -> Result<(), Command>;

    /// Returns which prompts it takes.
    fn limits(&self) -> PromptLimits;

    /// Checks that another sequence would be taken now.
    ///
    /// # Errors
    /// Its queue is full, or it is draining or lost.
    fn check_queue(&self) -> Result<(), SubmitError>;

    /// Returns its counters and gauges.
    fn stats(&self) -> EngineStats;

    /// Returns whether it is alive and stepping.
    fn health(&self) -> Health;

    /// Takes no new requests from now on.
    fn drain(&self);

    /// Leaves it to `ringer` to wake readers, where their tokens come from an engine of this process.
    fn set_ringer(&self, _ringer: Ringer) {}
}

impl Instance for ThreadedEngine {
    fn send(&self, command: Command) -> Result<(), Command> {
        Self::send(self, command)
    }

    fn limits(&self) -> PromptLimits {
        Self::limits(self)
    }

    fn check_queue(&self) -> Result<(), SubmitError> {
        Self::check_queue(self)
    }

    fn stats(&self) -> EngineStats {
        EngineHandle::stats(self)
    }

    fn health(&self) -> Health {
        EngineHandle::health(self)
    }

    fn drain(&self) {
        EngineHandle::drain(self);
    }

    fn set_ringer(&self, ringer: Ringer) {
        EngineHandle::set_ringer(self, ringer);
    }
}

/// All instances, by their numbers; lost ones keep theirs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Instances(Arc<RwLock<Vec<Arc<dyn Instance>>>>);

impl Instances {
    /// Adds the next one.
    pub(crate) fn push(&self, instance: Arc<dyn Instance>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(instance);
    }

    /// Takes all of them out.
    pub(crate) fn take(&self) -> Vec<Arc<dyn Instance>> {
        std::mem::take(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns all of them.
    pub(crate) fn all(&self) -> Vec<Arc<dyn Instance>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Lines for Instances {
    fn send(&self, to: InstanceId, command: Command) -> Result<(), Command> {
        let instances = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match instances.get(to.0 as usize) {
            Some(instance) => instance.send(command),
            None => Err(command),
        }
    }
}
