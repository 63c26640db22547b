//! What the planner keeps about a request.

use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{KvLease, SeqId, Time, TokenId};

use crate::Standing;

/// A request as the planner sees it: tokens, and how far their KV has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Its number.
    pub id: SeqId,
    /// The known tokens: prompt, then output.
    pub tokens: Vec<TokenId>,
    /// How many of [`tokens`](Self::tokens) are the prompt.
    pub prompt_len: usize,
    /// The most tokens it may come to have: prompt plus `max_tokens`, at most `max_model_len`.
    pub max_total_len: usize,
    /// Lower runs earlier under [`Ordering::Priority`](crate::Ordering::Priority).
    pub priority: i32,
    /// When its request came.
    pub arrived: Time,
    /// When its first token is due: what [`Ordering::Edf`](crate::Ordering::Edf) sorts by.
    pub deadline: Option<Time>,
    /// About how long its prompt takes, as was thought when it came: what [`Ordering::Llf`](crate::Ordering::Llf) takes into account.
    pub prefill_time: Duration,
    /// Whether it may take computed tokens from the prefix cache. Not if something is wanted of every prompt token, such as
    /// its logprob.
    pub reads_prefix_cache: bool,
    /// Where it is.
    pub status: Status,
    /// How many of its first tokens have their KV in the cache once all planned batches are computed.
    pub num_computed_tokens: usize,
    /// Prompt tokens found in the prefix cache when it was first admitted.
    pub num_cached_tokens: usize,
    /// Tokens that batches in flight are about to sample for it; they follow [`tokens`](Self::tokens).
    pub num_pending: usize,
    /// Batches in flight that contain it.
    pub in_flight: usize,
    /// How often it was preempted.
    pub num_preemptions: usize,
    /// When its first chunk was planned.
    pub scheduled: Option<Time>,
    /// The KV of its first tokens, if another instance has computed it, until it is here.
    pub kv: Option<Arc<KvLease>>,
}

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// In the queue; it never ran.
    Waiting,
    /// It holds blocks and takes part in batches.
    Running,
    /// Back in the queue: its blocks were needed; its tokens are kept and their KV will be recomputed.
    Preempted,
    /// It waits for blocks to fetch its KV into.
    Remote,
    /// It holds blocks, which its KV is being fetched into.
    Fetching,
}

impl Sequence {
    /// Makes a sequence that waits to run.
    #[must_use]
    pub const fn new(
        id: SeqId,
        prompt: Vec<TokenId>,
        max_total_len: usize,
        priority: i32,
        arrived: Time,
    ) -> Self {
        Self {
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            max_total_len,
            priority,
            arrived,
            deadline: None,
            prefill_time: Duration::ZERO,
            reads_prefix_cache: true,
            status: Status::Waiting,
            num_computed_tokens: 0,
            num_cached_tokens: 0,
            num_pending: 0,
            in_flight: 0,
            num_preemptions: 0,
            scheduled: None,
            kv: None,
        }
    }

    /// Returns what its place in a queue depends on.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        let Self { priority, prompt_len, deadline, prefill_time, .. } = *self;
        Standing { priority, prompt_len, deadline, prefill_time }
    }

    /// Returns how many tokens it has, those about to be sampled included.
    #[must_use]
    pub const fn num_tokens(&self) -> usize {
        self.tokens.len() + self.num_pending
    }

    /// Returns the output so far.
    #[must_use]
    pub fn output(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// Returns how many tokens are left to compute. The last token that it may have needs no KV, so it doesn't count.
    #[must_use]
    pub fn num_uncomputed(&self) -> usize {
        let needed = self.num_tokens().min(self.max_total_len.saturating_sub(1));
        needed.saturating_sub(self.num_computed_tokens)
    }
}
