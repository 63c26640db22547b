//! What the rest of the planning tower sees of an engine.

use std::fmt::Debug;
use std::iter::Sum;
use std::time::Duration;

use stallfree_core::{InstanceId, KvGeometry, Request, Time, TokenId};

use crate::{InstanceChange, InstanceStatus, OutputStream, Ringer};

/// An engine, or many of them behind one front (a cluster is an `EngineHandle` too).
pub trait EngineHandle: Debug + Send + Sync {
    /// Queues a request and returns the stream of its output. Dropping the stream cancels the request at the next step.
    ///
    /// # Errors
    /// The request can never run, the queue is full, or the engine takes no more.
    fn submit(&self, request: Request) -> Result<OutputStream, SubmitError>;

    /// Returns the counters and gauges as of the last step.
    fn stats(&self) -> EngineStats;

    /// Returns whether the engine is alive and stepping.
    fn health(&self) -> Health;

    /// Returns what does not change while the engine runs.
    fn info(&self) -> &EngineInfo;

    /// Returns the current moment on the engine's clock.
    fn now(&self) -> Time;

    /// Takes no new requests from now on; those it has run to their end.
    fn drain(&self);

    /// Leaves it to `ringer` to wake the readers of streams, from some step soon on; what knows no better has a thread for that.
    fn set_ringer(&self, _ringer: Ringer) {}

    /// Returns the instances that it consists of; none if it is a single engine.
    fn instances(&self) -> Vec<InstanceStatus> {
        Vec::new()
    }

    /// Changes an instance, and returns how it is from now on; `None` if there is no such instance.
    fn change_instance(&self, _id: InstanceId, _change: InstanceChange) -> Option<InstanceStatus> {
        None
    }
}

/// What does not change while an engine runs.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// The policy's name in the registry.
    pub scheduler: String,
    /// The most tokens a sequence may have, prompt and output together.
    pub max_model_len: usize,
    /// The shape of the KV cache.
    pub kv: KvGeometry,
    /// Whether finished sequences' blocks are kept for requests that start the same.
    pub enable_prefix_caching: bool,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The queue is full.
    #[error("{waiting} requests are waiting, which is the limit; retry in {} s", retry_after.as_secs())]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// Its first token would come too late.
    #[error(
        "the first token is predicted after {} ms, but the request's ttft_slo is {} ms; retry in {} s",
        predicted.as_millis(), slo.as_millis(), retry_after.as_secs().max(1)
    )]
    TooLate {
        /// When it would come, from now.
        predicted: Duration,
        /// When it should.
        slo: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// The prompt leaves no room for a token.
    #[error(
        "the prompt has {prompt} tokens, but the most that prompt and output may have together is {limit}"
    )]
    TooLong {
        /// The prompt's length.
        prompt: usize,
        /// The limit on prompt and output together.
        limit: usize,
    },
    /// The prompt is empty.
    #[error("the prompt has no tokens")]
    Empty,
    /// The prompt has a token that the model does not know.
    #[error("the prompt has the token {token}, but the model knows only those from 0 to {}", vocab_size.saturating_sub(1))]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// How many the model knows.
        vocab_size: usize,
    },
    /// The engine is draining.
    #[error("the engine is shutting down")]
    Draining,
    /// The engine is lost.
    #[error("the engine is dead: {0}")]
    Dead(String),
}

/// Whether an engine is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It steps, or has nothing to do.
    Healthy,
    /// A step takes far longer than predicted.
    Late {
        /// How long since the step began.
        since: Duration,
    },
    /// It failed; what happened.
    Dead(String),
}

/// Counters and gauges as of an engine's last step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences running.
    pub num_running: usize,
    /// Sequences waiting, preempted ones included.
    pub num_waiting: usize,
    /// Blocks that running sequences hold; cached blocks that nobody uses don't count.
    pub num_used_blocks: usize,
    /// All blocks.
    pub num_blocks: usize,
    /// Prompt tokens computed or found in the prefix cache, ever.
    pub prompt_tokens: u64,
    /// Tokens produced, ever.
    pub generation_tokens: u64,
    /// Tokens looked up in the prefix cache, ever.
    pub prefix_cache_queries: u64,
    /// Of these, tokens found.
    pub prefix_cache_hits: u64,
    /// Preemptions, ever.
    pub num_preemptions: u64,
    /// Steps completed, ever.
    pub num_steps: u64,
}

impl Sum for EngineStats {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, stats| Self {
            num_running: sum.num_running + stats.num_running,
            num_waiting: sum.num_waiting + stats.num_waiting,
            num_used_blocks: sum.num_used_blocks + stats.num_used_blocks,
            num_blocks: sum.num_blocks + stats.num_blocks,
            prompt_tokens: sum.prompt_tokens + stats.prompt_tokens,
            generation_tokens: sum.generation_tokens + stats.generation_tokens,
            prefix_cache_queries: sum.prefix_cache_queries + stats.prefix_cache_queries,
            prefix_cache_hits: sum.prefix_cache_hits + stats.prefix_cache_hits,
            num_preemptions: sum.num_preemptions + stats.num_preemptions,
            num_steps: sum.num_steps + stats.num_steps,
        })
    }
}
