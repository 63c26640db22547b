//! Weights as the CPU keeps them: panels of sixteen rows, interleaved so that each lane of a vector works for one row.
//!
//! A matrix is a list of segments, one for each part that it was loaded from, each of one type. Plain types keep their bits;
//! quantized ones keep code, scale and minimum exactly (see [`super::unpack`]). How they are multiplied is not known here: that is
//! [`super::linear`].

use bytemuck::Zeroable;

use super::memory::{Line, Shared};
use super::pool::Pool;
use super::simd::LANES;
use super::unpack::{IntFormat, Unpacked};
use crate::{KernelError, WeightTensor, WeightType};

/// A loaded matrix.
#[derive(Debug)]
pub struct Matrix {
    pub(super) segments: Vec<Segment>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Consecutive rows of one type.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) panels: Panels,
}

/// The panels of a segment; the last is filled up with zero rows.
#[derive(Debug)]
pub(super) enum Panels {
    /// For each panel and column, sixteen rows' elements.
    F32(Vec<Line>),
    /// The same, of half the size.
    F16(Vec<Line>),
    /// The same, of half the size.
    BF16(Vec<Line>),
    /// Codes and scales.
    Int(IntPanels),
}

/// The panels of a quantized segment.
///
/// A line of codes holds, for each of sixteen rows, four bytes: codes of four consecutive columns. With 4 bits, the low nibbles
/// of a scale's first lines and then the high nibbles of the same lines are its columns in order.
#[derive(Debug)]
pub(super) struct IntPanels {
    pub(super) format: IntFormat,
    /// For each panel and scale, its lines.
    pub(super) codes: Vec<Line>,
    /// For each panel and scale, sixteen scales, then sixteen minimums if there are any; half precision or single.
    pub(super) scales: Vec<Line>,
}

impl IntFormat {
    /// Lines of codes for each scale.
    pub(super) const fn lines(self) -> usize {
        if self.bits == 4 { self.scale_len / 8 } else { self.scale_len / 4 }
    }

    /// Floats for each panel and scale.
    const fn scale_floats(self) -> usize {
        if self.has_min { 2 * LANES } else { LANES }
    }
}

fn zeroed(num_bytes: usize) -> Vec<Line> {
    vec![Line::zeroed(); num_bytes.div_ceil(size_of::<Line>())]
}

/// Checks a part's shape and bytes, and returns its rows and columns.
fn checked_shape(part: &WeightTensor<'_>) -> Result<(usize, usize), KernelError> {
    let &[rows, cols] = part.shape else {
        return Err(KernelError::Shape {
            operand: part.name.to_owned(),
            expected: vec![part.shape.iter().product(), 1],
            got: part.shape.to_vec(),
        });
    };
    let block = part.dtype.block_len();
    if cols == 0 || cols % block != 0 {
        return Err(KernelError::Shape {
            operand: part.name.to_owned(),
            expected: vec![rows, cols.next_multiple_of(block).max(block)],
            got: part.shape.to_vec(),
        });
    }
    check_bytes(part, rows * cols)?;
    Ok((rows, cols))
}

/// Checks that a part has the bytes of so many elements.
pub(super) fn check_bytes(part: &WeightTensor<'_>, len: usize) -> Result<(), KernelError> {
    let expected = part.dtype.bytes_for(len);
    if part.bytes.len() != expected {
        return Err(KernelError::Bytes {
            operand: part.name.to_owned(),
            expected,
            got: part.bytes.len(),
        });
    }
    Ok(())
}

impl Matrix {
    /// Packs the rows of `parts`, one part after the other.
    pub(super) fn load(parts: &[WeightTensor<'_>], pool: &mut Pool) -> Result<Self, KernelError> {
        let mut matrix = Self { segments: Vec::new(), rows: 0, cols: 0 };
        for part in parts {
            let (rows, cols) = checked_shape(part)?;
            if matrix.segments.is_empty() {
                matrix.cols = cols;
            } else if matrix.cols != cols {
                return Err(KernelError::Shape {
                    operand: part.name.to_owned(),
                    expected: vec![rows, matrix.cols],
                    got: vec![rows, cols],
                });
            }
            let panels = match IntFormat::of(part.dtype) {
                Some(format) => Panels::Int(pack_int(part, rows, format, pool)),
                None => pack_plain(part, rows, pool),
            };
            matrix.segments.push(Segment { first_row: matrix.rows, rows, panels });
            matrix.rows += rows;
        }
        Ok(matrix)
    }

    /// Returns how many bytes the packed weights take.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let lines: usize = self
            .segments
            .iter()
            .map(|segment| match &segment.panels {
                Panels::F32(lines) | Panels::F16(lines) | Panels::BF16(lines) => lines.len(),
                Panels::Int(int) => int.codes.len() + int.scales.len(),
            })
            .sum();
        lines * size_of::<Line>()
    }

