//! Activations as signed bytes, for quantized weights.
//!
//! Each 32 elements share a scale, the largest magnitude over 127, so that the error of an element is at most half of that. A
//! row's bytes depend on the row alone.

use super::memory::Shared;
use super::simd::{Kernel, LANES, Simd, padded};
use super::unpack::IntFormat;

/// Elements that share a scale.
const BLOCK: usize = 32;

/// Quantized rows.
#[derive(Debug, Default)]
pub(super) struct QuantRows {
    cols: usize,
    /// Four bytes a word.
    words: Vec<i32>,
    /// One for each 32 elements.
    scales: Vec<f32>,
    /// What each kind of format adds for each of its scales.
    corrections: Vec<(Correction, Vec<i32>)>,
}

/// What a format needs to know of a row besides its bytes, for each of the format's scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Correction {
    scale_len: usize,
    /// With an offset: minus offset × the bytes' sum, an integer. Without: scale × the sum, a float's bits.
    offset: Option<u8>,
}

impl Correction {
    const fn of(format: IntFormat) -> Self {
        let offset = if format.has_min { None } else { Some(format.offset) };
        Self { scale_len: format.scale_len, offset }
    }
}

/// One quantized row, as a format's kernel reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuantRow<'a> {
    pub(super) words: &'a [i32],
    pub(super) scales: &'a [f32],
    pub(super) corrections: &'a [i32],
}

impl QuantRows {
    /// Makes room for rows that are multiplied with weights of `formats`.
    pub(super) fn resize(
        &mut self,
        rows: usize,
        cols: usize,
        formats: impl Iterator<Item = IntFormat>,
    ) {
        fn grow<T: Clone + Default>(vec: &mut Vec<T>, len: usize) {
            if vec.len() < len {
                vec.resize(len, T::default());
            }
        }
        self.cols = cols;
        grow(&mut self.words, rows * cols / 4);
        grow(&mut self.scales, rows * cols / BLOCK);
        let mut used = 0;
        for format in formats {
            let correction = Correction::of(format);
            if self.corrections[..used].iter().any(|(have, _)| *have == correction) {
                continue;
            }
            if self.corrections.len() == used {
                self.corrections.push((correction, Vec::new()));
            }
            self.corrections[used].0 = correction;
            grow(&mut self.corrections[used].1, rows * cols / correction.scale_len);
            used += 1;
        }
        self.corrections.truncate(used);
    }

    /// Returns where the corrections of `format` are.
    pub(super) fn correction_index(&self, format: IntFormat) -> usize {
        let wanted = Correction::of(format);
        self.corrections.iter().position(|(have, _)| *have == wanted).unwrap_or(0)
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize, correction_index: usize) -> QuantRow<'_> {
        let (correction, values) = &self.corrections[correction_index];
        let (words, scales) = (self.cols / 4, self.cols / BLOCK);
        let corrections = self.cols / correction.scale_len;
        QuantRow {
            words: &self.words[row * words..][..words],
            scales: &self.scales[row * scales..][..scales],
            corrections: &values[row * corrections..][..corrections],
        }
    }

    /// Returns the parts for the tasks of a region to fill.
    pub(super) fn shared(&mut self) -> SharedQuantRows<'_> {
        SharedQuantRows {
            cols: self.cols,
            words: Shared::new(&mut self.words),
            scales: Shared::new(&mut self.scales),
            corrections: self
                .corrections
                .iter_mut()
                .map(|(correction, values)| (*correction, Shared::new(values.as_mut_slice())))
                .collect(),
        }
    }
}

/// Rows being quantized.
pub(super) struct SharedQuantRows<'a> {
    cols: usize,
    words: Shared<'a, i32>,
    scales: Shared<'a, f32>,
    corrections: Vec<(Correction, Shared<'a, i32>)>,
}

/// Quantizes one row.
pub(super) struct Quantize<'a> {
    pub(super) x: &'a [f32],
    pub(super) row: usize,
    /// No other task fills this row.
    pub(super) to: &'a SharedQuantRows<'a>,
}

impl Kernel for Quantize<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.to.cols;
        let part = |len: usize| self.row * len..(self.row + 1) * len;
        // SAFETY: no other task fills this row.
        let words = unsafe { self.to.words.part(part(cols / 4)) };
        // SAFETY: as above.
        let scales = unsafe { self.to.scales.part(part(cols / BLOCK)) };
        let bytes: &mut [[i8; BLOCK]] = bytemuck::cast_slice_mut(words);
        for (i, (x, bytes)) in self.x.as_chunks::<BLOCK>().0.iter().zip(bytes).enumerate() {
            let (scale, sums) = quantize_block(s, x, bytes);
            scales[i] = scale;
            for (correction, values) in &self.to.corrections {
                let per_row = cols / correction.scale_len;
                // SAFETY: as above.
                let values = unsafe { values.part(part(per_row)) };
                let value = |sum: i32| match correction.offset {
                    Some(offset) => -i32::from(offset) * sum,
                    None => (scale * sum as f32).to_bits().cast_signed(),
                };
                if correction.scale_len == BLOCK {
                    values[i] = value(sums[0] + sums[1]);
                } else {
                    values[2 * i] = value(sums[0]);
                    values[2 * i + 1] = value(sums[1]);
                }
            }
        }
    }
}

/// Returns the scale and the sum of each half.
#[inline(always)]
fn quantize_block<S: Simd>(s: S, x: &[f32; BLOCK], bytes: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    let (low, high) = x.split_at(LANES);
    let halves = [s.load(&padded(low)), s.load(&padded(high))];
    let largest = s.largest(s.max(s.abs(halves[0]), s.abs(halves[1])));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 127.0 / largest } else { 0.0 };
    let (low, high) = bytes.split_at_mut(LANES);
    let mut sums = [0; 2];
    for ((x, to), sum) in halves.into_iter().zip([low, high]).zip(&mut sums) {
        let codes = s.round(s.mul(x, s.splat(inverse)));
        *sum = s.sum_int(codes);
        if let Ok(to) = to.try_into() {
            s.store_bytes(to, codes);
        }
    }
    (scale, sums)
}
