//! Ranks on GPUs that cannot reach each other's memory, as those of several hosts: they talk through NCCL.
//!
//! This file knows when ranks meet, and what becomes of those that wait for the lost; what a call to the library looks like, only
//! `nccl/library.rs` knows. Every call submits to a queue and returns; what is submitted can be recorded.

mod communicator;
mod library;
mod nccl_error;

use std::sync::Arc;

pub use communicator::{Communicator, Membership};
pub use library::{UniqueId, find};
pub use nccl_error::NcclError;

/// A rank's communicators.
#[derive(Clone, Debug, Default)]
pub struct Communicators {
    /// With those that hold the other shares of its layers, if there are any.
    pub tensor: Option<Arc<Communicator>>,
    /// With those that hold the same share of the other stages; rank i is stage i.
    pub stages: Option<Arc<Communicator>>,
}

impl Communicators {
    /// Returns those that there are.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Communicator>> {
        self.tensor.iter().chain(&self.stages)
    }
}
