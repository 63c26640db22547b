//! Communicators: what the ranks of a model tell each other.
//!
//! A rank holds a [`Part`] of a model. [`Mesh`] joins ranks that compute on CPUs, as threads of one process or over TCP. This
//! crate moves numbers; it does not know what they mean.

mod lost;
mod mesh;
mod part;

pub use lost::Lost;
pub use mesh::{Mesh, Peers};
pub use part::{Part, Share};
