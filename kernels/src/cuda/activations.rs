//! The memory of a step's activations on a GPU.

use stallfree_device::{DeviceArena, DeviceError, DeviceSlice, Dtype};

/// A handle to a matrix of the step's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaTensor {
    pub(super) data: DeviceSlice,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// The element type: that of the weights, or f32 for logits.
    pub(super) dtype: Dtype,
}

/// Three regions, taken once, from which matrices are cut one after the other: what was made before the first layer, and two
/// that take turns by layer. Addresses depend only on the sequence of ops and the number of rows.
#[derive(Clone, Debug)]
pub(super) struct Activations {
    regions: [Region; 3],
    current: usize,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    all: DeviceSlice,
    used: usize,
}

/// What every matrix is aligned to.
const ALIGN: usize = 256;

impl Activations {
    /// Takes `base` bytes for what precedes the layers and `layer` bytes for each of two layers.
    pub(super) fn new(
        arena: &mut DeviceArena,
        base: usize,
        layer: usize,
    ) -> Result<Self, DeviceError> {
        let mut region =
            |bytes| arena.take("activations", bytes).map(|all| Region { all, used: 0 });
        Ok(Self { regions: [region(base)?, region(layer)?, region(layer)?], current: 0 })
    }

    /// Forgets all matrices.
    pub(super) fn clear(&mut self) {
        self.regions.iter_mut().for_each(|region| region.used = 0);
        self.current = 0;
    }

    /// Forgets the matrices of the layer before the last.
    pub(super) const fn begin_layer(&mut self) {
        self.current = if self.current == 1 { 2 } else { 1 };
        self.regions[self.current].used = 0;
    }

    /// Takes a matrix; its values are whatever was there.
    pub(super) fn take(
        &mut self,
        rows: usize,
        cols: usize,
        dtype: Dtype,
    ) -> Result<CudaTensor, DeviceError> {
        let data = self.take_bytes(rows * cols * dtype.bytes())?;
        Ok(CudaTensor { data, rows, cols, dtype })
    }

    /// Takes a range that lives until the layer after the next begins.
    pub(super) fn take_bytes(&mut self, bytes: usize) -> Result<DeviceSlice, DeviceError> {
        self.regions[self.current].take(bytes)
    }

    /// Takes a range that lives until the step ends.
    pub(super) fn take_for_step(&mut self, bytes: usize) -> Result<DeviceSlice, DeviceError> {
        self.regions[0].take(bytes)
    }
}

impl Region {
    fn take(&mut self, bytes: usize) -> Result<DeviceSlice, DeviceError> {
        let left = self.all.len() - self.used;
        if bytes > left {
            return Err(DeviceError::ArenaFull { what: "activations".to_owned(), bytes, left });
        }
        let slice = self.all.slice(self.used, bytes);
        self.used = (self.used + bytes).next_multiple_of(ALIGN).min(self.all.len());
        Ok(slice)
    }
}
