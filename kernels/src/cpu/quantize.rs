//! Activations as signed bytes, for quantized weights.
//!
//! Each 32 elements share a scale, the largest magnitude over 127, so that the error of an element is at most half of that. A
//! row's bytes depend on the row alone.

use super::memory::Shared;
use super::pool::{Pool, TASK_ELEMENTS};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, padded};
use super::unpack::IntFormat;

/// Elements that share a scale.
const BLOCK: usize = 32;
/// Kinds of corrections that the formats of one matrix need at most: as many as there are.
const MAX_KINDS: usize = 7;

/// Quantized rows, in tiles of the tokens that are multiplied at once: as many of the largest tile as there are, then halves of it.
///
/// Within a tile of `T` tokens, what the tokens have at the same columns lies side by side.
#[derive(Debug, Default)]
pub(super) struct QuantRows {
    num_tokens: usize,
    cols: usize,
    max_tile: usize,
    /// Four bytes a word: for each tile, `[cols / 4, T]`.
    words: Vec<i32>,
    /// For each tile, `[cols / 32, T]`.
    scales: Vec<f32>,
    num_kinds: usize,
    kinds: [Correction; MAX_KINDS],
    /// For each kind and tile, `[cols / scale_len, T]`.
    corrections: [Vec<i32>; MAX_KINDS],
}

/// What a format needs to know of a row besides its bytes, for each of the format's scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

    #[inline(always)]
    fn value(self, scale: f32, sum: i32) -> i32 {
        match self.offset {
            Some(offset) => sum.wrapping_mul(-i32::from(offset)),
            None => (scale * sum as f32).to_bits().cast_signed(),
        }
    }
}

/// A tile of `T` quantized tokens, as a format's kernel reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuantTile<'a, const T: usize> {
    pub(super) words: &'a [[i32; T]],
    pub(super) scales: &'a [[f32; T]],
    pub(super) corrections: &'a [[i32; T]],
}

fn grow<T: Clone + Default>(vec: &mut Vec<T>, len: usize) {
    if vec.len() < len {
        vec.resize(len, T::default());
    }
}

/// Returns the length of the tile that starts with `token`.
#[inline(always)]
fn tile_len(max_tile: usize, tokens_left: usize) -> usize {
    if tokens_left >= max_tile { max_tile } else { 1 << tokens_left.ilog2() }
}

impl QuantRows {
    /// Quantizes rows that are multiplied with weights of `formats`.
    pub(super) fn fill(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        (x, cols): (&[f32], usize),
        formats: impl Iterator<Item = IntFormat>,
    ) {
        let num_tokens = x.len() / cols;
        (self.num_tokens, self.cols, self.max_tile) = (num_tokens, cols, isa.tile());
        grow(&mut self.words, num_tokens * cols / 4);
        grow(&mut self.scales, num_tokens * cols / BLOCK);
        self.num_kinds = 0;
        for kind in formats.map(Correction::of) {
            if !self.kinds[..self.num_kinds].contains(&kind) {
                self.kinds[self.num_kinds] = kind;
                grow(&mut self.corrections[self.num_kinds], num_tokens * cols / kind.scale_len);
                self.num_kinds += 1;
            }
        }
        let to = &SharedRows {
            cols,
            words: Shared::new(&mut self.words),
            scales: Shared::new(&mut self.scales),
            kinds: &self.kinds[..self.num_kinds],
            corrections: self.corrections.each_mut().map(|values| Shared::new(values)),
        };
        let max_tile = self.max_tile;
        let per_task = (TASK_ELEMENTS / cols).max(1).next_multiple_of(max_tile);
        pool.run(num_tokens.div_ceil(per_task), &|_, task| {
            let (mut token, end) = (task * per_task, ((task + 1) * per_task).min(num_tokens));
            while token < end {
                let tile = tile_len(max_tile, end - token);
                let x = &x[token * cols..][..tile * cols];
                dispatch(isa, QuantizeTile { x, token, tile, to });
                token += tile;
            }
        });
    }

    /// Returns the length of the tile that starts with `token`.
    #[inline(always)]
    pub(super) fn tile_len(&self, token: usize) -> usize {
        tile_len(self.max_tile, self.num_tokens - token)
    }

    /// Returns where the corrections of `format` are.
    pub(super) fn correction_index(&self, format: IntFormat) -> usize {
        let wanted = Correction::of(format);
        self.kinds[..self.num_kinds].iter().position(|kind| *kind == wanted).unwrap_or(0)
    }

    /// Returns the tile of `T` tokens that starts with `token`.
    #[inline(always)]
    pub(super) fn tile<const T: usize>(
        &self,
        token: usize,
        correction_index: usize,
    ) -> QuantTile<'_, T> {
        #[inline(always)]
        fn part<E, const T: usize>(all: &[E], token: usize, per_token: usize) -> &[[E; T]] {
            all[token * per_token..(token + T) * per_token].as_chunks().0
        }
        let corrections = self.cols / self.kinds[correction_index].scale_len;
        QuantTile {
            words: part(&self.words, token, self.cols / 4),
            scales: part(&self.scales, token, self.cols / BLOCK),
            corrections: part(&self.corrections[correction_index], token, corrections),
        }
    }
}

/// Rows being quantized.
struct SharedRows<'a> {
    cols: usize,
    words: Shared<'a, i32>,
    scales: Shared<'a, f32>,
    kinds: &'a [Correction],
    corrections: [Shared<'a, i32>; MAX_KINDS],
}

impl SharedRows<'_> {
    /// Returns a tile's part of values that each token has so many of.
    ///
    /// # Safety
    /// No other task fills this tile.
    #[inline(always)]
    unsafe fn part<'a, T>(
        all: &Shared<'a, T>,
        token: usize,
        tile: usize,
        per_token: usize,
    ) -> &'a mut [T] {
        // SAFETY: the caller promises it.
        unsafe { all.part(token * per_token..(token + tile) * per_token) }
    }
}

/// Quantizes one tile.
struct QuantizeTile<'a> {
    x: &'a [f32],
    token: usize,
    tile: usize,
    /// No other task fills this tile.
    to: &'a SharedRows<'a>,
}

impl Kernel for QuantizeTile<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, token, tile, to } = self;
        // SAFETY: no other task fills this tile.
        let words = unsafe { SharedRows::part(&to.words, token, tile, to.cols / 4) };
        // SAFETY: as above.
        let scales = unsafe { SharedRows::part(&to.scales, token, tile, to.cols / BLOCK) };
        for (t, x) in x.chunks_exact(to.cols).enumerate() {
            for (i, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                let mut bytes = [0; BLOCK];
                let (scale, sums) = quantize_block(s, x, &mut bytes);
                scales[i * tile + t] = scale;
                let block_words: [i32; BLOCK / 4] = bytemuck::cast(bytes);
                for (j, word) in block_words.into_iter().enumerate() {
                    words[(i * (BLOCK / 4) + j) * tile + t] = word;
                }
                for (kind, values) in to.kinds.iter().zip(&to.corrections) {
                    let per_token = to.cols / kind.scale_len;
                    // SAFETY: as above.
                    let values = unsafe { SharedRows::part(values, token, tile, per_token) };
                    if kind.scale_len == BLOCK {
                        values[i * tile + t] = kind.value(scale, sums[0].wrapping_add(sums[1]));
                    } else {
                        values[2 * i * tile + t] = kind.value(scale, sums[0]);
                        values[(2 * i + 1) * tile + t] = kind.value(scale, sums[1]);
                    }
                }
            }
        }
    }
}

/// Returns the scale and the sum of each half, which wraps where an element is infinite: then the scale is, too.
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
