//! Ranks in other processes: what node 0 tells them, and what they answer.

use std::sync::mpsc::Receiver;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stallfree_comm::{Control, ControlReceiver, ControlSender};
use stallfree_core::{Batch, BatchId, ExecutorError, StepOutput};

use crate::Error;
use crate::executor::{Outbox, Outcome, ThreadExecutor, Work};

/// What node 0 says.
#[derive(Serialize, Deserialize)]
enum Told {
    /// So many blocks are in every cache.
    NumBlocks(usize),
    Batch(Batch),
}

/// What another node answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    /// For so many blocks there is room.
    NumBlocks(usize),
    Output(StepOutput),
    Failed(BatchId, String),
}

fn gone(node: usize, problem: impl std::fmt::Display) -> Error {
    Error::Node { node, problem: problem.to_string() }
}

fn send(to: &ControlSender, node: usize, message: &impl Serialize) -> Result<(), Error> {
    let bytes = postcard::to_allocvec(message).map_err(|e| gone(node, e))?;
    to.send(&bytes).map_err(|e| gone(node, e))
}

fn receive<T: DeserializeOwned>(from: &mut ControlReceiver, node: usize) -> Result<T, Error> {
    let bytes = from.recv().map_err(|e| gone(node, e))?;
    postcard::from_bytes(&bytes).map_err(|e| gone(node, e))
}

/// Finds out how many blocks all nodes have room for; `own` is this one's room. Node 0 asks, the others answer.
pub(crate) fn agree_on_blocks(
    node: usize,
    controls: &mut [Control],
    own: usize,
) -> Result<usize, Error> {
    if node > 0 {
        let Some(Control { sender, receiver }) = controls.first_mut() else { return Ok(own) };
        send(sender, 0, &Answer::NumBlocks(own))?;
        return match receive(receiver, 0)? {
            Told::NumBlocks(num_blocks) => Ok(num_blocks),
            Told::Batch(_) => Err(gone(0, "it sends batches before the number of blocks")),
        };
    }
    let mut least = own;
    for (place, control) in controls.iter_mut().enumerate() {
        match receive(&mut control.receiver, place + 1)? {
            Answer::NumBlocks(num_blocks) => least = least.min(num_blocks),
            Answer::Output(_) => return Err(gone(place + 1, "it answers before it was asked")),
            Answer::Failed(_, reason) => return Err(gone(place + 1, reason)),
        }
    }
    for (place, control) in controls.iter().enumerate() {
        send(&control.sender, place + 1, &Told::NumBlocks(least))?;
    }
    Ok(least)
}

/// On node 0: passes batches on to a node, until there are no more.
pub(crate) fn tell_all(
    node: usize,
    work: &Receiver<Work>,
    sender: &ControlSender,
    outbox: &Outbox,
) {
    for work in work {
        // Reads and writes for other instances are refused where a model has several processes.
        let Work::Step(batch, _) = work else { continue };
        let id = batch.id;
        if let Err(error) = send(sender, node, &Told::Batch((*batch).clone())) {
            outbox.put(Err(ExecutorError { batch: id, reason: error.to_string() }));
            return;
        }
    }
}

/// On node 0: takes a node's answers, until it is gone.
pub(crate) fn hear_all(node: usize, mut receiver: ControlReceiver, outbox: &Outbox) {
    loop {
        let outcome = match receive(&mut receiver, node) {
            Ok(Answer::Output(output)) => Ok(output),
            Ok(Answer::Failed(batch, reason)) => Err(ExecutorError { batch, reason }),
            Ok(Answer::NumBlocks(_)) => continue,
            Err(error) => Err(ExecutorError { batch: BatchId(0), reason: error.to_string() }),
        };
        let failed = outcome.is_err();
        if !outbox.put(outcome) || failed {
            return;
        }
    }
}

impl ThreadExecutor {
    /// On another node than 0: computes what node 0 sends until it ends.
    ///
    /// # Errors
    /// A rank of this node failed; node 0 is told, too.
    pub(crate) fn obey(mut self, control: Control) -> Result<(), Error> {
        let Control { sender, mut receiver } = control;
        let outcomes = self.take_outcomes();
        let failure = std::thread::scope(|scope| {
            let answering = scope.spawn(move || answer_all(&outcomes, sender));
            while let Ok(Told::Batch(batch)) = receive(&mut receiver, 0) {
                self.pass_on(batch);
            }
            drop(self); // ends the ranks, and so the answers
            answering.join().unwrap_or(None)
        });
        failure.map_or(Ok(()), |error| Err(Error::Failed(error)))
    }
}

/// Answers until there is nothing more to come or a rank has failed; the connection ends with it.
#[expect(clippy::needless_pass_by_value, reason = "the connection ends with the sender")]
fn answer_all(outcomes: &Receiver<Outcome>, sender: ControlSender) -> Option<ExecutorError> {
    for outcome in outcomes {
        match outcome {
            Ok(output) => send(&sender, 0, &Answer::Output(output)).ok()?,
            Err(error) => {
                // Node 0 may be gone by now, which may be why.
                drop(send(&sender, 0, &Answer::Failed(error.batch, error.reason.clone())));
                return Some(error);
            }
        }
    }
    None
}
