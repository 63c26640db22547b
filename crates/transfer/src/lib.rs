//! Moves KV blocks between the caches of two instances, whoever decided that, and however each of them is spread over ranks.
//!
//! An executor opens a [`KvPort`] for others in the deployment's [`Ports`] and reads through theirs. Where both have their caches on GPUs
//! of this process that reach each other, its [`Copier`] copies out of the other's [`KvMemory`]. Else a [`KvPayload`] comes: the parts of
//! all ranks, out of which each rank that takes it cuts its own.

mod copier;
mod payload;
mod ports;
mod regions;

pub use copier::{Copied, Copier, KvCopy, KvMemory, RankMemory};
pub use payload::{KvBytes, KvPart, KvPayload};
pub use ports::{Deliver, KvPort, Ports};
