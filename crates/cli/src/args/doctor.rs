//! The flags of `doctor`.

use clap::{Args, ValueEnum};

/// The flags of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Download libraries that are missing, through pip: all of CUDA's, or those named
    #[arg(long, value_enum, value_name = "LIBRARY", num_args = 0.., value_delimiter = ',')]
    pub(crate) fetch: Option<Vec<LibraryName>>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LibraryName {
    /// The run-time compiler
    Nvrtc,
    /// Matrix products
    #[value(name = "cublaslt")]
    CublasLt,
    /// Collectives, for several GPUs
    Nccl,
    /// RDMA between hosts, for --kv-transport nixl
    Nixl,
}
