//! NIXL as the way to RDMA: its C API, opened at run time out of the library that NVIDIA publishes as a Python package.
//!
//! Nothing is needed to build. What is bound is what one side needs that registers memory and the other side that reads it: agents,
//! registration, metadata, reads, and asking whether they are done. An agent's metadata travels with its process's
//! [`KvAddress`](crate::KvAddress). NIXL's UCX plugin takes the best way that two machines have: RDMA, shared memory, or TCP.

mod agent;
mod arena;
mod library;

pub use agent::{NixlAgent, NixlError};
pub(crate) use agent::{ReadError, Staged};
pub use library::Nixl;
