//! Launches `cuda/sampling.cu`.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use stallfree_device::{Arg, DeviceError, DeviceSlice, Dtype, Function, Launch, Stream};

use super::{Build, CudaError, Toolchain, check_len};
use crate::sampling::{LogitEdit, MAX_VOCAB, NONE, SampleRow, SampleRows, Sampled, Softmax};

/// Bytes of shared memory that a block asks for.
const SHARED_BYTES: usize = 65 << 10;
/// What lists are aligned to.
const ALIGN: usize = 256;

/// Draws a token from each row of logits, and looks up how likely tokens were.
#[derive(Debug)]
pub struct Sample {
    function: Function,
    num_sms: usize,
}

/// Some of the rows of a list, as many as the memory for their settings and results takes at once.
#[derive(Clone, Debug)]
pub struct SamplePart<'a> {
    rows: &'a SampleRows,
    range: Range<usize>,
    layout: Layout,
}

/// What a launch reads and writes on the device.
#[derive(Clone, Copy, Debug)]
pub struct SampleOperands {
    /// `[part.len(), cols]`, f32; in the end they are as they were.
    pub logits: DeviceSlice,
    /// Where settings are copied to: at least [`Sample::ROOM_BYTES`] for a list of any length.
    pub room: DeviceSlice,
    /// `[any]`, u32: what the step before chose; in other memory than `tokens`.
    pub chosen: DeviceSlice,
    /// `[part.len()]`, u32; `u32::MAX` where a logit is NaN or plus infinity.
    pub tokens: DeviceSlice,
    /// Whatever else is found, for [`SampleReader`]: [`SamplePart::found_bytes`].
    pub found: DeviceSlice,
}

/// Copies words to the device, in the order of the stream.
pub type Uploader<'a> = dyn FnMut(DeviceSlice, &[u32]) -> Result<(), DeviceError> + 'a;

/// What is found in a row beside the token; kernels write it as it lies in memory.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Found {
    total: u64,
    token: u32,
    rank: u32,
    logit: f32,
    top: f32,
}

/// One of the most likely tokens; kernels write it as it lies in memory.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Likely {
    token: u32,
    logit: f32,
}

/// What lies one after the other in memory: rows, edits and scratch rows; what is found in each row, and the most likely tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    num_rows: usize,
    num_edits: usize,
    num_scratch: usize,
    num_top: usize,
    cols: usize,
}

impl Layout {
    fn and(self, row: &SampleRow) -> Self {
        let num_top = if row.num_top == NONE { 0 } else { row.num_top as usize };
        Self {
            num_rows: self.num_rows + 1,
            num_edits: self.num_edits + row.num_edits as usize,
            num_scratch: self.num_scratch + row.only_edits as usize,
            num_top: self.num_top.max(num_top),
            cols: self.cols,
        }
    }

    const fn edits(self) -> usize {
        (self.num_rows * size_of::<SampleRow>()).next_multiple_of(ALIGN)
    }

    const fn scratch(self) -> usize {
        (self.edits() + self.num_edits * size_of::<LogitEdit>()).next_multiple_of(ALIGN)
    }

    const fn room_bytes(self) -> usize {
        self.scratch() + self.num_scratch * self.cols * 4
    }

    const fn likely(self) -> usize {
        self.num_rows * size_of::<Found>()
    }

    const fn found_bytes(self) -> usize {
        self.likely() + self.num_rows * self.num_top * size_of::<Likely>()
    }
}

impl<'a> SamplePart<'a> {
    /// Cuts `rows`, of `cols` logits each, into parts that keep within so many bytes of settings and results. A single row needs no
    /// more than [`Sample::ROOM_BYTES`] and [`Sample::FOUND_BYTES`].
    #[must_use]
    pub fn all(
        rows: &'a SampleRows,
        cols: usize,
        room_bytes: usize,
        found_bytes: usize,
    ) -> Vec<Self> {
        let empty = Layout { cols, ..Layout::default() };
        let mut parts: Vec<Self> = Vec::new();
        for (index, row) in rows.rows.iter().enumerate() {
            if let Some(part) = parts.last_mut() {
                let longer = part.layout.and(row);
                if longer.room_bytes() <= room_bytes && longer.found_bytes() <= found_bytes {
                    part.layout = longer;
                    part.range.end = index + 1;
                    continue;
                }
            }
            parts.push(Self { rows, range: index..index + 1, layout: empty.and(row) });
        }
        parts
    }

