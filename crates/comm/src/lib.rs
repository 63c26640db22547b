//! Communicators: what the ranks of a model tell each other.
//!
//! A rank holds a [`Part`] of a model. [`Mesh`] joins ranks that compute on CPUs, as threads of one process or over TCP. This
//! crate moves numbers; it does not know what they mean.

mod control;
mod frame;
mod lost;
mod mesh;
mod node_error;
mod nodes;
mod part;

pub use control::{Control, ControlReceiver, ControlSender};
pub use lost::Lost;
pub use mesh::{Mesh, Peers};
pub use node_error::NodeError;
pub use nodes::{Joined, NodeConfig, join};
pub use part::{Part, Share};
