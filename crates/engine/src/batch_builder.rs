//! Writes a plan down as the batch that goes to the executor.
//!
//! It decides nothing: the planner has chosen the chunks and given them blocks.

use std::sync::Arc;

use stallfree_core::{Batch, BatchId, BlockId, Chunk, History, PENDING_TOKEN, SampleSpec, SeqMap};
use stallfree_scheduler::{Plan, PlannedChunk, Planner, Sequence};

use crate::state::SeqState;

/// Builds batches; remembers the last one's size, so that a batch's vectors are allocated once.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    block_size: usize,
    num_blocks: usize,
}

impl BatchBuilder {
    pub(crate) const fn new(block_size: usize) -> Self {
        Self { block_size, num_blocks: 0 }
    }

    /// Builds the batch of a plan that `planner` has just made.
    pub(crate) fn build(
        &mut self,
        id: BatchId,
        plan: &Plan,
        planner: &Planner,
        seqs: &SeqMap<SeqState>,
    ) -> Batch {
        let mut batch = Batch {
            id,
            chunks: Vec::with_capacity(plan.chunks.len()),
            token_ids: Vec::with_capacity(plan.num_tokens()),
            block_ids: Vec::with_capacity(self.num_blocks + self.num_blocks / 8),
        };
        for planned in &plan.chunks {
            let known = planner.with_blocks(planned.seq).zip(seqs.get(&planned.seq));
            let Some(((seq, table), state)) = known else {
                debug_assert!(false, "the plan has sequence {}, which is gone", planned.seq);
                continue;
            };
            let num_blocks = (planned.start + planned.num_tokens).div_ceil(self.block_size);
            add_chunk(&mut batch, planned, &table[..num_blocks.min(table.len())], (seq, state));
        }
        self.num_blocks = batch.block_ids.len();
        batch
    }
}

fn add_chunk(
    batch: &mut Batch,
    planned: &PlannedChunk,
    table: &[BlockId],
    (seq, state): (&Sequence, &SeqState),
) {
    let end = planned.start + planned.num_tokens;
    let first_token = batch.token_ids.len();
    let num_known = end.min(seq.tokens.len());
    batch.token_ids.extend_from_slice(&seq.tokens[planned.start.min(num_known)..num_known]);
    batch.token_ids.resize(first_token + planned.num_tokens, PENDING_TOKEN);

    let first_block = batch.block_ids.len();
    batch.block_ids.extend_from_slice(table);

    batch.chunks.push(Chunk {
        seq: planned.seq,
        num_computed_tokens: planned.start,
        tokens: first_token..batch.token_ids.len(),
        blocks: first_block..batch.block_ids.len(),
        sample: planned.samples.then(|| sample_spec(seq, state)),
        prompt_logprobs: state.prompt_logprobs(seq, planned),
    });
}

/// The planner counts the token to be drawn as pending already.
fn sample_spec(seq: &Sequence, state: &SeqState) -> SampleSpec {
    let num_tokens = seq.num_tokens() - 1;
    let num_output_tokens = num_tokens - seq.prompt_len;
    SampleSpec {
        params: Arc::clone(&state.params),
        num_output_tokens,
        banned: state.banned(num_output_tokens),
        history: state.params.needs_history().then(|| {
            let mut tokens = seq.tokens.clone();
            tokens.resize(num_tokens, PENDING_TOKEN);
            History { tokens, prompt_len: seq.prompt_len }
        }),
    }
}
