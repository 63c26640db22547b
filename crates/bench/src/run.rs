//! Runs of an engine in this process.

mod intake;
mod real_time;
mod recorder;
mod virtual_time;

use std::sync::Arc;

use stallfree_core::{Request, SamplingParams, StopRules};
use stallfree_engine::EngineStats;

pub use real_time::in_real_time;
pub use recorder::{Detail, Recorder};
pub use virtual_time::in_virtual_time;

use crate::workload::{Item, PromptTokens};
use crate::{BatchRecord, RequestRecord};

/// How an engine is given a workload.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The most requests at once; those beyond it wait on the sender's side. With all arrivals at the start this is a closed loop
    /// of so many clients.
    pub max_concurrency: Option<usize>,
    /// What prompts are made of.
    pub tokens: PromptTokens,
    /// How tokens are drawn.
    pub sampling: Arc<SamplingParams>,
    /// Tokens that end a sequence before its length is reached; none for exact lengths.
    pub stop_token_ids: Vec<u32>,
}

impl RunConfig {
    /// Returns the settings for exact output lengths, drawn greedily, with prompts of tokens below `vocab_size`.
    #[must_use]
    pub fn exact(vocab_size: usize) -> Self {
        Self {
            max_concurrency: None,
            tokens: PromptTokens::below(vocab_size),
            sampling: Arc::new(SamplingParams::greedy()),
            stop_token_ids: Vec::new(),
        }
    }

    fn request(&self, item: &Item) -> Request {
        Request {
            prompt: self.tokens.of(&item.prompt),
            sampling: Arc::clone(&self.sampling),
            stop: StopRules {
                max_tokens: item.output_len,
                min_tokens: 0,
                stop_token_ids: self.stop_token_ids.as_slice().into(),
            },
            priority: 0,
            slo: item.slo,
        }
    }

    fn limit(&self) -> usize {
        self.max_concurrency.unwrap_or(usize::MAX).max(1)
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct RunOutcome {
    /// In the workload's order.
    pub requests: Vec<RequestRecord>,
    /// In the order of completion; as far as the recorder kept them.
    pub batches: Vec<BatchRecord>,
    /// The engine's counters at the end.
    pub stats: EngineStats,
}

impl RunOutcome {
    /// Returns whether every request was to be sent before any of them had `num_tokens` tokens, as good as all at once.
    #[must_use]
    pub fn is_all_at_once(&self, num_tokens: usize) -> bool {
        let token = |request: &RequestRecord| {
            request.token_times.get(num_tokens.saturating_sub(1)).copied()
        };
        let first = self.requests.iter().filter_map(token).reduce(f64::min);
        first.is_some_and(|first| self.requests.iter().all(|request| request.planned <= first))
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Requests ended.
    pub done: usize,
    /// All requests.
    pub total: usize,
    /// The run's time, which is virtual in a virtual run.
    pub now: f64,
}
