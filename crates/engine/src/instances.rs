//! The instances behind a handle, as an operator sees them.

use stallfree_core::InstanceId;

use crate::Role;

/// An instance of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Which one.
    pub instance: InstanceId,
    /// What it is for.
    pub role: Role,
    /// Whether it takes nothing new, and leaves what it has to the others.
    pub is_draining: bool,
    /// Whether it is lost.
    pub is_lost: bool,
    /// Its sequences.
    pub num_seqs: usize,
    /// Of these, those whose prompts are still to be computed.
    pub num_prefills: usize,
    /// The tokens that its sequences had when they came.
    pub num_tokens: usize,
    /// Sequences whose KV it keeps until others have fetched it.
    pub num_kept: usize,
}

/// What is to be different about an instance; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceChange {
    /// What it is for from now on. What it runs it goes on with.
    pub role: Option<Role>,
    /// Whether it is to drain.
    pub draining: Option<bool>,
}
