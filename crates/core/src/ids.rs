//! Identifiers.

use std::fmt;

/// A token's index in the model's vocabulary.
///
/// A plain alias, because tokens cross to tokenizers and kernels in bulk.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
