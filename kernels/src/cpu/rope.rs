//! Rotates queries and keys and writes keys and values into the cache.
//!
//! # Source
//! RoFormer, Su et al. 2021, §3.2.2, with the pairs (i, i + head_dim / 2) of GPT-NeoX.

use half::f16;

use super::kv_cache::{KvElements, KvLayout};
use super::memory::Shared;
use super::pool::Pool;
use super::rows::{for_each_row, rms_norm};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, padded};
use crate::AttentionSpec;

/// Loaded rotary frequencies.
#[derive(Debug)]
pub struct Rope {
    pub(super) id: usize,
    pub(super) inv_freq: Vec<f32>,
}

/// The angles of one step's positions, computed once for all layers.
#[derive(Debug, Default)]
pub(super) struct Angles {
    rope: Option<usize>,
    half: usize,
    /// For each row, the cosines and then the sines of its angles.
    values: Vec<f32>,
}

impl Angles {
    pub(super) fn clear(&mut self) {
        self.rope = None;
    }

    /// Computes the angles of `positions` unless they are there.
    pub(super) fn prepare(&mut self, rope: &Rope, positions: &[u32], pool: &mut Pool) {
        if self.rope == Some(rope.id) {
            return;
        }
        self.rope = Some(rope.id);
        self.half = rope.inv_freq.len();
        let half = self.half;
        self.values.resize(positions.len() * 2 * half, 0.0);
        let values = Shared::new(&mut self.values);
        // A sine and cosine cost about what 64 other operations do.
        for_each_row(pool, positions.len(), 64 * half, &|row| {
            // SAFETY: each row is visited once.
            let to = unsafe { values.part(row * 2 * half..(row + 1) * 2 * half) };
            let (cos, sin) = to.split_at_mut(half);
            for ((freq, cos), sin) in rope.inv_freq.iter().zip(cos).zip(sin) {
                (*sin, *cos) = (positions[row] as f32 * freq).sin_cos();
            }
        });
    }

    fn row(&self, row: usize) -> (&[f32], &[f32]) {
        self.values[row * 2 * self.half..][..2 * self.half].split_at(self.half)
    }
}

/// The rotation of one layer's queries and keys.
#[derive(Clone, Copy)]
pub(super) struct RopeWrite<'a> {
    pub(super) layer: usize,
    pub(super) qkv: &'a [f32],
    pub(super) slot_mapping: &'a [u32],
    pub(super) spec: &'a AttentionSpec,
    pub(super) angles: &'a Angles,
    /// The norms' weights of queries and keys, and their epsilon.
    pub(super) norms: Option<(&'a [f32], &'a [f32], f32)>,
    pub(super) layout: KvLayout,
}

impl RopeWrite<'_> {
    pub(super) fn run(self, isa: Isa, pool: &mut Pool, cache: KvElements<'_>, queries: &mut [f32]) {
        let cols = (self.spec.num_heads + 2 * self.spec.num_kv_heads) * self.spec.head_dim;
        let query_cols = self.spec.num_heads * self.spec.head_dim;
        let queries = Shared::new(queries);
        for_each_row(pool, self.slot_mapping.len(), cols, &|row| {
            // SAFETY: each row is visited once.
            let queries = unsafe { queries.part(row * query_cols..(row + 1) * query_cols) };
            let qkv = &self.qkv[row * cols..(row + 1) * cols];
            match cache {
                KvElements::F16(cache) => {
                    dispatch(isa, RopeRow { op: &self, row, qkv, queries, cache });
                }
                KvElements::F32(cache) => {
                    dispatch(isa, RopeRow { op: &self, row, qkv, queries, cache });
                }
            }
        });
    }
}

/// An element of the KV cache.
pub(super) trait KvElement: Copy + Send + Default + 'static {
    fn from_lanes<S: Simd>(s: S, x: S::F) -> [Self; LANES];
}

impl KvElement for f32 {
    #[inline(always)]
    fn from_lanes<S: Simd>(s: S, x: S::F) -> [Self; LANES] {
        let mut lanes = [0.0; LANES];
        s.store(&mut lanes, x);
        lanes
    }
}

impl KvElement for f16 {
    #[inline(always)]
    fn from_lanes<S: Simd>(s: S, x: S::F) -> [Self; LANES] {
        bytemuck::cast(s.to_f16(x))
    }
}

struct RopeRow<'a, E> {
    op: &'a RopeWrite<'a>,
    row: usize,
    qkv: &'a [f32],
    queries: &'a mut [f32],
    cache: Shared<'a, E>,
}

impl<E: KvElement> Kernel for RopeRow<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let op = self.op;
        let dim = op.spec.head_dim;
        let (queries, rest) = self.qkv.split_at(op.spec.num_heads * dim);
        let (keys, values) = rest.split_at(op.spec.num_kv_heads * dim);
        let angles = op.angles.row(self.row);
        for (from, to) in queries.chunks_exact(dim).zip(self.queries.chunks_exact_mut(dim)) {
            let norm = op.norms.map(|(query, _, eps)| (query, eps));
            rotate(s, from, norm, angles, to);
        }
        let slot = op.slot_mapping[self.row] as usize;
        let (block, offset) = (slot / op.layout.block_size, slot % op.layout.block_size);
        let mut rotated = [0.0; MAX_HEAD_DIM];
        let rotated = &mut rotated[..dim];
        for (head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate()
        {
            rotate(s, key, op.norms.map(|(_, key, eps)| (key, eps)), angles, rotated);
            let group = op.layout.keys(op.layer, block, head, offset / LANES);
            for (i, chunk) in rotated.chunks(LANES).enumerate() {
                let elements = E::from_lanes(s, s.load(&padded(chunk)));
                for (j, element) in elements.iter().take(chunk.len()).enumerate() {
                    let at = group + (LANES * i + j) * LANES + offset % LANES;
                    // SAFETY: a step's rows have different slots.
                    unsafe { self.cache.write(at, *element) };
                }
            }
            let start = op.layout.values(op.layer, block, head, offset);
            for (i, chunk) in value.chunks(LANES).enumerate() {
                let elements = E::from_lanes(s, s.load(&padded(chunk)));
                let at = start + LANES * i;
                // SAFETY: a step's rows have different slots.
                unsafe { self.cache.part(at..at + LANES) }.copy_from_slice(&elements);
            }
        }
    }
}

/// The longest head that models have, with room to spare.
pub(super) const MAX_HEAD_DIM: usize = 512;

/// Normalises a head if asked, and turns its pairs.
#[inline(always)]
fn rotate<S: Simd>(
    s: S,
    from: &[f32],
    norm: Option<(&[f32], f32)>,
    (cos, sin): (&[f32], &[f32]),
    to: &mut [f32],
) {
    match norm {
        Some((weight, eps)) => rms_norm(s, from, weight, eps, to),
        None => to.copy_from_slice(from),
    }
    let (first, second) = to.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