    /// Returns which rows of the list these are.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Returns how many bytes are found beside the tokens.
    #[must_use]
    pub const fn found_bytes(&self) -> usize {
        self.layout.found_bytes()
    }

    /// Returns whether nothing is wanted but tokens.
    #[must_use]
    pub fn wants_tokens_only(&self) -> bool {
        self.rows().iter().all(|row| row.num_top == NONE)
    }

    /// Returns how to read what is found.
    #[must_use]
    pub fn reader(&self) -> SampleReader {
        let num_tops = self.rows().iter().map(|row| row.num_top).collect();
        SampleReader { layout: self.layout, num_tops }
    }

    fn rows(&self) -> &[SampleRow] {
        &self.rows.rows[self.range.clone()]
    }

    /// Returns the rows as they have to be on the device, and their edits.
    fn settings(&self) -> (Vec<SampleRow>, &[LogitEdit]) {
        let (mut num_edits, mut num_scratch) = (0, 0);
        let place = |row: &SampleRow| {
            let placed = SampleRow { first_edit: num_edits, scratch: num_scratch, ..*row };
            num_edits += row.num_edits;
            num_scratch += row.only_edits;
            placed
        };
        let rows = self.rows().iter().map(place).collect();
        let first = self.rows().first().map_or(0, |row| row.first_edit as usize);
        (rows, &self.rows.edits[first..first + self.layout.num_edits])
    }
}

impl Sample {
    /// Bytes that suffice for the settings of any row.
    pub const ROOM_BYTES: usize = MAX_VOCAB * (size_of::<LogitEdit>() + 4) + 4 * ALIGN;
    /// Bytes that suffice for what is found in any row.
    pub const FOUND_BYTES: usize = MAX_VOCAB * size_of::<Likely>() + ALIGN;

    /// Compiles and loads.
    ///
    /// # Errors
    /// The compiler or the driver fails.
    pub fn load(tools: &Toolchain) -> Result<Self, CudaError> {
        let [function] = tools.load(&Self::build(tools.dtype))?;
        Ok(Self { function, num_sms: tools.device.props().num_sms })
    }

    pub(super) fn build(dtype: Dtype) -> Build {
        let source = ("sampling.cu", include_str!("../../cuda/sampling.cu"));
        let defines = vec![("SHARED_BYTES", SHARED_BYTES.to_string())];
        Build::new(dtype, source, &["sample"], defines).with_shared(SHARED_BYTES)
    }

    /// Submits; `upload` copies settings into the room, in the order of the stream.
    ///
    /// # Errors
    /// An operand is too short, there are more than 2^20 columns, or the driver fails.
    pub fn run(
        &self,
        stream: &Stream,
        upload: &mut Uploader<'_>,
        part: &SamplePart<'_>,
        operands: &SampleOperands,
    ) -> Result<(), CudaError> {
        let SampleOperands { logits, room, chosen, tokens, found } = *operands;
        let layout = part.layout;
        if layout.cols > MAX_VOCAB {
            return Err(CudaError::Unsupported { what: format!("{} logits a row", layout.cols) });
        }
        check_len("logits", logits, layout.num_rows * layout.cols, 4)?;
        check_len("room", room, layout.room_bytes(), 1)?;
        check_len("tokens", tokens, layout.num_rows, 4)?;
        check_len("found", found, layout.found_bytes(), 1)?;
        let (rows, edits) = part.settings();
        upload(room.slice(0, size_of_val(&rows[..])), bytemuck::cast_slice(&rows))?;
        if !edits.is_empty() {
            let to = room.slice(layout.edits(), size_of_val(edits));
            upload(to, bytemuck::cast_slice(edits))?;
        }
        let from = |slice: DeviceSlice, bytes: usize| slice.slice(bytes, slice.len());
        let args = [
            logits.into(),
            room.into(),
            from(room, layout.edits()).into(),
            from(room, layout.scratch()).into(),
            chosen.into(),
            tokens.into(),
            found.into(),
            from(found, layout.likely()).into(),
            Arg::from(chosen.len() / 4),
            Arg::from(layout.cols),
            Arg::from(layout.num_top),
        ];
        // Few rows have a multiprocessor each: then more threads have more loads under way.
        let threads = if layout.num_rows <= self.num_sms { 1024 } else { 512 };
        let grid = (layout.num_rows, 1, 1);
        let launch = Launch { grid, threads, shared_bytes: SHARED_BYTES, overlap: true };
        // SAFETY: the arguments are the kernel's, and the lengths are checked above.
        Ok(unsafe { self.function.launch(stream, launch, &args) }?)
    }
}

