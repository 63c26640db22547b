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
        "the model does not fit: weights take {weight_gib:.1} GiB a GPU, and {gpu} with gpu_memory_utilization {utilization} gives {room_gib:.1} GiB; spread it over more GPUs with --tensor-parallel-size or --pipeline-parallel-size"
    )]
    DoesNotFit {
        /// The GPU.
        gpu: String,
        /// Weights on the fullest GPU, and what running the model takes beside them.
        weight_gib: f64,
        /// What there is.
        room_gib: f64,
        /// The share of the GPU's memory that may be taken.
        utilization: f64,
    },
}
