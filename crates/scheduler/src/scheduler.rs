//! What a policy is.

use std::fmt::Debug;

use crate::Step;

/// Decides which sequences run in the next step, and how many tokens of each.
///
/// A policy plans through the verbs of [`Step`], which keep queues, blocks and sequences right whatever it does. It never
/// touches a device, a clock or a network, and the same state must give the same plan.
pub trait Scheduler: Debug + Send {
    /// Returns what the policy keeps to; asked once.
    fn declares(&self) -> Declaration;

    /// Plans one step. If no batch is in flight and any sequence is there, it must schedule something.
    fn schedule(&mut self, step: &mut Step<'_>);
}

/// What a policy keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// The most tokens in a step, if there is a bound; executors may size their memory by it.
    pub token_bound: Option<usize>,
    /// How many blocks a sequence gets when it is admitted.
    pub admission: Admission,
    /// Whether sequences start in the order of the queue.
    pub in_order: bool,
}

/// How many blocks a sequence gets when it is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// For the chunk that admits it.
    ThisChunk,
    /// For all the tokens that it has.
    WholePrompt,
    /// For all the tokens that it may come to have (prompt plus `max_tokens`): it never grows and is never preempted for lack of blocks.
    MaxTokens,
    /// For `max_model_len` tokens, whatever it asked for: likewise.
    MaxModelLen,
}
