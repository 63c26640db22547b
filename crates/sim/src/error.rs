//! Why a device can't be simulated.

use std::path::PathBuf;

/// Why a device can't be simulated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a shipped GPU nor a calibration file has this name.
    #[error(
        "there is no GPU `{name}` to simulate, and no such file; there are {known}, or the path of a file that `stallfree calibrate` wrote"
    )]
    UnknownGpu {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A calibration file can't be read.
    #[error("the calibration file {path} can't be read: {reason}")]
    BadCalibration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A model's configuration lacks something.
    #[error("the model's config.json has no usable `{key}`")]
    BadShape {
        /// What is missing or zero.
        key: &'static str,
    },
    /// The model can't be split like that.
    #[error("{what} {given} does not work: {reason}")]
    BadSplit {
        /// The flag's name.
        what: &'static str,
        /// Its value.
        given: usize,
        /// What would.
        reason: String,
    },
    /// The weights don't fit.
    #[error(
        "the model does not fit: weights and activations take {taken_gib:.1} GiB a GPU, and {gpu} with gpu_memory_utilization {utilization} gives {room_gib:.1} GiB; spread it over more GPUs with --tensor-parallel-size or --pipeline-parallel-size"
    )]
    DoesNotFit {
        /// The GPU.
        gpu: String,
        /// Weights on the fullest GPU, and what running the model takes beside them.
        taken_gib: f64,
        /// What there is.
        room_gib: f64,
        /// The share of the GPU's memory that may be taken.
        utilization: f64,
    },
    /// The KV cache would hold nothing.
    #[error(
        "the KV cache has room for no block: one of {block_size} tokens takes {block_bytes} bytes a GPU, and there are {bytes}; give it more with {flag}, or lower --block-size"
    )]
    NoKvCache {
        /// Tokens a block.
        block_size: usize,
        /// Bytes of a block on each GPU.
        block_bytes: u64,
        /// Bytes that there are.
        bytes: u64,
        /// What says how many there are.
        flag: &'static str,
    },
    /// More blocks than can be kept account of.
    #[error(
        "{num_blocks} blocks of {block_size} tokens are too many to simulate: there may be {max_blocks} blocks and {max_tokens} tokens, whose books are in memory; lower --num-gpu-blocks-override, --kv-cache-memory-bytes or --block-size"
    )]
    KvCacheTooLarge {
        /// Blocks that were asked for, or that there is room for.
        num_blocks: usize,
        /// Tokens a block.
        block_size: usize,
        /// The most blocks.
        max_blocks: usize,
        /// The most tokens in all of them.
        max_tokens: usize,
    },
}