    /// Returns how many rows the matrix has.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Writes a row's values, as exact as a single-precision float is.
    pub(super) fn read_row(&self, row: usize, to: &mut [f32]) {
        let Some(segment) = self.segments.iter().rfind(|segment| segment.first_row <= row) else {
            return;
        };
        let row = row - segment.first_row;
        let (panel, lane) = (row / LANES, row % LANES);
        let at = |col: usize| (panel * self.cols + col) * LANES + lane;
        match &segment.panels {
            Panels::F32(lines) => {
                let values: &[f32] = bytemuck::cast_slice(lines);
                to.iter_mut().enumerate().for_each(|(col, to)| *to = values[at(col)]);
            }
            Panels::F16(lines) => {
                let values: &[half::f16] = bytemuck::cast_slice(lines);
                to.iter_mut().enumerate().for_each(|(col, to)| *to = values[at(col)].to_f32());
            }
            Panels::BF16(lines) => {
                let values: &[half::bf16] = bytemuck::cast_slice(lines);
                to.iter_mut().enumerate().for_each(|(col, to)| *to = values[at(col)].to_f32());
            }
            Panels::Int(int) => int.read_row(panel * (self.cols / int.format.scale_len), lane, to),
        }
    }
}

/// Returns a stored weight's values, row-major, as exact as a single-precision float is.
///
/// # Errors
/// The bytes don't fit the shape, or a thread can't be started.
pub fn dequantize(part: &WeightTensor<'_>) -> Result<Vec<f32>, KernelError> {
    let mut pool = Pool::new(1).map_err(|error| KernelError::OutOfMemory {
        what: format!("starting a thread ({error})"),
        bytes: 0,
        hint: "free some memory".to_owned(),
    })?;
    let matrix = Matrix::load(std::slice::from_ref(part), &mut pool)?;
    let mut values = vec![0.0; matrix.rows * matrix.cols];
    for (row, to) in values.chunks_exact_mut(matrix.cols.max(1)).enumerate() {
        matrix.read_row(row, to);
    }
    Ok(values)
}

impl IntPanels {
    fn read_row(&self, first_scale: usize, lane: usize, to: &mut [f32]) {
        let format = self.format;
        for (i, to) in to.chunks_mut(format.scale_len).enumerate() {
            let scale_index = first_scale + i;
            let at = scale_index * format.scale_floats() + lane;
            let scale = self.scale(at);
            let min = if format.has_min { self.scale(at + LANES) } else { 0.0 };
            let lines = &self.codes[scale_index * format.lines()..][..format.lines()];
            for (j, to) in to.iter_mut().enumerate() {
                let line = j / 4 % format.lines();
                let byte = lines[line].0[4 * lane + j % 4];
                let code = match (format.bits, j / 4 / format.lines()) {
                    (4, 0) => byte & 15,
                    (4, _) => byte >> 4,
                    _ => byte,
                };
                *to = scale * (f32::from(code) - f32::from(format.offset)) + min;
            }
        }
    }

    fn scale(&self, at: usize) -> f32 {
        if self.format.half_scales {
            bytemuck::cast_slice::<_, half::f16>(&self.scales)[at].to_f32()
        } else {
            bytemuck::cast_slice::<_, f32>(&self.scales)[at]
        }
    }
}

