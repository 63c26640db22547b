//! Communicators: what the ranks of a model tell each other.
//!
//! A rank holds a [`Part`] of a model. [`Mesh`] joins ranks that compute on CPUs, as threads of one process or over TCP;
//! [`nccl`] joins ranks on GPUs. This crate moves numbers; it does not know what they mean.
#![expect(unsafe_code, reason = "calls NCCL")]

mod control;
mod frame;
mod lost;
mod mesh;
pub mod nccl;
mod node_error;
mod nodes;
mod part;
mod stranger;

pub use control::{Control, ControlReceiver, ControlSender};
pub use lost::Lost;
pub use mesh::{Mesh, Peers};
pub use node_error::NodeError;
pub use nodes::{Joined, NodeConfig, decline, join, meet};
pub use part::{Part, Share};
pub use stranger::Stranger;
