//! Takes note of an engine's steps while it runs.

use std::sync::{Arc, Mutex, MutexGuard};

use stallfree_core::{InstanceId, SeqId, SeqMap, lock};
use stallfree_engine::{StepObserver, StepRecord};

use crate::{BatchRecord, ChunkRecord};

/// How much of each batch is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Nothing: long simulations have more batches than memory.
    Requests,
    /// Its figures.
    #[default]
    Batches,
    /// Its figures and its chunks.
    Chunks,
}

/// Collects the records of engines' steps. Clones share them: one is read after the run, one goes into each engine.
#[derive(Clone, Debug)]
pub struct Recorder {
    detail: Detail,
    instance: InstanceId,
    steps: Arc<Mutex<Steps>>,
}

#[derive(Debug, Default)]
struct Steps {
    batches: Vec<BatchRecord>,
    /// How long batches with a chunk of a sequence took, in seconds.
    execution: SeqMap<f64>,
}

impl Recorder {
    /// Starts with nothing.
    #[must_use]
    pub fn new(detail: Detail) -> Self {
        Self { detail, instance: InstanceId(0), steps: Arc::default() }
    }

    /// Returns what `Engine::new` takes.
    #[must_use]
    pub fn observer(&self) -> Box<dyn StepObserver> {
        self.observer_of(InstanceId(0))
    }

    /// Returns the same for an instance of a deployment.
    #[must_use]
    pub fn observer_of(&self, instance: InstanceId) -> Box<dyn StepObserver> {
        Box::new(Self { instance, ..self.clone() })
    }

    /// Takes the batches out, their times counted from `start`.
    pub(super) fn take_batches(&self, start: f64) -> Vec<BatchRecord> {
        let mut batches = std::mem::take(&mut self.lock().batches);
        for batch in &mut batches {
            batch.started -= start;
            batch.finished -= start;
        }
        batches
    }

    /// Takes out how long batches with a chunk of a sequence took.
    pub(super) fn take_execution_time(&self, seq: SeqId) -> Option<f64> {
        self.lock().execution.remove(&seq)
    }

    /// Every critical section leaves the records whole.
    fn lock(&self) -> MutexGuard<'_, Steps> {
        lock(&self.steps)
    }
}

impl StepObserver for Recorder {
    fn on_step(&mut self, step: &StepRecord) {
        let mut steps = self.lock();
        let seconds = step.device_time.as_secs_f64();
        for chunk in &step.chunks {
            *steps.execution.entry(chunk.seq).or_default() += seconds;
        }
        if self.detail > Detail::Requests {
            steps.batches.push(record(self.instance, step, self.detail));
        }
    }
}

fn record(instance: InstanceId, step: &StepRecord, detail: Detail) -> BatchRecord {
    let finished = step.finished.as_secs_f64();
    let chunks = step.chunks.iter().map(|chunk| ChunkRecord {
        seq: chunk.seq,
        num_prefill_tokens: narrow(chunk.num_prompt_tokens),
        num_decode_tokens: narrow(chunk.num_output_tokens),
    });
    BatchRecord {
        instance,
        id: step.batch,
        started: (finished - step.device_time.as_secs_f64()).max(0.0),
        finished,
        num_prefill_tokens: chunks.clone().map(|chunk| chunk.num_prefill_tokens).sum(),
        num_decode_tokens: chunks.clone().map(|chunk| chunk.num_decode_tokens).sum(),
        size: narrow(step.chunks.len()),
        num_sampled: narrow(step.num_sampled),
        num_preempted: narrow(step.preempted.len()),
        num_waiting: narrow(step.num_waiting),
        num_running: narrow(step.num_running),
        chunks: if detail == Detail::Chunks { chunks.collect() } else { Vec::new() },
    }
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
