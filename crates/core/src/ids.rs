//! Identifiers.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};

/// A token's index in the model's vocabulary.
///
/// A plain alias, because tokens cross to tokenizers and kernels in bulk.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A sequence's number; an engine never reuses one.
    SeqId(u64)
}
id! {
    /// A block's index in the paged KV cache.
    BlockId(u32)
}
id! {
    /// A batch's number, counted from 0 in the order of submission.
    BatchId(u64)
}
id! {
    /// An instance's number: its place in the deployment.
    InstanceId(u32)
}

/// A map by sequence, quick enough to be asked for every sequence in every step.
pub type SeqMap<V> = HashMap<SeqId, V, BuildHasherDefault<SeqIdHasher>>;

/// Hashes a [`SeqId`]: the engine counts them up itself, so nobody can choose colliding ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeqIdHasher(u64);

impl Hasher for SeqIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // The map takes the high bits too; an odd factor spreads consecutive numbers over all of them.
        self.0 = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
