//! A rank's KV cache as those see it that copy blocks into it or out of it, beside the rank's steps.

use std::sync::Arc;

use stallfree_device::{Device, DeviceArena, DeviceSlice};

use super::kv_block::KvBlock;
use crate::KvSpec;

/// A KV cache on a GPU. The memory lives as long as somebody has this; whether a block may be read or written, others know.
#[derive(Clone, Debug)]
pub struct CudaKv {
    device: Arc<Device>,
    all: DeviceSlice,
    block: KvBlock,
    _arena: Arc<DeviceArena>,
}

impl CudaKv {
    pub(super) fn new(
        device: &Arc<Device>,
        arena: &Arc<DeviceArena>,
        all: DeviceSlice,
        spec: &KvSpec,
    ) -> Self {
        let (device, block) = (Arc::clone(device), KvBlock::new(spec));
        Self { device, all, block, _arena: Arc::clone(arena) }
    }

    /// Returns the GPU.
    #[must_use]
    pub const fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Returns how many bytes a head's keys of a layer take in a block, and its values.
    #[must_use]
    pub const fn half_bytes(&self) -> usize {
        self.block.piece_bytes() / 2
    }

    /// Returns how a block lies in memory.
    pub(super) const fn layout(&self) -> KvBlock {
        self.block
    }

    /// Returns a block, `[layer, keys or values, head, token, element]`; an empty range if there is none of that number.
    #[must_use]
    pub fn block(&self, index: u32) -> DeviceSlice {
        let bytes = self.block.bytes();
        self.all.slice((index as usize).saturating_mul(bytes), bytes)
    }
}
