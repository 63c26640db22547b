//! What an instance is for.

use std::fmt;

/// What an instance is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It computes prompts and their first tokens.
    Prefill,
    /// It goes on from first tokens.
    Decode,
    /// It runs requests from beginning to end.
    Mixed,
}

/// Returns the roles of `count` instances of which the first `partition` prefill; if that is all of them, all are mixed.
#[must_use]
pub fn roles(count: usize, partition: usize) -> Vec<Role> {
    let role = |index| match () {
        () if partition >= count => Role::Mixed,
        () if index < partition => Role::Prefill,
        () => Role::Decode,
    };
    (0..count).map(role).collect()
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Mixed => "mixed",
        })
    }
}
