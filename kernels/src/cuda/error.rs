//! What can go wrong in a launch.

use stallfree_comm::nccl::NcclError;
use stallfree_device::DeviceError;

/// A launch failed or was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What ranks tell each other through NCCL failed.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// An operand is too short for its shape.
    #[error("{operand}: {expected} bytes expected for its shape, got {got}")]
    Bytes {
        /// The operand.
        operand: &'static str,
        /// Bytes for its shape.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
    /// No kernel takes this shape.
    #[error("no CUDA kernel for {what}; run this model with --device cpu")]
    Unsupported {
        /// The shape.
        what: String,
    },
}
