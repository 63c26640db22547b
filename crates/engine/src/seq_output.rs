//! What a sequence came to: its tokens, how it ended, and the moments of its life.

use std::time::Duration;

use smallvec::SmallVec;
use stallfree_core::{FinishReason, Time, TokenId, TokenLogprob};

/// What a sequence has produced since its stream was last read.
#[derive(Clone, Debug, Default)]
pub struct SeqOutput {
    /// Set on the first output: how the sequence was admitted.
    pub admission: Option<Admitted>,
    /// New tokens, oldest first; one, where the reader keeps up, takes no memory of its own.
    pub tokens: SmallVec<[OutputToken; 1]>,
    /// Logprobs of further prompt tokens, if asked for, from the prompt's second token on.
    pub prompt_logprobs: Vec<Vec<TokenLogprob>>,
    /// Set on the last output.
    pub finished: Option<Finished>,
    /// Set on the last output instead: the engine was lost, nobody took the sequence, or the model could not go on with it.
    pub error: Option<String>,
    /// Set with `error` if nothing is lost: when to try again.
    pub retry_after: Option<Duration>,
}

/// How a sequence came from waiting to running, the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// When its first chunk was scheduled.
    pub at: Time,
    /// Prompt tokens found in the prefix cache.
    pub num_cached_tokens: usize,
}

/// A produced token.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputToken {
    /// The token.
    pub token: TokenId,
    /// Empty unless asked for; else the token itself first, then the most likely ones in order.
    pub logprobs: Vec<TokenLogprob>,
    /// When the engine had it.
    pub at: Time,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// The stop token, where one ended it.
    pub stop_token: Option<TokenId>,
    /// Its life.
    pub times: SeqTimes,
    /// Prompt tokens found in the prefix cache when it was first admitted.
    pub num_cached_tokens: usize,
    /// How often it was preempted.
    pub num_preemptions: usize,
}

/// The moments of a sequence's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeqTimes {
    /// It was submitted.
    pub arrived: Time,
    /// Its first chunk was scheduled.
    pub scheduled: Option<Time>,
    /// Its first token was there.
    pub first_token: Option<Time>,
    /// The engine that took it over began to fetch its KV; the last one, if there were several.
    pub kv_transfer_started: Option<Time>,
    /// All of that KV was there; `None` if it did not come.
    pub kv_transfer_ended: Option<Time>,
    /// The step began that gave it its second token, the first one of its decode.
    pub decode_started: Option<Time>,
    /// Its last token was there.
    pub last_token: Option<Time>,
    /// It ended.
    pub finished: Time,
}

/// How long a sequence was in each stage of its life; together, from its arrival to its last token.
///
/// # Source
/// The lifetime events of DistServe (OSDI '24), figure 10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// It waited for its first chunk.
    pub prefill_queue: Duration,
    /// From there to its first token.
    pub prefill: Duration,
    /// Its KV was on the way to the instance that decodes, after its first token.
    pub kv_transfer: Duration,
    /// It waited for its decode to begin, the transfer left out.
    pub decode_queue: Duration,
    /// From there to its last token.
    pub decode: Duration,
}

impl SeqTimes {
    /// Returns how long each stage took; `None` if it has no token.
    #[must_use]
    pub fn stages(&self) -> Option<Stages> {
        let (scheduled, first) = self.scheduled.zip(self.first_token)?;
        let last = self.last_token.unwrap_or(first);
        let decode_started = self.decode_started.unwrap_or(first);
        let transfer = self.kv_transfer_started.zip(self.kv_transfer_ended);
        // What is moved while the prompt is being computed costs no time of its own.
        let kv_transfer = transfer.map_or(Duration::ZERO, |(started, ended)| {
            ended.min(decode_started) - started.max(first)
        });
        Some(Stages {
            prefill_queue: scheduled - self.arrived,
            prefill: first - scheduled,
            kv_transfer,
            decode_queue: (decode_started - first).saturating_sub(kv_transfer),
            decode: last - decode_started,
        })
    }
}
