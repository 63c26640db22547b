//! The one thing that goes wrong between ranks.

/// A rank is gone, and with it the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} is gone")]
pub struct Lost {
    /// Which one of the communicator's.
    pub rank: usize,
}
