//! What an instance is for.

use std::fmt;
use std::str::FromStr;

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

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let roles = [Self::Prefill, Self::Decode, Self::Mixed];
        let found = roles.into_iter().find(|role| role.to_string() == text);
        found.ok_or_else(|| format!("'{text}' is no role: there are prefill, decode and mixed"))
    }
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
