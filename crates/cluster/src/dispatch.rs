//! Which instance gets a sequence: one policy, one file, one line in [`DISPATCH_POLICIES`].

mod config;
mod least_requests;
mod least_tokens;
mod multiplexing;
mod round_robin;
mod slack;

use std::fmt;
use std::time::Duration;

use stallfree_core::Time;
use stallfree_engine::Ordering;

use crate::{Member, SeqView};

pub use config::DispatchConfig;

/// Chooses instances. Same questions, same answers.
pub trait Dispatch: fmt::Debug + Send {
    /// Says which of `candidates`, of which there is at least one, is to run a sequence next.
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member], now: Time) -> Choice;

    /// Returns whether an instance may be given a prompt that no instance was given before, after it has told how it is without any
    /// prompt being done there. `least` takes no more than any that waits: if that is not to go there, nothing is.
    fn may_take(&self, _member: &Member, _least: &SeqView, _now: Time) -> bool {
        false
    }

    /// Returns whether what has to be computed may also go to instances that decode.
    fn multiplexes(&self) -> bool {
        false
    }
}

/// What a policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To the candidate at this place.
    Candidate(usize),
    /// To nobody for now; it is asked again when an instance has done with a prompt, or [may take](Dispatch::may_take) one. A sequence whose KV is to be fetched does not wait here.
    Wait,
}

/// A policy, and what is common to all.
#[derive(Debug)]
pub struct Dispatcher {
    pub(crate) policy: Box<dyn Dispatch>,
    /// In which order instances that prefill take what waits there, and sequences that wait here are tried.
    pub(crate) order: Ordering,
    /// How long a sequence waits here at most.
    pub(crate) timeout: Duration,
    /// Whether what cannot have its first token in time is refused as it comes.
    pub(crate) early_rejection: bool,
}

/// A policy of the registry.
#[derive(Clone, Copy, Debug)]
pub struct DispatchPolicy {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Makes it.
    pub build: fn(&DispatchConfig) -> Box<dyn Dispatch>,
}

/// All policies, the default first.
pub const DISPATCH_POLICIES: &[DispatchPolicy] = &[
    DispatchPolicy {
        name: "least-tokens",
        about: "the instance whose sequences have the fewest tokens to compute or to read",
        build: |_| Box::new(least_tokens::LeastTokens),
    },
    DispatchPolicy {
        name: "least-requests",
        about: "the instance with the fewest sequences",
        build: |_| Box::new(least_requests::LeastRequests),
    },
    DispatchPolicy {
        name: "round-robin",
        about: "one after the other",
        build: |_| Box::<round_robin::RoundRobin>::default(),
    },
    DispatchPolicy {
        name: "slack",
        about: "the instance that leaves all its sequences the most time to their objectives",
        build: |config| Box::new(slack::Slack::new(config)),
    },
    DispatchPolicy {
        name: "multiplexing",
        about: "an instance that prefills in time, else one whose decodes can spare the time, else nobody yet",
        build: |config| Box::new(multiplexing::Multiplexing::new(config)),
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

/// Makes the policy that is asked for.
///
/// # Errors
/// There is none of that name.
pub fn build(config: &DispatchConfig) -> Result<Dispatcher, UnknownPolicy> {
    let policy = DISPATCH_POLICIES.iter().find(|policy| policy.name == config.policy);
    let policy = policy.ok_or_else(|| UnknownPolicy { name: config.policy.clone() })?;
    Ok(Dispatcher {
        policy: (policy.build)(config),
        order: config.prefill_order,
        timeout: config.timeout,
        early_rejection: config.early_rejection,
    })
}

#[cfg(test)]
mod tests;
