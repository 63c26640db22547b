//! Memory that is registered once, and lent out in pieces.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use stallfree_core::lock;

/// Pieces begin where a page does.
const ALIGN: usize = 4096;

/// Memory of which pieces are lent out; each to one owner.
pub(super) struct Arena {
    start: NonNull<u8>,
    layout: Layout,
    /// What is free: where it begins and how long it is, in order, with no two that touch.
    free: Mutex<Vec<(usize, usize)>>,
}

// SAFETY: the memory is only reached through pieces, each of which is its owner's alone.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Takes `bytes` of memory, which cost nothing until they are used.
    pub(super) fn new(bytes: usize) -> Result<Arc<Self>, String> {
        let layout = Layout::from_size_align(bytes.next_multiple_of(ALIGN).max(ALIGN), ALIGN)
            .map_err(|error| error.to_string())?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or_else(|| format!("there is no room for {bytes} bytes"))?;
        let free = Mutex::new(vec![(0, layout.size())]);
        Ok(Arc::new(Self { start, layout, free }))
    }

    /// Returns where it begins.
    pub(super) fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    pub(super) const fn len(&self) -> usize {
        self.layout.size()
    }

    /// Lends a piece; `None` if there is none as long.
    pub(super) fn lend(self: &Arc<Self>, len: usize) -> Option<Piece> {
        let size = len.max(1).checked_next_multiple_of(ALIGN)?;
        let mut free = lock(&self.free);
        let index = free.iter().position(|&(_, room)| room >= size)?;
        let (offset, room) = free[index];
        if room == size {
            free.remove(index);
        } else {
            free[index] = (offset + size, room - size);
        }
        Some(Piece { arena: Arc::clone(self), offset, size, len })
    }

    fn take_back(&self, offset: usize, size: usize) {
        let mut free = lock(&self.free);
        let index = free.partition_point(|&(start, _)| start < offset);
        free.insert(index, (offset, size));
        if index + 1 < free.len() && offset + size == free[index + 1].0 {
            free[index].1 += free.remove(index + 1).1;
        }
        if index > 0 && free[index - 1].0 + free[index - 1].1 == offset {
            free[index - 1].1 += free.remove(index).1;
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and no piece is left: each holds the arena.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("bytes", &self.len()).finish_non_exhaustive()
    }
}

/// A piece of an arena; it goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Piece {
    arena: Arc<Arena>,
    offset: usize,
    size: usize,
    len: usize,
}

impl Piece {
    pub(super) fn address(&self) -> usize {
        self.arena.address() + self.offset
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the piece lies within the arena, whose bytes were all set, and is lent to this owner alone.
        unsafe { std::slice::from_raw_parts(self.arena.start.as_ptr().add(self.offset), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.arena.start.as_ptr();
        // SAFETY: as above, and the owner is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(start.add(self.offset), self.len) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.arena.take_back(self.offset, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_come_back_whole() {
        let arena = Arena::new(16 * ALIGN).expect("memory");
        // A fixed walk through sizes and orders of return.
        let mut lent: Vec<Piece> = Vec::new();
        let mut state = 7_usize;
        for step in 0..2000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let len = (state >> 33) % (5 * ALIGN);
            match arena.lend(len) {
                Some(mut piece) if step % 3 > 0 => {
                    piece.bytes_mut().fill(step as u8);
                    assert_eq!(piece.len(), len);
                    lent.push(piece);
                }
                _ if !lent.is_empty() => drop(lent.swap_remove((state >> 20) % lent.len())),
                _ => {}
            }
            let mut spans: Vec<_> =
                lent.iter().map(|piece| (piece.offset, piece.offset + piece.size)).collect();
            spans.sort_unstable();
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
            assert!(lent.iter().all(|piece| piece.bytes().windows(2).all(|two| two[0] == two[1])));
        }
        assert!(arena.lend(17 * ALIGN).is_none());
        lent.clear();
        assert_eq!(*arena.free.lock().unwrap(), [(0, 16 * ALIGN)]);
    }
}