fn pack_plain(part: &WeightTensor<'_>, rows: usize, pool: &mut Pool) -> Panels {
    let num_panels = rows.div_ceil(LANES);
    let cols = part.shape[1];
    let width = part.dtype.block_bytes();
    let mut lines = zeroed(num_panels * cols * LANES * width);
    let panel_bytes = cols * LANES * width;
    let bytes = Shared::new(bytemuck::cast_slice_mut::<_, u8>(&mut lines));
    pool.run(num_panels, &|_, panel| {
        // SAFETY: each task has its own panel.
        let to = unsafe { bytes.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
        let first = panel * LANES;
        for lane in 0..LANES.min(rows - first) {
            let row = &part.bytes[(first + lane) * cols * width..][..cols * width];
            for (to, from) in to.chunks_exact_mut(LANES * width).zip(row.chunks_exact(width)) {
                to[lane * width..][..width].copy_from_slice(from);
            }
        }
    });
    match part.dtype {
        WeightType::F16 => Panels::F16(lines),
        WeightType::BF16 => Panels::BF16(lines),
        _ => Panels::F32(lines),
    }
}

fn pack_int(part: &WeightTensor<'_>, rows: usize, format: IntFormat, pool: &mut Pool) -> IntPanels {
    let num_panels = rows.div_ceil(LANES);
    let scales_per_row = part.shape[1] / format.scale_len;
    let panel_lines = scales_per_row * format.lines();
    let panel_scales = scales_per_row * format.scale_floats();
    let float_bytes = if format.half_scales { 2 } else { 4 };
    let mut codes = vec![Line::zeroed(); num_panels * panel_lines];
    let mut scales = zeroed(num_panels * panel_scales * float_bytes);
    {
        let codes = Shared::new(&mut codes);
        let scales = Shared::new(bytemuck::cast_slice_mut::<_, u8>(&mut scales));
        let scale_bytes = panel_scales * float_bytes;
        pool.run(num_panels, &|_, panel| {
            // SAFETY: each task has its own panel.
            let codes = unsafe { codes.part(panel * panel_lines..(panel + 1) * panel_lines) };
            // SAFETY: as above.
            let scales = unsafe { scales.part(panel * scale_bytes..(panel + 1) * scale_bytes) };
            for lane in 0..LANES.min(rows - panel * LANES) {
                pack_row(part, panel * LANES + lane, format, codes, scales);
            }
        });
    }
    IntPanels { format, codes, scales }
}

/// Packs one row into its lane of a panel.
fn pack_row(
    part: &WeightTensor<'_>,
    row: usize,
    format: IntFormat,
    codes: &mut [Line],
    scales: &mut [u8],
) {
    let lane = row % LANES;
    let (block_len, block_bytes) = (part.dtype.block_len(), part.dtype.block_bytes());
    let row_bytes = part.dtype.bytes_for(part.shape[1]);
    let mut unpacked = Unpacked::default();
    let mut groups = codes.chunks_exact_mut(format.lines());
    let mut scale_index = 0;
    for block in part.bytes[row * row_bytes..][..row_bytes].chunks_exact(block_bytes) {
        unpacked.read(part.dtype, block);
        for i in 0..block_len / format.scale_len {
            let codes = &unpacked.codes[i * format.scale_len..][..format.scale_len];
            if let Some(lines) = groups.next() {
                pack_codes(codes, lane, lines);
            }
            let at = scale_index * format.scale_floats() + lane;
            write_scale(scales, at, unpacked.scales[i], format);
            if format.has_min {
                write_scale(scales, at + LANES, unpacked.mins[i], format);
            }
            scale_index += 1;
        }
    }
}

fn pack_codes(codes: &[u8], lane: usize, lines: &mut [Line]) {
    let (low, high) = codes.split_at(4 * lines.len());
    for (line, low) in lines.iter_mut().zip(low.chunks_exact(4)) {
        line.0[4 * lane..4 * lane + 4].copy_from_slice(low);
    }
    for (line, high) in lines.iter_mut().zip(high.chunks_exact(4)) {
        for (byte, code) in line.0[4 * lane..4 * lane + 4].iter_mut().zip(high) {
            *byte |= code << 4;
        }
    }
}

fn write_scale(scales: &mut [u8], at: usize, value: f32, format: IntFormat) {
    if format.half_scales {
        scales[2 * at..2 * at + 2].copy_from_slice(&half::f16::from_f32(value).to_ne_bytes());
    } else {
        scales[4 * at..4 * at + 4].copy_from_slice(&value.to_ne_bytes());
    }
}
