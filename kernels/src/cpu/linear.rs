//! `x · weightᵀ + bias`: cuts a product into tasks of panels and tokens.
//!
//! A panel's weights stay in the first cache while all tokens of a block pass; a block's tokens stay in the second. Next:
//! [`super::int_gemm`] and [`super::float_gemm`].

use std::ops::Range;

use super::float_gemm::float_panels;
use super::int_gemm::{Stored, int_panel};
use super::matrix::{Matrix, Panels, Segment};
use super::memory::Shared;
use super::pool::Pool;
use super::quantize::QuantRows;
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, padded};

/// Bytes of activations that a block of tokens may take: half of a small second-level cache.
const TOKEN_BLOCK_BYTES: usize = 256 << 10;
/// Tasks that a region is cut into for each thread, so that a thread that lost its core does not hold up the others.
const TASKS_PER_THREAD: usize = 4;

/// One product.
pub(super) struct Linear<'a> {
    pub(super) isa: Isa,
    pub(super) x: &'a [f32],
    pub(super) matrix: &'a Matrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: &'a mut [f32],
}

/// What tasks share.
struct Product<'a> {
    x: &'a [f32],
    quantized: &'a QuantRows,
    matrix: &'a Matrix,
    bias: Option<&'a [f32]>,
    out: Shared<'a, f32>,
}

impl Linear<'_> {
    /// Computes the product, with `quantized` as working memory.
    pub(super) fn run(self, pool: &mut Pool, quantized: &mut QuantRows) {
        let cols = self.matrix.cols;
        let num_tokens = self.x.len() / cols;
        if num_tokens == 0 {
            return;
        }
        let formats = self.matrix.segments.iter().filter_map(|segment| match &segment.panels {
            Panels::Int(int) => Some(int.format),
            _ => None,
        });
        if formats.clone().next().is_some() {
            quantized.fill(self.isa, pool, (self.x, cols), formats);
        }

        let block = (TOKEN_BLOCK_BYTES / cols / LANES * LANES).max(LANES);
        let num_blocks = num_tokens.div_ceil(block);
        let num_panels: usize =
            self.matrix.segments.iter().map(|segment| segment.rows.div_ceil(LANES)).sum();
        let wanted = (pool.num_threads() * TASKS_PER_THREAD).div_ceil(num_blocks);
        let chunk = num_panels.div_ceil(wanted).next_multiple_of(4);
        let num_chunks = num_panels.div_ceil(chunk);
        let product = Product {
            x: self.x,
            quantized,
            matrix: self.matrix,
            bias: self.bias,
            out: Shared::new(self.out),
        };
        let isa = self.isa;
        pool.run(num_blocks * num_chunks, &|_, task| {
            let (block_index, chunk_index) = (task / num_chunks, task % num_chunks);
            let tokens = block_index * block..((block_index + 1) * block).min(num_tokens);
            let panels = chunk_index * chunk..((chunk_index + 1) * chunk).min(num_panels);
            dispatch(isa, ProductTask { product: &product, tokens, panels });
        });
    }
}

/// Some tokens times some panels, numbered through all segments.
struct ProductTask<'a> {
    product: &'a Product<'a>,
    tokens: Range<usize>,
    panels: Range<usize>,
}

