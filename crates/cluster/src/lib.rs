//! Many engines behind one [`EngineHandle`](stallfree_engine::EngineHandle): who prefills, who decodes, and who takes on what others
//! leave.
//!
//! A prefill instance computes a prompt and its first token and hands the sequence over; a decode instance fetches its KV and goes
//! on from that token, so that nothing is computed twice. What an instance leaves when it is lost is computed again elsewhere, from
//! prompt and output, and its reader notices nothing but the delay. As with engines, what decides ([`Directory`]) has no thread and no
//! clock; [`Cluster`] drives it to serve, [`ClusterReplay`] in virtual time.

mod cluster;
mod directory;
mod dispatch;
mod instance;
mod member;
mod remote;
mod replay;
mod role;
mod seq_view;
mod switchboard;
mod waiting;

pub use cluster::{Cluster, ClusterConfig, Start};
pub use directory::Directory;
pub use dispatch::{
    Choice, DISPATCH_POLICIES, Dispatch, DispatchConfig, DispatchPolicy, Dispatcher, UnknownPolicy,
    build,
};
pub use member::{End, Member, Prefill};
pub use remote::{Agreement, GateConfig, JoinConfig, JoinError, Joined, Neighbours, join};
pub use replay::ClusterReplay;
pub use role::roles;
pub use seq_view::SeqView;
pub use stallfree_engine::Role;