/// Reads what was found in the rows of a part.
#[derive(Clone, Debug)]
pub struct SampleReader {
    layout: Layout,
    num_tops: Vec<u32>,
}

impl SampleReader {
    /// Reads the bytes of [`SampleOperands::found`].
    ///
    /// # Panics
    /// They are not as many as [`SamplePart::found_bytes`].
    #[must_use]
    pub fn read(&self, bytes: &[u8]) -> Vec<Sampled> {
        let (found, likely) = bytes.split_at(self.layout.likely());
        let each = size_of::<Likely>();
        let row = |(index, num_top): (usize, u32)| {
            let at = index * size_of::<Found>();
            let found: Found = bytemuck::pod_read_unaligned(&found[at..at + size_of::<Found>()]);
            let mut logprobs = Vec::new();
            if num_top != NONE && found.token != NONE {
                let softmax = Softmax { top: found.top, total: found.total };
                logprobs.push(softmax.logprob(found.token, found.logit, found.rank));
                let first = index * self.layout.num_top * each;
                let likely = &likely[first..first + num_top as usize * each];
                for (rank, bytes) in (1..).zip(likely.chunks_exact(each)) {
                    let Likely { token, logit } = bytemuck::pod_read_unaligned(bytes);
                    logprobs.push(softmax.logprob(token, logit, rank));
                }
            }
            Sampled { token: found.token, logprobs }
        };
        self.num_tops.iter().copied().enumerate().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stallfree_core::{PENDING_TOKEN, SampleSpec, SamplingParams};

    use super::{Sample, SamplePart};
    use crate::SampleRows;

    /// Rows with and without edits, and rows that look a token up.
    fn rows(num_rows: u32) -> SampleRows {
        let mut rows = SampleRows::new(1000);
        for row in 0..num_rows {
            if row % 3 == 1 {
                rows.push_target(row, 2);
                continue;
            }
            let spec = SampleSpec {
                params: Arc::new(SamplingParams::greedy()),
                num_output_tokens: 0,
                banned: (0..row % 7).map(|i| row * 10 + i).collect(),
                history: None,
            };
            rows.push_draw(&spec, PENDING_TOKEN);
        }
        rows
    }

    #[test]
    fn parts_are_all_rows_with_their_own_edits_within_the_limits() {
        let all = rows(50);
        for [room, found] in [[Sample::ROOM_BYTES, Sample::FOUND_BYTES], [2000, 4000], [9000, 90]] {
            let mut next = 0;
            for part in SamplePart::all(&all, 1000, room, found) {
                assert_eq!(part.range().start, next);
                next = part.range().end;
                assert!(part.layout.room_bytes() <= room && part.found_bytes() <= found);
                let (placed, edits) = part.settings();
                for (row, placed) in all.rows[part.range()].iter().zip(placed) {
                    let here = placed.first_edit as usize..;
                    let own = &edits[here][..placed.num_edits as usize];
                    assert_eq!(own, all.edits_of(row));
                }
            }
            assert_eq!(next, all.len());
        }
    }
}
