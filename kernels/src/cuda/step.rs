//! One step's inputs on the device: single tokens apart from chunks, because other kernels attend them.

use stallfree_device::{DeviceError, DeviceSlice, Stream};

use super::{DecodeBatch, PagedAttentionPrefill, PrefillBatch};
use crate::StepInputs;

/// A step's inputs, as ranges of one upload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) num_tokens: usize,
    pub(super) token_ids: DeviceSlice,
    pub(super) positions: DeviceSlice,
    pub(super) slot_mapping: DeviceSlice,
    singles: Seqs,
    /// The longest context of a single token.
    max_context: usize,
    chunks: Seqs,
    /// The chunks' tokens in the cache.
    chunk_keys: usize,
    block_ids: DeviceSlice,
}

/// `[num]` values for each sequence of a kind.
#[derive(Clone, Copy, Debug)]
struct Seqs {
    num: usize,
    rows: DeviceSlice,
    lens: DeviceSlice,
    context_lens: DeviceSlice,
    block_starts: DeviceSlice,
}

/// Words put one after the other, each list where the device can read 16 bytes at once.
#[derive(Debug, Default)]
pub(super) struct Staging {
    words: Vec<u32>,
    /// The chunks' tokens this step and in the cache.
    pub(super) chunks: Vec<(usize, usize)>,
}

fn word(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl Staging {
    fn push(&mut self, region: DeviceSlice, values: impl IntoIterator<Item = u32>) -> DeviceSlice {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let first = self.words.len();
        self.words.extend(values);
        region.slice(first * 4, (self.words.len() - first) * 4)
    }

    fn push_seqs<'a>(
        &mut self,
        region: DeviceSlice,
        seqs: impl Iterator<Item = &'a crate::RaggedSeq> + Clone,
    ) -> Seqs {
        Seqs {
            num: seqs.clone().count(),
            rows: self.push(region, seqs.clone().map(|seq| word(seq.rows.start))),
            lens: self.push(region, seqs.clone().map(|seq| word(seq.rows.len()))),
            context_lens: self.push(region, seqs.clone().map(|seq| word(seq.context_len))),
            block_starts: self.push(region, seqs.map(|seq| word(seq.blocks.start))),
        }
    }

    /// Uploads a step's inputs into `region`.
    pub(super) fn upload(
        &mut self,
        stream: &Stream,
        region: DeviceSlice,
        inputs: &StepInputs,
    ) -> Result<Step, DeviceError> {
        self.words.clear();
        let is_single = |seq: &&crate::RaggedSeq| seq.rows.len() == 1;
        let singles = inputs.seqs.iter().filter(is_single);
        let chunks = inputs.seqs.iter().filter(|seq| !is_single(seq));
        self.chunks.clear();
        self.chunks.extend(chunks.clone().map(|seq| (seq.rows.len(), seq.context_len)));
        let step = Step {
            num_tokens: inputs.token_ids.len(),
            token_ids: self.push(region, inputs.token_ids.iter().copied()),
            positions: self.push(region, inputs.positions.iter().copied()),
            slot_mapping: self.push(region, inputs.slot_mapping.iter().copied()),
            max_context: singles.clone().map(|seq| seq.context_len).max().unwrap_or(0),
            singles: self.push_seqs(region, singles),
            chunk_keys: chunks.clone().map(|seq| seq.context_len).sum(),
            chunks: self.push_seqs(region, chunks),
            block_ids: self.push(region, inputs.block_ids.iter().copied()),
        };
        if self.words.len() * 4 > region.len() {
            return Err(DeviceError::ArenaFull {
                what: "a step's inputs".to_owned(),
                bytes: self.words.len() * 4,
                left: region.len(),
            });
        }
        stream.upload(region.slice(0, self.words.len() * 4), &self.words)?;
        Ok(step)
    }
}

impl Step {
    /// Returns the sequences with one token each, and their longest context.
    pub(super) const fn singles(&self) -> Option<(DecodeBatch, usize)> {
        let Seqs { num, rows, context_lens, block_starts, .. } = self.singles;
        if num == 0 {
            return None;
        }
        let block_ids = self.block_ids;
        let batch =
            DecodeBatch { num_seqs: num, rows, context_lens, block_starts, block_ids, splits: 1 };
        Some((batch, self.max_context))
    }

    /// Returns the sequences with chunks, once `tiles` are uploaded.
    pub(super) const fn chunks(&self, tiles: DeviceSlice, num_tiles: usize) -> PrefillBatch {
        let Seqs { rows, lens, context_lens, block_starts, .. } = self.chunks;
        PrefillBatch {
            num_tiles,
            tiles,
            seq_rows: rows,
            seq_lens: lens,
            context_lens,
            block_starts,
            block_ids: self.block_ids,
            num_keys: self.chunk_keys,
        }
    }
}

/// Cuts a step's chunks into the tiles of a kernel.
pub(super) fn tiles(kernel: &PagedAttentionPrefill, staging: &Staging) -> Vec<u32> {
    kernel.tiles(&staging.chunks).into_iter().flatten().collect()
}
