//! What goes into a step, and when there is to be another.

use stallfree_core::{KvOffer, Request, SeqId, Time};

use crate::{HandedOver, OutputSender};

/// What the outside asks of an engine.
#[derive(Debug)]
pub enum Command {
    /// Run a sequence, whether it is new or another engine has begun it. Its number is that of no other.
    Run {
        /// The sequence.
        seq: Box<HandedOver>,
        /// How far to run it.
        until: Until,
    },
    /// End a sequence; without effect if it has ended.
    Cancel(SeqId),
    /// Free what was kept of a sequence; without effect if it was freed before.
    Release(SeqId),
    /// Reserve blocks for a sequence that another engine is still prefilling, and fetch what there is of its KV. The last offer is
    /// followed by the sequence itself or by [`Retract`](Self::Retract).
    Offer(KvOffer),
    /// A sequence that was offered does not come.
    Retract(SeqId),
    /// Go on keeping what is kept of these sequences.
    Renew(Vec<SeqId>),
    /// Leave every sequence to the others.
    LeaveAll,
}

impl Command {
    /// Returns the command to run a request that came at `arrived`, as sequence `id`, to its end.
    #[must_use]
    pub fn run(id: SeqId, request: Request, arrived: Time, output: OutputSender) -> Self {
        let seq = Box::new(HandedOver::new(id, request, arrived, output));
        Self::Run { seq, until: Until::End }
    }
}

/// How far an engine runs a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To its end.
    End,
    /// To its next token: then others take it on, unless that was its last.
    NextToken,
}

/// When an engine wants its next step. New commands are always a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At this moment the oldest batch in flight completes.
    At(Time),
    /// When the executor's waker is woken.
    Output,
    /// There is nothing to do.
    Idle,
}
