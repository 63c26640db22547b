//! Moves KV blocks between the caches of two instances, whoever decided that, and however each of them is spread over ranks.
//!
//! An executor opens a [`KvPort`] for others in the deployment's [`Ports`] and reads through theirs. Where both have their caches on GPUs
//! of this process that reach each other, its [`Copier`] copies out of the other's [`KvMemory`]. Else a [`KvPayload`] comes: the parts of
//! all ranks, out of which each rank that takes it cuts its own. A process shows its ports to others through a [`KvServer`], and reads
//! theirs through the ports of a [`KvNetwork`]: over TCP, or over NIXL where both have a [`NixlAgent`].

#![expect(unsafe_code, reason = "NIXL's C API, and memory that it registers")]

mod address;
mod copier;
mod countdown;
mod nixl;
mod payload;
mod ports;
mod regions;
mod tcp;

pub use address::KvAddress;
pub use copier::{Copied, Copier, KvCopy, KvMemory, RankMemory, Stuck};
pub use countdown::Countdown;
pub use nixl::{Nixl, NixlAgent, NixlError};
pub use payload::{KvBytes, KvPart, KvPayload};
pub use ports::{Deliver, KvPort, Ports};
pub use tcp::{KvNetwork, KvServer};
