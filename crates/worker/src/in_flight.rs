//! What an executor remembers of a batch that is under way.

use stallfree_core::{Batch, BatchId, BlockId};

/// A batch under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) id: BatchId,
    pub(crate) num_tokens: usize,
    /// The blocks that it writes into. A sequence may be gone before the batch is done, and its blocks in other hands.
    writes: Vec<BlockId>,
}

impl InFlight {
    pub(crate) fn new(batch: &Batch, block_size: usize) -> Self {
        let written = batch.chunks.iter().flat_map(|chunk| {
            let blocks = batch.blocks_of(chunk);
            let first = chunk.num_computed_tokens / block_size;
            blocks.iter().take(chunk.context_len().div_ceil(block_size)).skip(first).copied()
        });
        Self { id: batch.id, num_tokens: batch.num_tokens(), writes: written.collect() }
    }

    pub(crate) fn writes_any(&self, blocks: &[BlockId]) -> bool {
        self.writes.iter().any(|block| blocks.contains(block))
    }
}

#[cfg(test)]
mod tests {
    use stallfree_core::{Batch, BatchId, BlockId, Chunk, SeqId};

    use super::InFlight;

    #[test]
    fn a_batch_writes_where_its_tokens_go() {
        let chunk = |seq, num_computed_tokens, tokens, blocks| Chunk {
            seq: SeqId(seq),
            num_computed_tokens,
            tokens,
            blocks,
            sample: None,
            prompt_logprobs: None,
        };
        let batch = Batch {
            id: BatchId(3),
            // Nine tokens after the first six, and one after twelve, in blocks of four.
            chunks: vec![chunk(0, 6, 0..9, 0..4), chunk(1, 12, 9..10, 4..8)],
            token_ids: vec![1; 10],
            block_ids: (20..28).map(BlockId).collect(),
        };
        let in_flight = InFlight::new(&batch, 4);
        let written = (20..28).filter(|&block| in_flight.writes_any(&[BlockId(block)]));
        assert_eq!(written.collect::<Vec<_>>(), [21, 22, 23, 27]);
        assert_eq!(in_flight.num_tokens, 10);
    }
}
