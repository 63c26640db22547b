//! What goes down to the device: one step's work.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{BatchId, BlockId, SamplingParams, SeqId, TokenId};

/// Stands in [`Batch::token_ids`] for a token that an earlier batch, still in flight, is about to sample for the same
/// sequence; the executor puts it in on the device. Only executors with `max_in_flight() > 1` ever see one.
pub const PENDING_TOKEN: TokenId = TokenId::MAX;

/// One step's work: chunks of sequences, of any mix of lengths.
///
/// Everything is a chunk: a decode is a chunk of one token whose sequence has all its earlier tokens computed. A batch is
/// complete in itself; an executor keeps nothing about a sequence between batches but the KV in its blocks.
///
/// A block may be in the tables of several chunks, and one chunk may read what another of the same batch writes (a shared
/// prefix): in each layer, an executor writes the KV of all chunks before it reads any.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// This batch's number.
    pub id: BatchId,
    /// The chunks, each of another sequence.
    pub chunks: Vec<Chunk>,
    /// The chunks' tokens, one chunk after the other.
    pub token_ids: Vec<TokenId>,
    /// The chunks' block tables, one after the other; a table covers every position up to the chunk's last token.
    pub block_ids: Vec<BlockId>,
}

/// A run of consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The sequence.
    pub seq: SeqId,
    /// How many tokens before this chunk have their KV in the cache: the position of the chunk's first token.
    pub num_computed_tokens: usize,
    /// The chunk's tokens, as a range of [`Batch::token_ids`]; never empty.
    pub tokens: Range<usize>,
    /// The sequence's block table, as a range of [`Batch::block_ids`].
    pub blocks: Range<usize>,
    /// Set if a token is to be sampled after the chunk's last one: the chunk reaches the end of the known tokens.
    pub sample: Option<SampleSpec>,
    /// Set if the prompt's logprobs are wanted: for each token of the chunk, those of the prompt token that follows it. The
    /// value is the tokens that follow, fewer than the chunk has where it ends the prompt.
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// Which prompt tokens' logprobs a chunk is to return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptLogprobs {
    /// How many most likely tokens to report beside each prompt token.
    pub num_top: u32,
    /// The token that follows each of the chunk's first `targets.len()` tokens.
    pub targets: Vec<TokenId>,
}

/// How to draw one token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleSpec {
    /// The sequence's settings.
    pub params: Arc<SamplingParams>,
    /// How many tokens the sequence has produced before this one: the draw's number.
    pub num_output_tokens: usize,
    /// Tokens that must not be drawn (stop tokens before `min_tokens`).
    pub banned: Arc<[TokenId]>,
    /// All known tokens of the sequence and the prompt's length; only where [`SamplingParams::needs_history`].
    pub history: Option<History>,
}

/// A sequence's tokens so far, for penalties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Prompt, then output; tokens that batches in flight are about to sample are [`PENDING_TOKEN`].
    pub tokens: Vec<TokenId>,
    /// How many of them are the prompt.
    pub prompt_len: usize,
}

impl Batch {
    /// Returns a chunk's tokens.
    ///
    /// # Panics
    /// If the chunk is not of this batch.
    #[must_use]
    pub fn tokens_of(&self, chunk: &Chunk) -> &[TokenId] {
        &self.token_ids[chunk.tokens.clone()]
    }

    /// Returns a chunk's block table.
    ///
    /// # Panics
    /// If the chunk is not of this batch.
    #[must_use]
    pub fn blocks_of(&self, chunk: &Chunk) -> &[BlockId] {
        &self.block_ids[chunk.blocks.clone()]
    }

    /// Returns how many tokens this step computes.
    #[must_use]
    pub const fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }
}

impl Chunk {
    /// Returns how many tokens the chunk has.
    #[must_use]
    pub const fn num_tokens(&self) -> usize {
        self.tokens.end - self.tokens.start
    }

    /// Returns how many tokens the sequence has in the cache once the chunk is computed.
    #[must_use]
    pub const fn context_len(&self) -> usize {
        self.num_computed_tokens + self.num_tokens()
    }
}
