//! A device that takes no time.

use std::hint::black_box;
use std::sync::mpsc::SyncSender;
use std::task::Waker;
use std::time::{Duration, Instant};

use stallfree_core::{
    Batch, Chunk, Executor, ExecutorError, KvGeometry, SampledToken, StepOutput, Time,
};

/// Has its output at once, the same token for every sequence, and tells when it was given a batch.
#[derive(Debug)]
pub struct Instantly {
    kv: KvGeometry,
    outputs: Vec<StepOutput>,
    submitted: Option<SyncSender<Instant>>,
}

impl Instantly {
    /// Makes one with room for `num_tokens` tokens, in blocks of 16.
    ///
    /// Whoever gives a sender takes each moment out of it before the next batch comes.
    #[must_use]
    pub const fn new(num_tokens: usize, submitted: Option<SyncSender<Instant>>) -> Self {
        let kv = KvGeometry { num_blocks: num_tokens / 16, block_size: 16 };
        Self { kv, outputs: Vec::new(), submitted }
    }
}

/// The token that [`Instantly`] gives.
const TOKEN: u32 = 1000;

impl Executor for Instantly {
    fn kv_geometry(&self) -> KvGeometry {
        self.kv
    }

    fn max_in_flight(&self) -> usize {
        1
    }

    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    fn submit(&mut self, batch: Batch, _: Time) {
        if let Some(submitted) = &self.submitted {
            submitted.try_send(Instant::now()).expect("the last moment was taken");
        }
        let sampled = batch.chunks.iter().filter(|chunk| chunk.sample.is_some());
        let token =
            |chunk: &Chunk| SampledToken { seq: chunk.seq, token: TOKEN, logprobs: Vec::new() };
        let tokens = sampled.map(token).collect();
        self.outputs.push(StepOutput { tokens, ..StepOutput::default() });
        black_box(batch);
    }

    fn collect(&mut self, _: Time) -> Result<Option<StepOutput>, ExecutorError> {
        Ok(self.outputs.pop())
    }

    fn ready_at(&self) -> Option<Time> {
        Some(Time::ZERO)
    }

    fn set_waker(&mut self, _: Waker) {}

    fn predict(&self, _: &Batch) -> Duration {
        Duration::ZERO
    }
}
