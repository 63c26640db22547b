//! Instances in processes of their own, also on other hosts.
//!
//! A server opens a [`Gate`](gate::Gate); an instance [`join`]s it. From then on they hold one stream in each direction: orders one way,
//! and the other way what a step has for readers and peers, a message a step. To everybody else a
//! [`RemoteInstance`](remote_instance::RemoteInstance) is an instance like those of the server's own process. An instance whose
//! connection breaks, or that says nothing for [`SILENCE`], is lost.
//!
//! What KV moves between processes is not seen here: instances are told each other's addresses, in the words of whoever moves it.

mod agreement;
mod clock;
mod convert;
pub(crate) mod gate;
mod joined;
mod message;
mod remote_instance;
mod service;
mod teller;
mod uplink;

use std::time::Duration;

use stallfree_core::InstanceId;

pub use agreement::Agreement;
pub use gate::GateConfig;
pub use joined::{JoinConfig, JoinError, Joined, join};

/// How often either side shows that it is alive.
const BEAT: Duration = Duration::from_secs(1);

/// After how much silence the other side counts as lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(8);

/// Who is told where the KV of instances in other processes is read.
pub trait Neighbours: Send + Sync {
    /// There is an instance, and this is its address.
    fn came(&self, instance: InstanceId, kv_address: &[u8]);

    /// It is gone.
    fn left(&self, instance: InstanceId);
}
