//! Where a process's KV is read.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where a process's KV is read. Who knows it may read: it has a number that nobody guesses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KvAddress {
    /// Where it listens.
    pub tcp: SocketAddr,
    /// What a reader has to know.
    pub secret: u64,
    /// The metadata of its agent of NIXL's; empty if it has none.
    pub nixl: Vec<u8>,
}

/// Returns a number that nobody guesses.
pub(crate) fn random() -> u64 {
    // The keys of maps are random, and that is what is wanted of them.
    RandomState::new().build_hasher().finish()
}

impl KvAddress {
    /// Returns it as it goes over a wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // A vector takes any number of bytes.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. A process that listens on all interfaces is reached at `host`.
    ///
    /// # Errors
    /// It is something else.
    pub fn from_bytes(bytes: &[u8], host: Option<IpAddr>) -> Result<Self, String> {
        let mut address: Self =
            postcard::from_bytes(bytes).map_err(|error| format!("no address: {error}"))?;
        if let Some(host) = host.filter(|_| address.tcp.ip().is_unspecified()) {
            address.tcp.set_ip(host);
        }
        Ok(address)
    }
}
