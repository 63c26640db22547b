//! Ranks in other processes: what node 0 tells them, and what they answer.

use std::sync::mpsc::Receiver;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stallfree_comm::{Control, ControlReceiver, ControlSender};
use stallfree_core::{Batch, BatchId, ExecutorError, StepOutput};

use crate::Error;
use crate::executor::{Outbox, Outcome, ThreadExecutor, Work};

const TOO_EARLY: &str = "it says something before its time";

/// What node 0 says.
#[derive(Serialize, Deserialize)]
enum Told {
    /// What the ranks of each communicator find each other by.
    Ids(Vec<Vec<u8>>),
    /// So many blocks are in every cache.
    NumBlocks(usize),
    Batch(Batch),
    /// There is nothing more to come.
    End,
    /// It does not start, and why.
    Failed(String),
}

/// What another node answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    /// It has come to where all wait for each other.
    Reached,
    /// For so many blocks there is room.
    NumBlocks(usize),
    Output(StepOutput),
    Failed(BatchId, String),
}

/// Returns the error of a node that is not there any more, or does not what it should.
pub(crate) fn gone(node: usize, problem: impl std::fmt::Display) -> Error {
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

/// Does what `node` has to do before it serves; if that fails, the others hear why.
pub(crate) fn start<T>(
    node: usize,
    controls: &mut [Control],
    work: impl FnOnce(&mut [Control]) -> Result<T, Error>,
) -> Result<T, Error> {
    work(controls).inspect_err(|error| {
        let reason = error.to_string();
        for (place, Control { sender, .. }) in controls.iter().enumerate() {
            // It may be gone, which may be why.
            drop(match node {
                0 => send(sender, place + 1, &Told::Failed(reason.clone())),
                _ => send(sender, 0, &Answer::Failed(BatchId(0), reason.clone())),
            });
        }
    })
}

/// Waits until all nodes have come here; each of them says so once.
pub(crate) fn wait_for_all(node: usize, controls: &mut [Control]) -> Result<(), Error> {
    for (place, Control { sender, receiver }) in controls.iter_mut().enumerate() {
        if node > 0 {
            return send(sender, 0, &Answer::Reached);
        }
        match receive(receiver, place + 1)? {
            Answer::Reached => {}
            Answer::NumBlocks(_) | Answer::Output(_) => return Err(gone(place + 1, TOO_EARLY)),
            Answer::Failed(_, reason) => return Err(gone(place + 1, reason)),
        }
    }
    Ok(())
}

/// Gives every node what node 0 makes, once all have come here.
pub(crate) fn share_ids(
    node: usize,
    controls: &mut [Control],
    make: impl FnOnce() -> Result<Vec<Vec<u8>>, Error>,
) -> Result<Vec<Vec<u8>>, Error> {
    wait_for_all(node, controls)?;
    if node > 0 {
        let control = controls.first_mut().ok_or_else(|| gone(0, "there is no way to it"))?;
        return match receive(&mut control.receiver, 0)? {
            Told::Ids(ids) => Ok(ids),
            Told::Failed(reason) => Err(gone(0, reason)),
            Told::NumBlocks(_) | Told::Batch(_) | Told::End => Err(gone(0, TOO_EARLY)),
        };
    }
    let ids = make()?;
    for (place, control) in controls.iter().enumerate() {
        send(&control.sender, place + 1, &Told::Ids(ids.clone()))?;
    }
    Ok(ids)
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
            Told::Failed(reason) => Err(gone(0, reason)),
            Told::Ids(_) | Told::Batch(_) | Told::End => Err(gone(0, TOO_EARLY)),
        };
    }
    let mut least = own;
    for (place, control) in controls.iter_mut().enumerate() {
        match receive(&mut control.receiver, place + 1)? {
            Answer::NumBlocks(num_blocks) => least = least.min(num_blocks),
            Answer::Reached | Answer::Output(_) => return Err(gone(place + 1, TOO_EARLY)),
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
    // It may be gone, too.
    drop(send(sender, node, &Told::End));
    sender.close();
}

/// On node 0: takes a node's answers, until it is gone.
pub(crate) fn hear_all(node: usize, mut receiver: ControlReceiver, outbox: &Outbox) {
    loop {
        let outcome = match receive(&mut receiver, node) {
            Ok(Answer::Output(output)) => Ok(output),
            Ok(Answer::Failed(batch, reason)) => Err(ExecutorError { batch, reason }),
            Ok(Answer::Reached | Answer::NumBlocks(_)) => continue,
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
    /// A rank of this node failed, and node 0 is told, too; or node 0 is lost.
    pub(crate) fn obey(mut self, control: Control) -> Result<(), Error> {
        let Control { sender, mut receiver } = control;
        let outcomes = self.take_outcomes();
        std::thread::scope(|scope| {
            let answering = scope.spawn(move || answer_all(&outcomes, sender));
            let ended = loop {
                match receive(&mut receiver, 0) {
                    Ok(Told::Batch(batch)) => self.pass_on(batch),
                    Ok(Told::End) => break Ok(()),
                    Ok(Told::Failed(reason)) => break Err(gone(0, reason)),
                    Ok(Told::Ids(_) | Told::NumBlocks(_)) => {}
                    Err(lost) => break Err(lost),
                }
            };
            drop(self); // ends the ranks, and so the answers
            // Node 0 may have ended because of what failed here.
            let failure = answering.join().unwrap_or(None);
            failure.map_or(ended, |error| Err(Error::Failed(error)))
        })
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

#[cfg(test)]
mod tests {
    use stallfree_comm::Control;

    use super::{agree_on_blocks, share_ids, start, wait_for_all};
    use crate::Error;

    /// Runs `work` on three nodes that have met.
    fn on_nodes<T: Send>(
        work: impl Fn(usize, &mut [Control]) -> Result<T, Error> + Sync,
    ) -> Vec<Result<T, Error>> {
        let pairs = [1, 2].map(|_| Control::pair().expect("a connection"));
        let [(one, first), (two, second)] = pairs;
        let (nodes, work) = ([vec![one, two], vec![first], vec![second]], &work);
        std::thread::scope(|scope| {
            let run = |(node, mut controls): (usize, Vec<Control>)| {
                scope.spawn(move || work(node, &mut controls))
            };
            let nodes: Vec<_> = nodes.into_iter().enumerate().map(run).collect();
            nodes.into_iter().map(|node| node.join().expect("no panic")).collect()
        })
    }

    #[test]
    fn nodes_agree_before_they_serve() {
        let ids = vec![vec![7; 128], vec![9; 128]];
        let agreed = on_nodes(|node, controls| {
            let ids = share_ids(node, controls, || match node {
                0 => Ok(ids.clone()),
                _ => Err(Error::Panic),
            })?;
            let num_blocks = agree_on_blocks(node, controls, [30, 10, 20][node])?;
            wait_for_all(node, controls)?;
            if node > 0 {
                // Stays until node 0 has heard of all.
                drop(controls[0].receiver.recv());
            }
            Ok((ids, num_blocks))
        });
        for found in agreed {
            let found = found.expect("all agree");
            assert_eq!(found, (ids.clone(), 10));
        }
    }

    #[test]
    fn a_node_that_is_lost_before_all_met_is_named() {
        let check = |tells: bool, expected: [&str; 2]| {
            let work = |node: usize, controls: &mut [Control]| match node {
                2 => Err(Error::Panic),
                _ => share_ids(node, controls, || Ok(Vec::new())),
            };
            let outcomes = on_nodes(|node, controls| match tells {
                true => start(node, controls, |controls| work(node, controls)),
                false => work(node, controls),
            });
            for (outcome, expected) in outcomes.iter().zip(expected) {
                let error = outcome.as_ref().expect_err("a node is gone").to_string();
                assert_eq!(error, expected);
            }
        };
        let closed = "is gone: the connection closed";
        check(false, [&format!("node 2 {closed}"), &format!("node 0 {closed}")]);
        let reason = format!("node 2 is gone: {}", Error::Panic);
        check(true, [&reason, &format!("node 0 is gone: {reason}")]);
    }
}
