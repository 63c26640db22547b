//! What starting a worker takes and finds, on whichever device.

use std::time::Duration;

use stallfree_comm::NodeError;
use stallfree_comm::nccl::NcclError;
use stallfree_core::{ExecutorError, KvGeometry, UNSOUND};
use stallfree_kernels::KernelError;
use stallfree_kernels::cuda::CudaError;

/// How much KV cache to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// A share of the memory that is free, no more than can ever be in use.
    Auto,
    /// As many blocks as fit into so many bytes.
    Bytes(u64),
    /// So many blocks.
    Blocks(usize),
}

impl KvSize {
    /// Returns how many blocks of `block_bytes` each to take; `enough` is the most that can ever be in use.
    pub(crate) fn num_blocks(
        self,
        block_bytes: u64,
        enough: usize,
        free: impl FnOnce() -> u64,
    ) -> Result<usize, Error> {
        let (bytes, limit) = match self {
            Self::Blocks(num_blocks) => return Ok(num_blocks.max(1)),
            Self::Bytes(bytes) => (bytes, usize::MAX),
            Self::Auto => (free(), enough),
        };
        match usize::try_from(bytes / block_bytes).unwrap_or(usize::MAX).min(limit) {
            0 => Err(Error::NoKvCache { block_bytes, bytes }),
            num_blocks => Ok(num_blocks),
        }
    }
}

/// Returns the bytes that a KV cache may take by default: what is free, less the share of all memory that is left to others.
pub(crate) fn free_share((free, total): (usize, usize), utilization: f64) -> u64 {
    let reserved = total as f64 * (1.0 - utilization.clamp(0.0, 1.0));
    (free as f64 - reserved).max(0.0) as u64
}

/// What starting a worker found.
#[derive(Clone, Debug)]
pub struct WorkerReport {
    /// The KV cache.
    pub kv: KvGeometry,
    /// Bytes of weights, as the checkpoint has them.
    pub weight_bytes: u64,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Bytes of activations so far.
    pub activation_bytes: u64,
    /// The device, as a log names it.
    pub device: String,
    /// Tokens that a step computes in half a second, even at the longest context; `None` if not measured.
    pub step_tokens: Option<usize>,
    /// How long each phase took.
    pub phases: Vec<(&'static str, Duration)>,
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model could not be loaded.
    #[error(transparent)]
    Model(#[from] stallfree_models::Error),
    /// The device refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The GPU refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The model's logits are unsound.
    #[error("{UNSOUND}")]
    Unsound,
    /// The processes of a model did not meet.
    #[error(transparent)]
    Join(#[from] NodeError),
    /// Ranks can only talk through NCCL, and it is not there.
    #[error("{reason}: ranks can only talk through NCCL; {problem}")]
    NoNccl {
        /// Why only so.
        reason: String,
        /// What is the matter with it.
        problem: NcclError,
    },
    /// Another process is gone.
    #[error("node {node} is gone: {problem}")]
    Node {
        /// Which one.
        node: usize,
        /// What its connection says.
        problem: String,
    },
    /// A rank of this process failed.
    #[error(transparent)]
    Failed(#[from] ExecutorError),
    /// The thread of a rank panicked.
    #[error("a rank panicked while it started; the log says why")]
    Panic,
    /// The KV cache would hold nothing.
    #[error(
        "the KV cache has room for no block: one takes {block_bytes} bytes, and there are {bytes}; give it more with --kv-cache-memory-bytes"
    )]
    NoKvCache {
        /// Bytes that a block of all layers takes.
        block_bytes: u64,
        /// Bytes that there are.
        bytes: u64,
    },
    /// The KV cache is larger than the memory.
    #[error(
        "a KV cache of {bytes} bytes was asked for, and {free} are free: lower --num-gpu-blocks-override or --kv-cache-memory-bytes"
    )]
    KvCacheTooLarge {
        /// Bytes that were asked for.
        bytes: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A thread could not be started.
    #[error("the worker's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::{Error, KvSize, free_share};

    #[test]
    fn a_cache_takes_what_it_is_told() {
        let check = |size: KvSize, free: u64, expected: Option<usize>| {
            let found = size.num_blocks(1000, 50, || free);
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{size:?}, {free} free: {found:?}");
            let says_what_to_do =
                |error: &Error| error.to_string().contains("--kv-cache-memory-bytes");
            assert!(found.as_ref().err().is_none_or(says_what_to_do), "{found:?}");
        };
        check(KvSize::Auto, 20_999, Some(20));
        check(KvSize::Auto, 1 << 30, Some(50)); // no more than can ever be in use
        check(KvSize::Auto, 999, None);
        check(KvSize::Bytes(70_500), 0, Some(70));
        check(KvSize::Bytes(999), 1 << 30, None);
        check(KvSize::Blocks(7), 0, Some(7));
        check(KvSize::Blocks(0), 0, Some(1));
    }

    #[test]
    fn a_share_counts_what_others_have_taken() {
        let check = |free, utilization, expected: u64| {
            assert_eq!(free_share((free, 1000), utilization), expected, "{free} {utilization}");
        };
        check(1000, 0.75, 750);
        check(800, 0.75, 550);
        check(200, 0.75, 0);
        check(500, 1.0, 500);
        check(500, 7.0, 500);
    }
}
