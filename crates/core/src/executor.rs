//! Where the two towers meet.

use std::task::Waker;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Batch, BatchId, KvFetch, SeqId, Time, TokenId};

/// Computes batches: real (CPU, CUDA, several ranks), simulated, or a mock.
///
/// Batches complete in the order of submission. The engine polls: [`submit`](Self::submit) never blocks, and
/// [`collect`](Self::collect) returns an output once there is one.
pub trait Executor: Send {
    /// Returns the shape of the KV cache that this executor has room for.
    fn kv_geometry(&self) -> KvGeometry;

    /// Returns how many batches may be in flight at once; at least 1.
    ///
    /// More than 1 lets the engine plan step k + 1 while step k runs; see [`PENDING_TOKEN`](crate::PENDING_TOKEN).
    fn max_in_flight(&self) -> usize;

    /// Starts a batch. The engine never has more than `max_in_flight` in flight.
    fn submit(&mut self, batch: Batch, now: Time);

    /// Returns the oldest batch's output if it is complete at `now`, else `None`.
    ///
    /// # Errors
    /// A failed executor is lost with everything in flight; it is not retried.
    fn collect(&mut self, now: Time) -> Result<Option<StepOutput>, ExecutorError>;

    /// Starts to fetch KV from another instance, beside the batches; never blocks. The blocks that it fills are in no batch
    /// until [`fetched`](Self::fetched) has named the sequence.
    ///
    /// # Errors
    /// Why it cannot even be tried. By default, because this executor knows no others.
    fn fetch(&mut self, fetch: KvFetch, _now: Time) -> Result<(), String> {
        Err(format!("this executor cannot fetch KV from instance {}", fetch.lease.instance))
    }

    /// Returns the fetches that have ended by `now`, each once, with what went wrong if something did.
    fn fetched(&mut self, _now: Time) -> Vec<(SeqId, Result<(), String>)> {
        Vec::new()
    }

    /// Returns when the oldest batch in flight completes, or a fetch if that is earlier, where that is known ahead: virtual
    /// time jumps there. Real executors return `None` and wake the waker.
    fn ready_at(&self) -> Option<Time>;

    /// Sets who is woken when an output becomes ready, or a fetch has ended.
    fn set_waker(&mut self, waker: Waker);

    /// Returns about how long `batch` takes; a step far over it counts as hung.
    fn predict(&self, batch: &Batch) -> Duration;

    /// Returns how many tokens the model knows; prompts with others are not run. `None` takes any.
    fn vocab_size(&self) -> Option<usize> {
        None
    }
}

/// The shape of a paged KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGeometry {
    /// How many blocks there are.
    pub num_blocks: usize,
    /// How many tokens a block holds.
    pub block_size: usize,
}

impl KvGeometry {
    /// Returns how many tokens the whole cache holds.
    #[must_use]
    pub const fn num_tokens(&self) -> usize {
        self.num_blocks * self.block_size
    }
}

/// What is wrong with a sequence that is [`unsound`](StepOutput::unsound).
pub const UNSOUND: &str = "the model produced a logit that is not a finite number; its weights or its number format are unsound";

/// What comes up from the device: one step's results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// One for each chunk that asked for a sample, in the batch's order; none for the [`unsound`](Self::unsound).
    pub tokens: Vec<SampledToken>,
    /// The sequences of which the model made logits that are no finite numbers.
    pub unsound: Vec<SeqId>,
    /// For each chunk that asked, in the batch's order: its prompt tokens' logprobs, one list a target token. The first entry of
    /// a list is the target itself.
    pub prompt_logprobs: Vec<(SeqId, Vec<Vec<TokenLogprob>>)>,
    /// How long the device worked on the batch.
    pub device_time: Duration,
}

/// A token drawn for a sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampledToken {
    /// The sequence.
    pub seq: SeqId,
    /// The token.
    pub token: TokenId,
    /// Empty unless logprobs were asked for; else the drawn token first, then the most likely ones in order.
    pub logprobs: Vec<TokenLogprob>,
}

/// How likely a token was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// How many tokens were at least as likely, itself included: 1 is the most likely.
    pub rank: u32,
}

/// The executor is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("executor failed at batch {batch}: {reason}")]
pub struct ExecutorError {
    /// The batch it failed at.
    pub batch: BatchId,
    /// What happened, and what to do if that is known.
    pub reason: String,
}
