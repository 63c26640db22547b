//! Moves KV blocks between the caches of two instances, whoever decided that, and however each of them is spread over ranks.
//!
//! An executor opens a [`KvPort`] for others in the deployment's [`Ports`] and reads through theirs. What comes is a [`KvPayload`]: the
//! parts of all ranks, out of which each rank that takes it cuts its own.

mod payload;
mod ports;

pub use payload::{KvBytes, KvPart, KvPayload};
pub use ports::{Deliver, KvPort, Ports};
