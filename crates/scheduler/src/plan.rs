//! What a planned step consists of, and what can be said about the planner from outside.

use stallfree_core::SeqId;

/// One step's work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to compute, each chunk of another sequence; empty if there is nothing to do until a batch in flight completes or
    /// a sequence arrives.
    pub chunks: Vec<PlannedChunk>,
    /// Sequences that lost their blocks, in the order in which they did.
    pub preempted: Vec<SeqId>,
    /// Sequences whose first chunk this plan has.
    pub admitted: Vec<SeqId>,
}

/// A run of consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedChunk {
    /// The sequence.
    pub seq: SeqId,
    /// The position of the chunk's first token.
    pub start: usize,
    /// How many tokens it has; at least 1.
    pub num_tokens: usize,
    /// Whether it reaches the sequence's last token, so that the next one is to be sampled.
    pub samples: bool,
}

impl Plan {
    /// Returns how many tokens the plan has.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.num_tokens).sum()
    }

    /// Returns whether there is nothing to compute.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// How busy a planner is, and what its cache did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences running, or fetching the KV that they need to run.
    pub num_running: usize,
    /// Sequences waiting, those included that were preempted or whose KV is elsewhere.
    pub num_waiting: usize,
    /// Blocks that sequences hold.
    pub num_used_blocks: usize,
    /// All blocks.
    pub num_blocks: usize,
    /// Tokens looked up in the prefix cache at first admissions, ever.
    pub prefix_cache_queries: u64,
    /// Of these, tokens found.
    pub prefix_cache_hits: u64,
    /// Preemptions, ever.
    pub num_preemptions: u64,
}
