//! Quantized rows times quantized weights.
//!
//! For each scale, sixteen rows' dot products with a token are exact integers; scaled, they are added in the order of the columns.
//! So a result does not depend on how many tokens are worked on at once, nor on the instructions used. The next file on the path
//! is [`super::linear`].

use bytemuck::Pod;
use half::f16;

use super::matrix::IntPanels;
use super::memory::Line;
use super::quantize::QuantTile;
use super::simd::{LANES, Simd};

/// How far ahead of a lone token codes are asked for: more than a core reads in the time that memory takes to answer. With the
/// processor's own prefetcher alone a decode was 10 to 20 % slower.
const PREFETCH_BYTES: usize = 4096;

/// A float as scales are stored.
pub(super) trait Stored: Pod {
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F;
}

impl Stored for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F {
        s.load(x)
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F {
        s.load_f16(bytemuck::cast_ref(x))
    }
}

impl Stored for half::bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self; LANES]) -> S::F {
        s.load_bf16(bytemuck::cast_ref(x))
    }
}

/// One panel's sixteen results for each of `T` tokens.
#[inline(always)]
pub(super) fn int_panel<S: Simd, const T: usize>(
    s: S,
    weights: &IntPanels,
    panel: usize,
    x: QuantTile<'_, T>,
) -> [S::F; T] {
    let f = weights.format;
    let num_scales = x.corrections.len();
    let codes = &weights.codes[panel * num_scales * f.lines()..][..num_scales * f.lines()];
    match (f.bits, f.scale_len, f.has_min, f.half_scales) {
        (4, 32, false, true) => run::<S, f16, 4, 2, false, T>(s, codes, weights, panel, x),
        (4, 32, true, true) => run::<S, f16, 4, 2, true, T>(s, codes, weights, panel, x),
        (4, 32, true, false) => run::<S, f32, 4, 2, true, T>(s, codes, weights, panel, x),
        (4, 16, true, false) => run::<S, f32, 4, 1, true, T>(s, codes, weights, panel, x),
        (4, 16, false, false) => run::<S, f32, 4, 1, false, T>(s, codes, weights, panel, x),
        (7, 32, false, true) => run::<S, f16, 7, 2, false, T>(s, codes, weights, panel, x),
        (7, 32, true, true) => run::<S, f16, 7, 2, true, T>(s, codes, weights, panel, x),
        (7, 32, true, false) => run::<S, f32, 7, 2, true, T>(s, codes, weights, panel, x),
        (7, 16, false, false) => run::<S, f32, 7, 1, false, T>(s, codes, weights, panel, x),
        (8, 32, false, true) => run::<S, f16, 8, 2, false, T>(s, codes, weights, panel, x),
        (8, 32, false, false) => run::<S, f32, 8, 2, false, T>(s, codes, weights, panel, x),
        _ => unreachable!("`IntFormat::of` has no other format"),
    }
}

/// As [`int_panel`], for scales of type `E`, codes of `BITS` bits, `HALVES` sixteens of columns a scale, with minimums if `MIN`.
#[inline(always)]
fn run<
    S: Simd,
    E: Stored,
    const BITS: usize,
    const HALVES: usize,
    const MIN: bool,
    const T: usize,
>(
    s: S,
    codes: &[Line],
    weights: &IntPanels,
    panel: usize,
    x: QuantTile<'_, T>,
) -> [S::F; T] {
    let groups = 4 * HALVES;
    let lines_per_scale = if BITS == 4 { groups / 2 } else { groups };
    let floats = if MIN { 2 } else { 1 };
    let num_scales = x.corrections.len();
    let scales: &[[E; LANES]] = bytemuck::cast_slice(&weights.scales);
    let scales = &scales[panel * num_scales * floats..][..num_scales * floats];
    let mut out = [s.splat(0.0); T];
    for (i, (lines, scales)) in
        codes.chunks_exact(lines_per_scale).zip(scales.chunks_exact(floats)).enumerate()
    {
        let words = &x.words[i * groups..][..groups];
        let mut sums = [s.splat_int(0); T];
        if !MIN {
            for (sum, correction) in sums.iter_mut().zip(x.corrections[i]) {
                *sum = s.splat_int(correction);
            }
        }
        for (j, line) in lines.iter().enumerate() {
            if T == 1 {
                s.prefetch(line.0.as_ptr().wrapping_add(PREFETCH_BYTES));
            }
            let bytes = s.load_bytes(&line.0);
            if BITS == 4 {
                let (low, high) = (s.low_nibbles(bytes), s.high_nibbles(bytes));
                for t in 0..T {
                    sums[t] = s.dot_small(sums[t], low, words[j][t]);
                    sums[t] = s.dot_small(sums[t], high, words[j + lines_per_scale][t]);
                }
            } else {
                for t in 0..T {
                    sums[t] = if BITS == 8 {
                        s.dot(sums[t], bytes, words[j][t])
                    } else {
                        s.dot_small(sums[t], bytes, words[j][t])
                    };
                }
            }
        }
        let scale = E::load(s, &scales[0]);
        for t in 0..T {
            let product = s.mul(scale, s.splat(x.scales[i * HALVES / 2][t]));
            out[t] = s.fma(s.to_float(sums[t]), product, out[t]);
        }
        if MIN {
            let min = E::load(s, &scales[floats - 1]);
            for (out, sum) in out.iter_mut().zip(x.corrections[i]) {
                *out = s.fma(min, s.splat(f32::from_bits(sum.cast_unsigned())), *out);
            }
        }
    }
    out
}
