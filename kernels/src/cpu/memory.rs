//! Memory that kernels work in: cache lines, the arena of activations, and slices shared by the tasks of a region.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// A cache line, the unit in which weights and activations are laid out.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// Floats in a line.
const LINE_FLOATS: usize = 16;

/// A handle to a matrix of the step's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    region: usize,
    first_line: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Tensor {
    /// Returns which lines of its region it takes.
    const fn lines(self) -> Range<usize> {
        let len = self.rows.saturating_mul(self.cols).div_ceil(LINE_FLOATS);
        self.first_line..self.first_line.saturating_add(len)
    }

    fn overlaps(self, other: Self) -> bool {
        let (a, b) = (self.lines(), other.lines());
        self.region == other.region && a.start.max(b.start) < a.end.min(b.end)
    }
}

/// Activations, bump-allocated; kept from step to step, so that a warm step allocates nothing.
///
/// Region 0 holds what was made before the first layer, regions 1 and 2 take turns by layer: a layer reads what the one before
/// it made, and nothing older.
#[derive(Debug, Default)]
pub(super) struct Arena {
    regions: [Region; 3],
    current: usize,
}

#[derive(Debug, Default)]
struct Region {
    lines: Vec<Line>,
    used: usize,
}

impl Arena {
    pub(super) fn num_bytes(&self) -> usize {
        self.regions.iter().map(|region| region.lines.len() * size_of::<Line>()).sum()
    }

    /// Forgets all tensors.
    pub(super) fn clear(&mut self) {
        self.regions.iter_mut().for_each(|region| region.used = 0);
        self.current = 0;
    }

    /// Forgets the tensors of the layer before the last.
    pub(super) fn begin_layer(&mut self) {
        self.current = if self.current == 1 { 2 } else { 1 };
        self.regions[self.current].used = 0;
    }

    /// Takes a matrix; its values are whatever was there.
    pub(super) fn take(&mut self, rows: usize, cols: usize) -> Tensor {
        let region = &mut self.regions[self.current];
        let first_line = region.used;
        region.used += (rows * cols).div_ceil(LINE_FLOATS);
        if region.used > region.lines.len() {
            // Doubling, so that steps of growing size do not copy each time.
            let len = region.used.max(2 * region.lines.len());
            region.lines.resize(len, Line::zeroed());
        }
        Tensor { region: self.current, first_line, rows, cols }
    }

    pub(super) fn get(&self, x: Tensor) -> &[f32] {
        let lines = &self.regions[x.region].lines[x.first_line..];
        &bytemuck::cast_slice(lines)[..x.rows * x.cols]
    }

    pub(super) fn get_mut(&mut self, x: Tensor) -> &mut [f32] {
        let lines = &mut self.regions[x.region].lines[x.first_line..];
        &mut bytemuck::cast_slice_mut(lines)[..x.rows * x.cols]
    }

    /// Returns some matrices to read and some to write.
    ///
    /// # Panics
    /// A matrix to write overlaps another one, or one is not of this arena.
    pub(super) fn split<const R: usize, const W: usize>(
        &mut self,
        read: [Tensor; R],
        write: [Tensor; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        for (i, x) in write.iter().enumerate() {
            let mut others = read.iter().chain(&write[..i]);
            assert!(!others.any(|other| x.overlaps(*other)), "an op's operands overlap");
        }
        let mut base = [const { std::ptr::null_mut::<f32>() }; 3];
        for (base, region) in base.iter_mut().zip(&mut self.regions) {
            *base = region.lines.as_mut_ptr().cast();
        }
        let start = |x: Tensor| {
            let num_lines = self.regions[x.region].lines.len();
            assert!(x.lines().end <= num_lines, "an op's operand is not of this step");
            base[x.region].wrapping_add(x.first_line * LINE_FLOATS)
        };
        // SAFETY: within its region, and nothing in `write` overlaps it.
        let read = read.map(|x| unsafe { std::slice::from_raw_parts(start(x), x.rows * x.cols) });
        let write = write
            // SAFETY: within its region, and nothing else in `read` or `write` overlaps it.
            .map(|x| unsafe { std::slice::from_raw_parts_mut(start(x), x.rows * x.cols) });
        (read, write)
    }
}

/// A slice that the tasks of a region share: they write disjoint parts of it, or all of them only read it.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: what it hands out to be written is nobody else's, as its users promise.
unsafe impl<T: Send + Sync> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Returns a part to write.
    ///
    /// # Safety
    /// While it lives, nobody asks for a part that overlaps it, nor reads or writes there in another way.
    #[inline(always)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part out of bounds");
        // SAFETY: within bounds; the caller promises that the parts are disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Returns a part to read, which others may read as well.
    ///
    /// # Safety
    /// While it lives, nobody writes to it or asks for a part to write that overlaps it.
    #[inline(always)]
    pub(super) unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part out of bounds");
        // SAFETY: within bounds; the caller promises that nobody writes there.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Writes an element.
    ///
    /// # Safety
    /// Nobody else reads or writes it in this region.
    #[inline(always)]
    pub(super) unsafe fn write(&self, i: usize, value: T) {
        assert!(i < self.len, "element out of bounds");
        // SAFETY: within bounds; the caller promises that nobody else is there.
        unsafe { self.start.add(i).write(value) };
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::{Arena, Tensor};

    #[test]
    fn operands_that_overlap_or_lie_elsewhere_are_refused() {
        let mut arena = Arena::default();
        let first = arena.take(2, 24);
        let second = arena.take(1, 5);
        let mut check = |read: Tensor, write: Tensor, works: bool| {
            let split = AssertUnwindSafe(|| arena.split([read], [write]).1.len());
            assert_eq!(catch_unwind(split).is_ok(), works, "{read:?} {write:?}");
        };
        check(first, second, true);
        check(second, first, true);
        check(first, first, false);
        // What a step before took, cut in another way.
        check(first, Tensor { rows: 1, ..first }, false);
        check(Tensor { first_line: 2, ..second }, first, false);
        // What another arena or a larger step took.
        check(first, Tensor { first_line: 1 << 20, ..second }, false);
        check(Tensor { rows: usize::MAX, ..second }, first, false);
        check(Tensor { region: 1, ..first }, second, false);
    }
}
