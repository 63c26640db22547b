//! KV over TCP: the transport that works between any two processes.
//!
//! Each process has a [`KvServer`] for its own instances' blocks, and one connection to each other process that it reads from. An order
//! names an instance, a lease and blocks; the answer brings what all ranks keep of these, parts back to back, with no copy between what
//! a rank copied out and the socket, and none between the socket and what a rank copies in. Orders are answered in any order. The
//! lease is checked where the blocks are, while they are copied out.

mod frame;
mod link;
mod server;

pub use link::KvNetwork;
pub use server::KvServer;
