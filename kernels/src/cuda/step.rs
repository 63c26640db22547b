//! One step's inputs on the device: single tokens apart from chunks, because other kernels attend them.

use std::sync::Arc;

use stallfree_device::{Device, DeviceError, DeviceSlice, Stream, Upload};

use super::recordings::STEP_MULTIPLE;
use super::{DecodeBatch, PagedAttentionPrefill, PrefillBatch};
use crate::{MAX_BLOCK_IDS, RaggedSeq, StepInputs};

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

/// A step's inputs on their way.
#[derive(Debug)]
pub(super) struct Staging {
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

/// Returns how many words a list of `len` takes: each begins where the device can read 16 bytes at once.
const fn room(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// Returns how many words a step's inputs take: token ids, positions and slots, what is known of sequences, block tables.
const fn num_words(
    num_tokens: usize,
    num_singles: usize,
    num_chunks: usize,
    num_blocks: usize,
) -> usize {
    3 * room(num_tokens) + 4 * (room(num_singles) + room(num_chunks)) + room(num_blocks)
}

/// Returns how many bytes the inputs of steps of up to `max_tokens` tokens take, filled up or not.
pub(super) const fn input_bytes(max_tokens: usize) -> usize {
    let most = max_tokens + STEP_MULTIPLE;
    4 * num_words(most, most, most, MAX_BLOCK_IDS + 1)
}

/// Where lists of words are put one after the other: in page-locked memory, and on the device in `region`.
struct Lists<'a> {
    words: &'a mut [u32],
    region: DeviceSlice,
    next: usize,
}

impl Lists<'_> {
    /// Adds `values`, and `filler` as often as they are short of `len`.
    fn add(&mut self, values: &[u32], filler: usize, len: usize) -> DeviceSlice {
        let first = self.take(len);
        let (given, rest) = self.words[first..first + len].split_at_mut(values.len());
        given.copy_from_slice(values);
        rest.fill(word(filler));
        self.region.slice(first * 4, len * 4)
    }

    /// Takes the place of a list.
    fn take(&mut self, len: usize) -> usize {
        let first = self.next;
        self.next += room(len);
        first
    }

    /// Adds what is to be known of `num` sequences.
    fn add_seqs<'a>(&mut self, num: usize, seqs: impl Iterator<Item = &'a RaggedSeq>) -> Seqs {
        let places = [(); 4].map(|()| self.take(num));
        for (index, seq) in seqs.take(num).enumerate() {
            let values = [seq.rows.start, seq.rows.len(), seq.context_len, seq.blocks.start];
            for (place, value) in places.iter().zip(values) {
                self.words[place + index] = word(value);
            }
        }
        let [rows, lens, context_lens, block_starts] =
            places.map(|place| self.region.slice(place * 4, num * 4));
        Seqs { num, rows, lens, context_lens, block_starts }
    }
}

impl Staging {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        let upload = || Upload::new(device, UPLOAD_BYTES);
        let uploads = [upload()?, upload()?, upload()?];
        Ok(Self { uploads, chunks: Vec::new() })
    }

    /// Uploads a step's inputs into `region`.
    pub(super) fn upload(
        &mut self,
        stream: &Stream,
        region: DeviceSlice,
        inputs: &StepInputs,
        padding: Padding,
    ) -> Result<Step, DeviceError> {
        let (num_given, last_block) = (inputs.token_ids.len(), inputs.block_ids.len());
        let more: Vec<RaggedSeq> = (num_given..num_given + padding.rows)
            .map(|row| RaggedSeq {
                rows: row..row + 1,
                context_len: 1,
                blocks: last_block..last_block + 1,
            })
            .collect();
        let is_single = |seq: &&RaggedSeq| seq.rows.len() == 1;
        let singles = inputs.seqs.iter().filter(is_single).chain(&more);
        let chunks = inputs.seqs.iter().filter(|seq| !is_single(seq));
        self.chunks.clear();
        self.chunks.extend(chunks.clone().map(|seq| (seq.rows.len(), seq.context_len)));
        let (num_tokens, num_chunks) = (num_given + padding.rows, self.chunks.len());
        let num_singles = inputs.seqs.len() + padding.rows - num_chunks;
        let num_words = num_words(num_tokens, num_singles, num_chunks, last_block + 1);
        if num_words * 4 > region.len() {
            let (what, left) = ("a step's inputs".to_owned(), region.len());
            return Err(DeviceError::ArenaFull { what, bytes: num_words * 4, left });
        }
        let write = |words: &mut [u32]| {
            let mut lists = Lists { words, region, next: 0 };
            Step {
                num_tokens,
                num_given,
                token_ids: lists.add(&inputs.token_ids, 0, num_tokens),
                positions: lists.add(&inputs.positions, 0, num_tokens),
                slot_mapping: lists.add(&inputs.slot_mapping, padding.slot, num_tokens),
                singles: lists.add_seqs(num_singles, singles),
                chunks: lists.add_seqs(num_chunks, chunks),
                chunk_keys: self.chunks.iter().map(|&(_, context_len)| context_len).sum(),
                block_ids: lists.add(&inputs.block_ids, padding.block, last_block + 1),
            }
        };
        self.uploads.rotate_left(1);
        self.uploads[0].begin()?;
        self.uploads[0].push_with(stream, region.slice(0, num_words * 4), |bytes| {
            write(bytemuck::cast_slice_mut(bytes))
        })
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
    /// Returns the sequences with one token each.
    pub(super) const fn singles(&self) -> Option<DecodeBatch> {
        let Seqs { num, rows, context_lens, block_starts, .. } = self.singles;
        if num == 0 {
            return None;
        }
        let block_ids = self.block_ids;
        Some(DecodeBatch { num_seqs: num, rows, context_lens, block_starts, block_ids })
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
