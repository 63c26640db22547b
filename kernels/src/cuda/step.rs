//! One step's inputs on the device: single tokens apart from chunks, because other kernels attend them.

use std::sync::Arc;

use stallfree_device::{Device, DeviceError, DeviceSlice, Stream, Upload};

use super::{DecodeBatch, PagedAttentionPrefill, PrefillBatch};
use crate::{RaggedSeq, StepInputs};

/// A step's inputs, as ranges of one upload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) num_tokens: usize,
    /// How many of them the runner gave; the rest fill a recorded step up.
    pub(super) num_given: usize,
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

/// Sequences of one token that fill a step up: they write and read where nobody else does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Padding {
    pub(super) rows: usize,
    pub(super) block: usize,
    /// The first slot of `block`.
    pub(super) slot: usize,
}

/// Words put one after the other, each list where the device can read 16 bytes at once.
#[derive(Debug)]
pub(super) struct Staging {
    words: Vec<u32>,
    /// As many as there may be steps under way, and one more; the current one is first.
    uploads: [Upload; NUM_UPLOADS],
    /// The chunks' tokens this step and in the cache.
    pub(super) chunks: Vec<(usize, usize)>,
}

const NUM_UPLOADS: usize = 3;
/// Bytes of an upload before it grows.
const UPLOAD_BYTES: usize = 1 << 20;

fn word(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl Staging {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        let upload = || Upload::new(device, UPLOAD_BYTES);
        let uploads = [upload()?, upload()?, upload()?];
        Ok(Self { words: Vec::new(), uploads, chunks: Vec::new() })
    }

    fn list(&mut self, region: DeviceSlice, values: impl IntoIterator<Item = u32>) -> DeviceSlice {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let first = self.words.len();
        self.words.extend(values);
        region.slice(first * 4, (self.words.len() - first) * 4)
    }

    fn seqs<'a>(
        &mut self,
        region: DeviceSlice,
        seqs: impl Iterator<Item = &'a RaggedSeq> + Clone,
    ) -> Seqs {
        Seqs {
            num: seqs.clone().count(),
            rows: self.list(region, seqs.clone().map(|seq| word(seq.rows.start))),
            lens: self.list(region, seqs.clone().map(|seq| word(seq.rows.len()))),
            context_lens: self.list(region, seqs.clone().map(|seq| word(seq.context_len))),
            block_starts: self.list(region, seqs.map(|seq| word(seq.blocks.start))),
        }
    }

    /// Uploads a step's inputs into `region`.
    pub(super) fn upload(
        &mut self,
        stream: &Stream,
        region: DeviceSlice,
        inputs: &StepInputs,
        padding: Padding,
    ) -> Result<Step, DeviceError> {
        self.words.clear();
        let (num_given, last_block) = (inputs.token_ids.len(), inputs.block_ids.len());
        let more: Vec<RaggedSeq> = (num_given..num_given + padding.rows)
            .map(|row| RaggedSeq {
                rows: row..row + 1,
                context_len: 1,
                blocks: last_block..last_block + 1,
            })
            .collect();
        let fill = |value: usize, rows: usize| std::iter::repeat_n(word(value), rows);
        let is_single = |seq: &&RaggedSeq| seq.rows.len() == 1;
        let singles = inputs.seqs.iter().filter(is_single).chain(&more);
        let chunks = inputs.seqs.iter().filter(|seq| !is_single(seq));
        self.chunks.clear();
        self.chunks.extend(chunks.clone().map(|seq| (seq.rows.len(), seq.context_len)));
        let (tokens, positions) = (inputs.token_ids.iter(), inputs.positions.iter());
        let (slots, blocks) = (inputs.slot_mapping.iter(), inputs.block_ids.iter());
        let step = Step {
            num_tokens: num_given + padding.rows,
            num_given,
            token_ids: self.list(region, tokens.copied().chain(fill(0, padding.rows))),
            positions: self.list(region, positions.copied().chain(fill(0, padding.rows))),
            slot_mapping: self.list(region, slots.copied().chain(fill(padding.slot, padding.rows))),
            max_context: singles.clone().map(|seq| seq.context_len).max().unwrap_or(0),
            singles: self.seqs(region, singles),
            chunk_keys: chunks.clone().map(|seq| seq.context_len).sum(),
            chunks: self.seqs(region, chunks),
            block_ids: self.list(region, blocks.copied().chain(fill(padding.block, 1))),
        };
        let bytes = self.words.len() * 4;
        if bytes > region.len() {
            let what = "a step's inputs".to_owned();
            return Err(DeviceError::ArenaFull { what, bytes, left: region.len() });
        }
        self.uploads.rotate_left(1);
        self.uploads[0].begin()?;
        self.uploads[0].push(stream, region.slice(0, bytes), &self.words)?;
        Ok(step)
    }

    /// Uploads something else that the step needs.
    pub(super) fn push(
        &mut self,
        stream: &Stream,
        region: DeviceSlice,
        words: &[u32],
    ) -> Result<(), DeviceError> {
        self.uploads[0].push(stream, region, words)
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
