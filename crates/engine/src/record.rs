//! Batches in flight, and what observers are told about them afterwards.

use std::time::Duration;

use stallfree_core::{BatchId, SeqId, Time};
use stallfree_scheduler::{Plan, Planner};

use crate::step_model::StepLoad;

/// Sees every completed step; for metrics and benchmarks.
pub trait StepObserver: Send {
    /// Takes note of a completed step. Called in the step loop: must be quick.
    fn on_step(&mut self, step: &StepRecord);
}

/// One completed step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// The batch.
    pub batch: BatchId,
    /// When it was submitted.
    pub started: Time,
    /// When its output was there.
    pub finished: Time,
    /// How long the device worked on it; less than the time between the two where batches queue for the device.
    pub device_time: Duration,
    /// Each chunk's sequence, tokens, and whether these were prompt tokens.
    pub chunks: Vec<StepChunk>,
    /// Tokens that it produced.
    pub num_sampled: usize,
    /// Sequences preempted while it was planned.
    pub preempted: Vec<SeqId>,
    /// Sequences waiting when it was submitted.
    pub num_waiting: usize,
    /// Sequences running when it was submitted.
    pub num_running: usize,
}

/// One chunk of a completed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepChunk {
    /// The sequence.
    pub seq: SeqId,
    /// Prompt tokens (recomputed ones included) among the chunk's.
    pub num_prompt_tokens: usize,
    /// Output tokens among the chunk's: 1 in a decode.
    pub num_output_tokens: usize,
}

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
