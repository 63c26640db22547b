//! Batches in flight, and what is told about them afterwards.

use std::time::Duration;

use stallfree_core::{BatchId, SeqId, Time};
use stallfree_scheduler::{Plan, Planner};

use crate::step_model::StepLoad;
use crate::{StepChunk, StepRecord};

/// A batch that the executor has.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) id: BatchId,
    pub(crate) plan: Plan,
    /// Sequences that have left and come back since: what it computes of them is nobody's.
    pub(crate) stale: Vec<SeqId>,
    /// What it has to compute.
    pub(crate) load: StepLoad,
    pub(crate) submitted: Time,
    pub(crate) predicted: Duration,
    /// What an observer will be told, if there is one.
    pub(crate) observed: Option<Observed>,
}

/// What is known of a step when it is planned, and forgotten afterwards.
#[derive(Debug)]
pub(crate) struct Observed {
    chunks: Vec<StepChunk>,
    num_waiting: usize,
    num_running: usize,
}

/// Takes note of a step that `planner` has just planned.
pub(crate) fn observe(plan: &Plan, planner: &Planner) -> Observed {
    let load = planner.load();
    let chunks = plan.chunks.iter().map(|chunk| {
        let prompt_len = planner.sequence(chunk.seq).map_or(0, |seq| seq.prompt_len);
        let num_prompt_tokens = prompt_len.saturating_sub(chunk.start).min(chunk.num_tokens);
        StepChunk {
            seq: chunk.seq,
            num_prompt_tokens,
            num_output_tokens: chunk.num_tokens - num_prompt_tokens,
        }
    });
    Observed {
        chunks: chunks.collect(),
        num_waiting: load.num_waiting,
        num_running: load.num_running,
    }
}

impl InFlight {
    /// Takes note of a batch that is submitted now, with how long it is predicted to take.
    pub(crate) fn new(
        id: BatchId,
        plan: Plan,
        (submitted, predicted): (Time, Duration),
        observed: Option<Observed>,
    ) -> Self {
        let mut load = StepLoad::default();
        plan.chunks.iter().for_each(|chunk| load.add(chunk.start, chunk.num_tokens));
        Self { id, plan, stale: Vec::new(), load, submitted, predicted, observed }
    }

    /// Returns the record of the completed step; `None` if nobody watched when it was planned.
    pub(crate) fn into_record(
        self,
        finished: Time,
        num_sampled: usize,
        device_time: Duration,
    ) -> Option<StepRecord> {
        let Observed { chunks, num_waiting, num_running } = self.observed?;
        Some(StepRecord {
            batch: self.id,
            started: self.submitted,
            finished,
            device_time,
            chunks,
            num_sampled,
            preempted: self.plan.preempted,
            num_waiting,
            num_running,
        })
    }
}
