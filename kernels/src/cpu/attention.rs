//! Attention of a ragged batch over the paged KV cache.
//!
//! A task is a few consecutive queries of one sequence with all heads that share a KV head. It passes over the positions in tiles
//! that start at fixed positions of the sequence, so that a query's sums are formed in the same order however its prompt was cut
//! into chunks and whichever other queries are in its task: what a query does not see counts as exactly nothing.
//!
//! The last file of the main path, after the models' `layers/attention.rs`.
//!
//! # Source
//! PagedAttention, Kwon et al. 2023, §4.1; online softmax, FlashAttention, Dao et al. 2022, algorithm 1.

use std::ops::Range;

use super::int_gemm::Stored;
use super::kv_cache::{KvElements, KvLayout};
use super::memory::Shared;
use super::pool::Pool;
use super::rope::KvElement;
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, exp};
use crate::{AttentionSpec, RaggedSeq, StepInputs};

/// Groups of sixteen positions in a tile.
const TILE_GROUPS: usize = 4;
/// Positions in a tile of full groups.
const TILE: usize = TILE_GROUPS * LANES;
/// Queries times heads that a task has at most, if one query's heads are not more.
const TASK_ROWS: usize = 24;
/// Below any score, yet finite, so that a difference of two is no NaN.
const LOWEST: f32 = -1e30;

/// One layer's attention.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    pub(super) layer: usize,
    pub(super) query: &'a [f32],
    pub(super) spec: &'a AttentionSpec,
    pub(super) inputs: &'a StepInputs,
    pub(super) layout: KvLayout,
}

/// What is kept from step to step.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    tasks: Vec<Task>,
    /// Working memory of each thread.
    rows: Vec<f32>,
}

#[derive(Clone, Debug)]
struct Task {
    seq: usize,
    kv_head: usize,
    tokens: Range<usize>,
}

impl Attention<'_> {
    pub(super) fn run(
        self,
        isa: Isa,
        pool: &mut Pool,
        cache: KvElements<'_>,
        scratch: &mut AttentionScratch,
        out: &mut [f32],
    ) {
        let group = self.spec.num_heads / self.spec.num_kv_heads;
        let task_tokens = (TASK_ROWS / group).max(1);
        let AttentionScratch { tasks, rows } = scratch;
        tasks.clear();
        let mut work = 0;
        for (seq, RaggedSeq { rows, context_len, .. }) in self.inputs.seqs.iter().enumerate() {
            work += rows.len() * context_len * self.spec.num_heads * self.spec.head_dim;
            // The last queries see the most: they come first, so that no thread is left with a long task at the end.
            let mut end = rows.end;
            while end > rows.start {
                let start = end.saturating_sub(task_tokens).max(rows.start);
                let kv_heads = 0..self.spec.num_kv_heads;
                tasks.extend(kv_heads.map(|kv_head| Task { seq, kv_head, tokens: start..end }));
                end = start;
            }
        }
        let row_len = self.spec.head_dim + self.layout.value_stride + TILE + 2;
        let thread_len = group * task_tokens * row_len;
        if rows.len() < thread_len * pool.num_threads() {
            rows.resize(thread_len * pool.num_threads(), 0.0);
        }
        let (tasks, rows, out) = (&*tasks, Shared::new(rows), Shared::new(out));
        let run = |thread: usize, task: usize| {
            // SAFETY: each thread has its own part.
            let rows = unsafe { rows.part(thread * thread_len..(thread + 1) * thread_len) };
            let (attention, task) = (&self, &tasks[task]);
            match cache {
                KvElements::F16(cache) => {
                    dispatch(isa, AttentionTask { attention, task, cache, rows, out });
                }
                KvElements::F32(cache) => {
                    dispatch(isa, AttentionTask { attention, task, cache, rows, out });
                }
            }
        };
        // A short context is done before another thread has heard of it.
        if work < 32 << 10 {
            (0..tasks.len()).for_each(|task| run(0, task));
        } else {
            pool.run(tasks.len(), &run);
        }
    }
}

struct AttentionTask<'a, E> {
    attention: &'a Attention<'a>,
    task: &'a Task,
    cache: Shared<'a, E>,
    rows: &'a mut [f32],
    out: Shared<'a, f32>,
}

/// A task's rows: one for each query and head, queries first.
struct Rows<'a> {
    /// Scaled queries, `[rows, head_dim]`.
    queries: &'a mut [f32],
    /// Weighted sums of values, `[rows, value_stride]`.
    sums: &'a mut [f32],
    /// The tile's scores and then weights, `[rows, TILE]`.
    weights: &'a mut [f32],
    /// The largest score so far.
    largest: &'a mut [f32],
    /// The sum of weights so far.
    totals: &'a mut [f32],
}

