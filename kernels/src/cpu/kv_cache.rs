//! The paged KV cache.
//!
//! Layer by layer and block by block, so that a block of a layer is one piece of memory; in it, for each head, first the keys and
//! then the values:
//! - keys: for each sixteen positions of the block, `[head_dim, 16]`, so that a lane scores one position;
//! - values: `[block_size, head_dim]`, rows padded to a multiple of sixteen, so that a lane sums one element.
//!
//! Elements are half-precision or single-precision floats. Which block belongs to whom is not known here.

use std::ops::Range;

use half::f16;

use super::memory::Shared;
use super::simd::LANES;
use crate::{KernelError, KvSpec};

/// The element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: half the memory, and half the bytes that a decode reads.
    #[default]
    F16,
    /// Single precision: for comparing with an oracle.
    F32,
}

impl KvType {
    const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The cache's memory.
#[derive(Debug)]
pub(super) struct KvCache {
    pub(super) layout: KvLayout,
    kv_type: KvType,
    memory: Vec<u32>,
    /// Words before the first that lies on a cache line.
    skip: usize,
}

/// Where things are, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvLayout {
    num_layers: usize,
    num_blocks: usize,
    num_kv_heads: usize,
    pub(super) block_size: usize,
    pub(super) head_dim: usize,
    /// `head_dim`, padded.
    pub(super) value_stride: usize,
    /// Sixteens of positions in a block, the last of them maybe not full.
    pub(super) groups_per_block: usize,
}

impl KvLayout {
    fn new(spec: &KvSpec) -> Self {
        Self {
            num_layers: spec.num_layers,
            num_blocks: spec.num_blocks,
            num_kv_heads: spec.num_kv_heads,
            block_size: spec.block_size,
            head_dim: spec.head_dim,
            value_stride: spec.head_dim.next_multiple_of(LANES),
            groups_per_block: spec.block_size.div_ceil(LANES),
        }
    }

    const fn key_len(&self) -> usize {
        self.groups_per_block * LANES * self.head_dim
    }

    const fn head_len(&self) -> usize {
        self.key_len() + self.block_size * self.value_stride
    }

    /// Elements of a block of a layer.
    const fn block_len(&self) -> usize {
        self.num_kv_heads * self.head_len()
    }

    fn head_start(&self, layer: usize, block: usize, head: usize) -> usize {
        (layer * self.num_blocks + block) * self.block_len() + head * self.head_len()
    }

    /// Returns where a group's keys start.
    pub(super) fn keys(&self, layer: usize, block: usize, head: usize, group: usize) -> usize {
        self.head_start(layer, block, head) + group * LANES * self.head_dim
    }

    /// Returns where the values of a position of the block start.
    pub(super) fn values(&self, layer: usize, block: usize, head: usize, offset: usize) -> usize {
        self.head_start(layer, block, head) + self.key_len() + offset * self.value_stride
    }
}

/// The whole cache, its elements shared by the tasks of a region.
#[derive(Clone, Copy)]
pub(super) enum KvElements<'a> {
    F16(Shared<'a, f16>),
    F32(Shared<'a, f32>),
}

impl KvCache {
    pub(super) fn new(spec: &KvSpec, kv_type: KvType) -> Result<Self, KernelError> {
        let layout = KvLayout::new(spec);
        let element_bytes = kv_type.bytes();
        let num_bytes = layout.block_len() * spec.num_blocks * spec.num_layers * element_bytes;
        // Zeroed by the system page by page when first touched, so that a large cache costs nothing at start.
        let memory =
            bytemuck::allocation::try_zeroed_vec::<u32>(num_bytes / 4 + LANES).map_err(|()| {
                KernelError::OutOfMemory {
                    what: "the KV cache".to_owned(),
                    bytes: num_bytes,
                    hint: "lower the number of KV blocks or the maximum model length".to_owned(),
                }
            })?;
        let skip = memory.as_ptr().align_offset(64).min(LANES - 1);
        Ok(Self { layout, kv_type, memory, skip })
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.memory.len() * 4
    }

    /// Returns the elements, to read and write.
    pub(super) fn elements(&mut self) -> KvElements<'_> {
        let words = &mut self.memory[self.skip..];
        match self.kv_type {
            KvType::F16 => KvElements::F16(Shared::new(bytemuck::cast_slice_mut(words))),
            KvType::F32 => KvElements::F32(Shared::new(bytemuck::cast_slice_mut(words))),
        }
    }

    /// Returns how many bytes a head has in a block of a layer.
    pub(super) const fn piece_bytes(&self) -> usize {
        self.layout.head_len() * self.kv_type.bytes()
    }

    /// Returns where the pieces of some blocks lie, in bytes, block by block, layer by layer, head by head.
    fn pieces<'a>(&self, blocks: &'a [u32]) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let (layout, piece, element) = (self.layout, self.piece_bytes(), self.kv_type.bytes());
        let num_pieces = layout.num_layers * layout.num_kv_heads;
        let of_block = move |block: u32| {
            (0..num_pieces).map(move |index| {
                let (layer, head) = (index / layout.num_kv_heads, index % layout.num_kv_heads);
                let first = layout.head_start(layer, block as usize, head) * element;
                first..first + piece
            })
        };
        blocks.iter().copied().flat_map(of_block)
    }

    /// Copies blocks out.
    pub(super) fn read(&self, blocks: &[u32]) -> Vec<u8> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.memory[self.skip..]);
        let num_pieces = self.layout.num_layers * self.layout.num_kv_heads;
        let mut copied = Vec::with_capacity(blocks.len() * num_pieces * self.piece_bytes());
        self.pieces(blocks).for_each(|piece| copied.extend_from_slice(&bytes[piece]));
        copied
    }

    /// Copies blocks in that were copied out of a cache with such pieces.
    pub(super) fn write(&mut self, blocks: &[u32], copied: &[u8]) {
        let pieces = self.pieces(blocks);
        let piece_bytes = self.piece_bytes();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory[self.skip..]);
        for (piece, copied) in pieces.zip(copied.chunks_exact(piece_bytes)) {
            bytes[piece].copy_from_slice(copied);
        }
    }
}
