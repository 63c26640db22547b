//! The flags of `instance`.

use clap::{Args, ValueEnum};
use stallfree_cluster::Role;

use super::serve::EngineArgs;

/// The flags of `instance`.
#[derive(Debug, Args)]
pub(crate) struct InstanceArgs {
    /// What computes.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Where it belongs.
    #[command(flatten)]
    pub(crate) joining: JoiningArgs,
}

/// Where an instance belongs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Joining")]
pub(crate) struct JoiningArgs {
    /// Where the server waits for instances: its --instances-listen
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) join: String,
    /// What the instance is for
    #[arg(long, value_enum, default_value_t = RoleName::Mixed)]
    pub(crate) role: RoleName,
    /// How KV goes between processes
    #[arg(long, value_enum, default_value_t = KvTransport::Auto)]
    pub(crate) kv_transport: KvTransport,
}

/// How KV goes between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvTransport {
    /// NIXL where there is an RDMA device and the library, else TCP
    Auto,
    /// TCP, over any network
    Tcp,
    /// NIXL's best way to the other process: RDMA, else shared memory or TCP
    Nixl,
}

/// What an instance is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// It computes prompts and their first tokens
    Prefill,
    /// It goes on from first tokens
    Decode,
    /// It runs requests from beginning to end
    Mixed,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Prefill => Self::Prefill,
            RoleName::Decode => Self::Decode,
            RoleName::Mixed => Self::Mixed,
        }
    }
}