impl<'a> Rows<'a> {
    fn new(scratch: &'a mut [f32], len: usize, head_dim: usize, value_stride: usize) -> Self {
        let (queries, rest) = scratch.split_at_mut(len * head_dim);
        let (sums, rest) = rest.split_at_mut(len * value_stride);
        let (weights, rest) = rest.split_at_mut(len * TILE);
        let (largest, rest) = rest.split_at_mut(len);
        let totals = &mut rest[..len];
        sums.fill(0.0);
        largest.fill(LOWEST);
        totals.fill(0.0);
        Self { queries, sums, weights, largest, totals }
    }
}

/// One group of positions: where its keys and values are, and how many it has.
#[derive(Clone, Copy, Default)]
struct Group {
    keys: usize,
    values: usize,
    first_position: usize,
    /// Positions that the task's last query sees.
    len: usize,
}

impl<E: KvElement + Stored> Kernel for AttentionTask<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Attention { spec, layout, inputs, query, .. } = self.attention;
        let heads = spec.num_heads / spec.num_kv_heads;
        let (dim, stride) = (spec.head_dim, layout.value_stride);
        let num_rows = self.task.tokens.len() * heads;
        let query_cols = spec.num_heads * dim;
        let at = |row: usize| {
            let head = self.task.kv_head * heads + row % heads;
            (self.task.tokens.start + row / heads) * query_cols + head * dim
        };
        let mut rows = Rows::new(std::mem::take(&mut self.rows), num_rows, dim, stride);
        for (row, to) in rows.queries.chunks_exact_mut(dim).enumerate() {
            for (to, from) in to.iter_mut().zip(&query[at(row)..][..dim]) {
                *to = from * spec.scale;
            }
        }

        // The row of the first query sees the earliest position, that of the last the latest.
        let seen = |token: usize| seen(spec, inputs.positions[token] as usize);
        let end = seen(self.task.tokens.end - 1).end;
        let group_of = |position: usize| {
            position / layout.block_size * layout.groups_per_block
                + position % layout.block_size / LANES
        };
        let first_tile = group_of(seen(self.task.tokens.start).start) / TILE_GROUPS;
        for tile in first_tile..=group_of(end - 1) / TILE_GROUPS {
            let mut groups = [Group::default(); TILE_GROUPS];
            for (i, group) in groups.iter_mut().enumerate() {
                *group = self.group(tile * TILE_GROUPS + i, end);
            }
            self.score(s, &mut rows, &groups);
            for row in 0..num_rows {
                let seen = seen(self.task.tokens.start + row / heads);
                weigh(s, &mut rows, row, stride, &groups, &seen);
            }
            self.add_values(s, &mut rows, &groups);
        }
        for row in 0..num_rows {
            // SAFETY: each query and head is in one task.
            let out = unsafe { self.out.part(at(row)..at(row) + dim) };
            for (to, sum) in out.iter_mut().zip(&rows.sums[row * stride..][..dim]) {
                *to = sum / rows.totals[row];
            }
        }
    }
}

/// Returns the positions that a query at `position` sees.
fn seen(spec: &AttentionSpec, position: usize) -> Range<usize> {
    let end = position + 1;
    end.saturating_sub(spec.sliding_window.unwrap_or(end))..end
}

