//! What goes into a step, and when there is to be another.

use stallfree_core::{Request, SeqId, Time};

use crate::OutputSender;

/// What the outside asks of an engine.
#[derive(Debug)]
pub enum Command {
    /// Run a request.
    Add {
        /// The number of its sequence, never used before.
        id: SeqId,
        /// What to run.
        request: Request,
        /// When it came.
        arrived: Time,
        /// Where its output goes.
        output: OutputSender,
    },
    /// End a sequence; without effect if it has ended.
    Cancel(SeqId),
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
