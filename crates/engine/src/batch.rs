//! From a plan to a batch: tokens, block tables, and how to sample.

use std::collections::HashMap;

use stallfree_core::{
    Batch, BatchId, Chunk, History, PENDING_TOKEN, PromptLogprobs, SampleSpec, SeqId,
};
use stallfree_scheduler::{Plan, PlannedChunk, Planner, Sequence};

use crate::live::Live;

/// Builds the batch that `plan` describes.
pub(crate) fn build_batch(
    id: BatchId,
    plan: &Plan,
    planner: &Planner,
    live: &HashMap<SeqId, Live>,
) -> Batch {
    let mut batch = Batch {
        id,
        chunks: Vec::with_capacity(plan.chunks.len()),
        token_ids: Vec::with_capacity(plan.num_tokens()),
        block_ids: Vec::new(),
    };
    for chunk in &plan.chunks {
        if let (Some(seq), Some(live)) = (planner.sequence(chunk.seq), live.get(&chunk.seq)) {
            push(&mut batch, chunk, seq, live);
            let blocks = planner.block_table(chunk.seq);
            let first = batch.block_ids.len();
            batch.block_ids.extend_from_slice(blocks);
            if let Some(chunk) = batch.chunks.last_mut() {
                chunk.blocks = first..batch.block_ids.len();
            }
        }
    }
    batch
}

fn push(batch: &mut Batch, planned: &PlannedChunk, seq: &Sequence, live: &Live) {
    let (start, end) = (planned.start, planned.start + planned.num_tokens);
    let first = batch.token_ids.len();
    let known = end.min(seq.tokens.len());
    batch.token_ids.extend_from_slice(&seq.tokens[start.min(known)..known]);
    batch.token_ids.resize(first + planned.num_tokens, PENDING_TOKEN);
    batch.chunks.push(Chunk {
        seq: seq.id,
        num_computed_tokens: start,
        tokens: first..batch.token_ids.len(),
        blocks: 0..0,
        sample: planned.samples.then(|| sample_spec(seq, live, end)),
        prompt_logprobs: prompt_logprobs(seq, live, start, end),
    });
}

/// Describes the draw of the token at position `end`.
fn sample_spec(seq: &Sequence, live: &Live, end: usize) -> SampleSpec {
    let num_output_tokens = end.saturating_sub(seq.prompt_len);
    let too_early = num_output_tokens < live.stop.min_tokens;
    let history = || History { tokens: seq.tokens.clone(), prompt_len: seq.prompt_len };
    SampleSpec {
        params: live.sampling.clone(),
        num_output_tokens,
        banned: if too_early { live.banned.clone() } else { [].into() },
        history: live.sampling.needs_history().then(history),
    }
}

fn prompt_logprobs(
    seq: &Sequence,
    live: &Live,
    start: usize,
    end: usize,
) -> Option<PromptLogprobs> {
    let num_top = live.sampling.prompt_logprobs?;
    let targets = seq.tokens[..seq.prompt_len].get(start + 1..(end + 1).min(seq.prompt_len))?;
    (!targets.is_empty()).then(|| PromptLogprobs { num_top, targets: targets.to_vec() })
}
