//! Which instance gets a sequence: one policy, one file, one line in [`DISPATCH_POLICIES`].

mod least_requests;
mod least_tokens;
mod round_robin;

use std::fmt;

use crate::Member;

/// Chooses instances. Same questions, same answers.
pub trait Dispatch: fmt::Debug + Send {
    /// Returns which of `candidates`, of which there is at least one, is to run a sequence next; its index among them.
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member]) -> usize;
}

/// What is known of a sequence when it needs an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqView {
    /// How many tokens it has.
    pub num_tokens: usize,
    /// How many of them have to be computed: none but the last, if its KV can be fetched.
    pub num_uncomputed: usize,
}

/// A policy of the registry.
#[derive(Clone, Copy, Debug)]
pub struct DispatchPolicy {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Makes it.
    pub build: fn() -> Box<dyn Dispatch>,
}

/// All policies, the default first.
pub const DISPATCH_POLICIES: &[DispatchPolicy] = &[
    DispatchPolicy {
        name: "least-tokens",
        about: "the instance whose sequences have the fewest tokens to compute or to read",
        build: || Box::new(least_tokens::LeastTokens),
    },
    DispatchPolicy {
        name: "least-requests",
        about: "the instance with the fewest sequences",
        build: || Box::new(least_requests::LeastRequests),
    },
    DispatchPolicy {
        name: "round-robin",
        about: "one after the other",
        build: || Box::<round_robin::RoundRobin>::default(),
    },
];

/// There is no such policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no dispatch policy \"{name}\"; there are {}", names())]
pub struct UnknownPolicy {
    name: String,
}

fn names() -> String {
    let names: Vec<&str> = DISPATCH_POLICIES.iter().map(|policy| policy.name).collect();
    names.join(", ")
}

/// Makes the policy called `name`.
///
/// # Errors
/// There is none.
pub fn build(name: &str) -> Result<Box<dyn Dispatch>, UnknownPolicy> {
    let policy = DISPATCH_POLICIES.iter().find(|policy| policy.name == name);
    policy.map(|policy| (policy.build)()).ok_or_else(|| UnknownPolicy { name: name.to_owned() })
}
