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
    /// A matrix to write is given twice.
    pub(super) fn split<const R: usize, const W: usize>(
        &mut self,
        read: [Tensor; R],
        write: [Tensor; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        for (i, x) in write.iter().enumerate() {
            assert!(!read.contains(x) && !write[..i].contains(x), "an op's operands overlap");
        }
        let mut base = [const { std::ptr::null_mut::<f32>() }; 3];
        for (base, region) in base.iter_mut().zip(&mut self.regions) {
            *base = region.lines.as_mut_ptr().cast();
        }
        let start = |x: Tensor| {
            debug_assert!(
                x.first_line * LINE_FLOATS + x.rows * x.cols
                    <= self.regions[x.region].lines.len() * LINE_FLOATS
            );
            base[x.region].wrapping_add(x.first_line * LINE_FLOATS)
        };
        // SAFETY: a tensor lies within its region, and different tensors do not overlap.
        let read = read.map(|x| unsafe { std::slice::from_raw_parts(start(x), x.rows * x.cols) });
        let write = write
            // SAFETY: as above, and nothing else in `read` or `write` is this tensor.
            .map(|x| unsafe { std::slice::from_raw_parts_mut(start(x), x.rows * x.cols) });
        (read, write)
    }
}

/// A slice whose disjoint parts are written by the tasks of a region.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out disjoint parts only, as its users promise.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Returns a part.
    ///
    /// # Safety
    /// While it lives, nobody asks for a part that overlaps it.
    #[inline(always)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part out of bounds");
        // SAFETY: within bounds; the caller promises that the parts are disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
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
