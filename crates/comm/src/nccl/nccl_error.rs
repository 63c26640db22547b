//! What can go wrong with NCCL.

use std::time::Duration;

use stallfree_device::DeviceError;

/// Ranks on GPUs cannot talk through NCCL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// The library is not there, or the GPU failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The library is there, but is not what it should be.
    #[error("libnccl.so.2 has no {name}; `stallfree doctor --fetch nccl` brings one that has")]
    Symbol {
        /// What was looked for.
        name: &'static str,
    },
    /// The library refused a call.
    #[error("{call} failed: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// The library's answer.
        reason: String,
    },
    /// Not all ranks of a communicator came.
    #[error("rank {rank} of {size} waited {} s for the others to come through NCCL", .patience.as_secs())]
    Alone {
        /// The one that waited.
        rank: usize,
        /// How many there are.
        size: usize,
        /// How long it waited.
        patience: Duration,
    },
    /// Another rank is lost, or something went wrong on the way to it.
    #[error("the ranks' connection through NCCL was ended: a rank is lost")]
    Aborted,
    /// A thread could not be started.
    #[error("a thread for NCCL could not be started: {0}")]
    Thread(#[from] std::io::Error),
}