impl Kernel for ProductTask<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut first_panel = 0;
        for segment in &self.product.matrix.segments {
            let num_panels = segment.rows.div_ceil(LANES);
            let start = self.panels.start.max(first_panel);
            let end = self.panels.end.min(first_panel + num_panels);
            if start < end {
                let panels = start - first_panel..end - first_panel;
                let tokens = self.tokens.clone();
                match &segment.panels {
                    Panels::Int(_) => self.product.int(s, segment, panels, tokens),
                    Panels::F32(lines) => {
                        let weights = bytemuck::cast_slice::<_, [f32; LANES]>(lines);
                        self.product.float(s, segment, weights, panels, tokens);
                    }
                    Panels::F16(lines) => {
                        let weights = bytemuck::cast_slice::<_, [half::f16; LANES]>(lines);
                        self.product.float(s, segment, weights, panels, tokens);
                    }
                    Panels::BF16(lines) => {
                        let weights = bytemuck::cast_slice::<_, [half::bf16; LANES]>(lines);
                        self.product.float(s, segment, weights, panels, tokens);
                    }
                }
            }
            first_panel += num_panels;
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn int<S: Simd>(&self, s: S, segment: &Segment, panels: Range<usize>, tokens: Range<usize>) {
        for panel in panels {
            let mut token = tokens.start;
            while token < tokens.end {
                token += match self.quantized.tile_len(token) {
                    8 if S::TILE >= 8 => self.int_tile::<S, 8>(s, segment, panel, token),
                    4 => self.int_tile::<S, 4>(s, segment, panel, token),
                    2 => self.int_tile::<S, 2>(s, segment, panel, token),
                    _ => self.int_tile::<S, 1>(s, segment, panel, token),
                };
            }
        }
    }

    #[inline(always)]
    fn int_tile<S: Simd, const T: usize>(
        &self,
        s: S,
        segment: &Segment,
        panel: usize,
        token: usize,
    ) -> usize {
        let Panels::Int(weights) = &segment.panels else { return T };
        let correction = self.quantized.correction_index(weights.format);
        let x = self.quantized.tile(token, correction);
        let out = int_panel::<S, T>(s, weights, panel, x);
        self.store(s, segment, panel, token, out);
        T
    }

    #[inline(always)]
    fn float<S: Simd, E: Stored>(
        &self,
        s: S,
        segment: &Segment,
        weights: &[[E; LANES]],
        panels: Range<usize>,
        tokens: Range<usize>,
    ) {
        let mut panel = panels.start;
        // A lone token needs several panels at once to hide the latency of its chains.
        let step = if tokens.len() == 1 { 4 } else { 1 };
        while panel < panels.end {
            let mut token = tokens.start;
            let at = |token| Tile { segment, panel, token };
            if step == 4 && panels.end - panel >= 4 {
                self.float_tile::<S, E, 4, 1>(s, weights, at(token));
                panel += 4;
                continue;
            }
            while token < tokens.end {
                token += match tokens.end - token {
                    8.. if S::TILE >= 8 => self.float_tile::<S, E, 1, 8>(s, weights, at(token)),
                    4.. => self.float_tile::<S, E, 1, 4>(s, weights, at(token)),
                    _ => self.float_tile::<S, E, 1, 1>(s, weights, at(token)),
                };
            }
            panel += 1;
        }
    }

    #[inline(always)]
    fn float_tile<S: Simd, E: Stored, const P: usize, const T: usize>(
        &self,
        s: S,
        weights: &[[E; LANES]],
        tile: Tile<'_>,
    ) -> usize {
        let cols = self.matrix.cols;
        let x = std::array::from_fn(|t| &self.x[(tile.token + t) * cols..][..cols]);
        let out = float_panels::<S, E, P, T>(s, weights, tile.panel, x);
        for (p, out) in out.into_iter().enumerate() {
            self.store(s, tile.segment, tile.panel + p, tile.token, out);
        }
        T
    }

    /// Adds the bias and stores a panel's results of `T` tokens.
    #[inline(always)]
    fn store<S: Simd, const T: usize>(
        &self,
        s: S,
        segment: &Segment,
        panel: usize,
        token: usize,
        results: [S::F; T],
    ) {
        let rows = LANES.min(segment.rows - panel * LANES);
        let first = segment.first_row + panel * LANES;
        for (t, result) in results.into_iter().enumerate() {
            let result = match self.bias {
                Some(bias) => s.add(result, s.load(&padded(&bias[first..first + rows]))),
                None => result,
            };
            let at = (token + t) * self.matrix.rows + first;
            // SAFETY: a task has its own panels and tokens.
            let to = unsafe { self.out.part(at..at + rows) };
            if let Some(to) = to.first_chunk_mut() {
                s.store(to, result);
            } else {
                let mut values = [0.0; LANES];
                s.store(&mut values, result);
                to.copy_from_slice(&values[..rows]);
            }
        }
    }
}

/// Where a tile of a product is.
#[derive(Clone, Copy)]
struct Tile<'a> {
    segment: &'a Segment,
    panel: usize,
    token: usize,
}