impl<E: KvElement + Stored> AttentionTask<'_, E> {
    /// Returns a group of the sequence, of the positions below `end`.
    #[inline(always)]
    fn group(&self, group: usize, end: usize) -> Group {
        let Attention { layer, layout, inputs, .. } = self.attention;
        let (index, part) = (group / layout.groups_per_block, group % layout.groups_per_block);
        let offset = part * LANES;
        let first_position = index * layout.block_size + offset;
        if first_position >= end {
            return Group { first_position, ..Group::default() };
        }
        let blocks = &inputs.block_ids[inputs.seqs[self.task.seq].blocks.clone()];
        let block = blocks[index] as usize;
        Group {
            keys: layout.keys(*layer, block, self.task.kv_head, part),
            values: layout.values(*layer, block, self.task.kv_head, offset),
            first_position,
            len: LANES.min(layout.block_size - offset).min(end - first_position),
        }
    }

    /// Scores each row with each position.
    #[inline(always)]
    fn score<S: Simd>(&self, s: S, rows: &mut Rows<'_>, groups: &[Group; TILE_GROUPS]) {
        let num_rows = rows.totals.len();
        for (i, group) in groups.iter().enumerate().filter(|(_, group)| group.len > 0) {
            let mut row = 0;
            while row < num_rows {
                row += match num_rows - row {
                    8.. if S::TILE >= 8 => self.score_tile::<S, 8>(s, rows, row, i, group),
                    4.. => self.score_tile::<S, 4>(s, rows, row, i, group),
                    3 => self.score_tile::<S, 3>(s, rows, row, i, group),
                    2 => self.score_tile::<S, 2>(s, rows, row, i, group),
                    _ => self.score_tile::<S, 1>(s, rows, row, i, group),
                };
            }
        }
    }

    #[inline(always)]
    fn score_tile<S: Simd, const T: usize>(
        &self,
        s: S,
        rows: &mut Rows<'_>,
        first: usize,
        i: usize,
        group: &Group,
    ) -> usize {
        let dim = self.attention.spec.head_dim;
        // SAFETY: during attention nobody writes the cache.
        let keys = unsafe { self.cache.read(group.keys..group.keys + LANES * dim) };
        let mut queries = [&rows.queries[..dim]; T];
        for (t, query) in queries.iter_mut().enumerate() {
            *query = &rows.queries[(first + t) * dim..][..dim];
        }
        let mut scores = [s.splat(0.0); T];
        for (d, keys) in keys.as_chunks::<LANES>().0.iter().enumerate() {
            let key = E::load(s, keys);
            for t in 0..T {
                scores[t] = s.fma(key, s.splat(queries[t][d]), scores[t]);
            }
        }
        for (t, score) in scores.into_iter().enumerate() {
            let to = &mut rows.weights[(first + t) * TILE..][..TILE];
            s.store(&mut to.as_chunks_mut::<LANES>().0[i], score);
        }
        T
    }

    /// Adds each row's weighted values.
    #[inline(always)]
    fn add_values<S: Simd>(&self, s: S, rows: &mut Rows<'_>, groups: &[Group; TILE_GROUPS]) {
        let num_rows = rows.totals.len();
        for lanes in 0..self.attention.layout.value_stride / LANES {
            let mut row = 0;
            while row < num_rows {
                row += match num_rows - row {
                    8.. if S::TILE >= 8 => self.value_tile::<S, 8>(s, rows, row, lanes, groups),
                    4.. => self.value_tile::<S, 4>(s, rows, row, lanes, groups),
                    3 => self.value_tile::<S, 3>(s, rows, row, lanes, groups),
                    2 => self.value_tile::<S, 2>(s, rows, row, lanes, groups),
                    _ => self.value_tile::<S, 1>(s, rows, row, lanes, groups),
                };
            }
        }
    }

    #[inline(always)]
    fn value_tile<S: Simd, const T: usize>(
        &self,
        s: S,
        rows: &mut Rows<'_>,
        first: usize,
        lanes: usize,
        groups: &[Group; TILE_GROUPS],
    ) -> usize {
        let stride = self.attention.layout.value_stride;
        let (vectors, per_row) = (rows.sums.as_chunks_mut::<LANES>().0, stride / LANES);
        let mut sums = [s.splat(0.0); T];
        for t in 0..T {
            sums[t] = s.load(&vectors[(first + t) * per_row + lanes]);
        }
        for (i, group) in groups.iter().enumerate().filter(|(_, group)| group.len > 0) {
            let mut weights = [&rows.weights[..LANES]; T];
            for (t, weights) in weights.iter_mut().enumerate() {
                *weights = &rows.weights[(first + t) * TILE + i * LANES..][..LANES];
            }
            // SAFETY: during attention nobody writes the cache.
            let values =
                unsafe { self.cache.read(group.values..group.values + group.len * stride) };
            let column = values.as_chunks::<LANES>().0.iter().skip(lanes).step_by(per_row);
            for (j, value) in column.enumerate() {
                let value = E::load(s, value);
                for t in 0..T {
                    sums[t] = s.fma(value, s.splat(weights[t][j]), sums[t]);
                }
            }
        }
        for t in 0..T {
            s.store(&mut vectors[(first + t) * per_row + lanes], sums[t]);
        }
        T
    }
}

/// Turns a row's scores into weights, and rescales what was summed so far to the new largest score.
#[inline(always)]
fn weigh<S: Simd>(
    s: S,
    rows: &mut Rows<'_>,
    row: usize,
    stride: usize,
    groups: &[Group; TILE_GROUPS],
    seen: &Range<usize>,
) {
    let scores = &mut rows.weights[row * TILE..][..TILE];
    for (scores, group) in scores.chunks_exact_mut(LANES).zip(groups) {
        let start = seen.start.saturating_sub(group.first_position).min(LANES);
        let end = seen.end.saturating_sub(group.first_position).min(group.len);
        if end < LANES {
            scores[end..].fill(f32::NEG_INFINITY);
        }
        scores[..start].fill(f32::NEG_INFINITY);
    }
    let scores = scores.as_chunks_mut::<LANES>().0;
    let mut largest = s.load(&scores[0]);
    for scores in &scores[1..] {
        largest = s.max(largest, s.load(scores));
    }
    let before = rows.largest[row];
    let largest = s.largest(largest).max(before);
    let mut total = s.splat(0.0);
    for scores in scores {
        let weights = exp(s, s.sub(s.load(scores), s.splat(largest)));
        total = s.add(total, weights);
        s.store(scores, weights);
    }
    let total = s.sum(total);
    if largest > before {
        let mut scale = [0.0; LANES];
        s.store(&mut scale, exp(s, s.splat(before - largest)));
        let scale = scale[0];
        rows.largest[row] = largest;
        rows.totals[row] *= scale;
        let sums = &mut rows.sums[row * stride..][..stride];
        for sums in sums.as_chunks_mut::<LANES>().0 {
            let scaled = s.mul(s.load(sums), s.splat(scale));
            s.store(sums, scaled);
        }
    }
    rows.totals[row] += total;
}
