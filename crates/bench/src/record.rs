//! What is known of each request and each batch after a run.

use serde::{Deserialize, Serialize};
use stallfree_core::{BatchId, InstanceId, SeqId, Slo};
use stallfree_engine::Stages;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Its place in the workload.
    pub id: usize,
    /// When it was to be sent.
    pub planned: f64,
    /// When it could be sent: `planned`, or, with a limit on concurrency, when a place was free.
    pub due: f64,
    /// When it was sent.
    pub sent: f64,
    /// When its first chunk was scheduled, where that is known.
    pub scheduled: Option<f64>,
    /// When each token came, or each message of a server, oldest first.
    pub token_times: Vec<f64>,
    /// When it ended.
    pub finished: f64,
    /// Tokens of its prompt.
    pub prompt_len: usize,
    /// Tokens that it got.
    pub output_len: usize,
    /// Prompt tokens found in the prefix cache, where that is known.
    pub num_cached_tokens: Option<usize>,
    /// How long each stage of its life took, where that is known.
    #[serde(skip)]
    pub stages: Option<Stages>,
    /// How long batches with a chunk of it were computed, where that is known.
    pub execution_time: Option<f64>,
    /// How often it lost its place and had to be computed again.
    pub num_restarts: usize,
    /// What it was promised.
    #[serde(skip)]
    pub slo: Slo,
    /// How it ended.
    pub outcome: Outcome,
    /// What the server said, where that was asked for.
    pub text: String,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It got its tokens.
    Completed,
    /// It did not; why.
    Failed(String),
}

impl RequestRecord {
    /// Returns whether it got its tokens.
    #[must_use]
    pub const fn is_completed(&self) -> bool {
        matches!(self.outcome, Outcome::Completed)
    }

    /// Returns why it got no tokens, if it failed.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Completed => None,
            Outcome::Failed(reason) => Some(reason),
        }
    }

    /// Returns when its first token came.
    #[must_use]
    pub fn first_token(&self) -> Option<f64> {
        self.token_times.first().copied()
    }

    /// Returns the time to its first token.
    #[must_use]
    pub fn ttft(&self) -> Option<f64> {
        Some(self.first_token()? - self.sent)
    }

    /// Returns the mean time a token after the first; `None` for fewer than two tokens.
    #[must_use]
    pub fn tpot(&self) -> Option<f64> {
        let (first, last) = self.token_times.first().zip(self.token_times.last())?;
        (self.output_len > 1).then(|| (last - first) / (self.output_len - 1) as f64)
    }

    /// Returns the times between consecutive tokens.
    pub fn gaps(&self) -> impl Iterator<Item = f64> + '_ {
        self.token_times.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Returns how late it was sent by the sender's own fault.
    #[must_use]
    pub const fn send_lag(&self) -> f64 {
        (self.sent - self.due).max(0.0)
    }
}

/// A completed batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRecord {
    /// Which instance computed it.
    pub instance: InstanceId,
    /// Its number there.
    pub id: BatchId,
    /// When the device began with it.
    pub started: f64,
    /// When its output was there.
    pub finished: f64,
    /// Prompt tokens, recomputed ones included.
    pub num_prefill_tokens: u32,
    /// Output tokens fed back.
    pub num_decode_tokens: u32,
    /// Chunks.
    pub size: u32,
    /// Tokens that it produced.
    pub num_sampled: u32,
    /// Sequences preempted while it was planned.
    pub num_preempted: u32,
    /// Sequences waiting when it was planned.
    pub num_waiting: u32,
    /// Sequences running when it was planned.
    pub num_running: u32,
    /// Each chunk, where that was asked for.
    pub chunks: Vec<ChunkRecord>,
}

/// A chunk of a completed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    /// The sequence.
    pub seq: SeqId,
    /// Prompt tokens.
    pub num_prefill_tokens: u32,
    /// Output tokens.
    pub num_decode_tokens: u32,
}

impl BatchRecord {
    /// Returns how long the device worked on it.
    #[must_use]
    pub const fn execution_time(&self) -> f64 {
        self.finished - self.started
    }

    /// Returns its tokens.
    #[must_use]
    pub const fn num_tokens(&self) -> u32 {
        self.num_prefill_tokens + self.num_decode_tokens
    }
}
