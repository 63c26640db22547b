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

/// Regions, taken once, from which matrices are cut one after the other: what was made before the first layer, two that take
/// turns by layer, and one for logits. Addresses depend only on the sequence of ops and the number of rows.
#[derive(Clone, Debug)]
pub(super) struct Activations {
    regions: [Region; 3],
    current: usize,
    logits: DeviceSlice,
}

/// How many bytes the regions have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationBytes {
    /// Before the first layer.
    pub base: usize,
    /// In each of two layers.
    pub layer: usize,
    /// Of logits, those of a slice of the head.
    pub logits: usize,
}

impl ActivationBytes {
    /// Returns all of them together.
    #[must_use]
    pub const fn total(self) -> usize {
        self.base + 2 * self.layer + self.logits
    }
}

#[derive(Clone, Copy, Debug)]
struct Region {
    all: DeviceSlice,
    used: usize,
}

/// What every matrix is aligned to.
const ALIGN: usize = 256;

impl Activations {
    pub(super) fn new(
        arena: &mut DeviceArena,
        bytes: ActivationBytes,
    ) -> Result<Self, DeviceError> {
        let logits = arena.take("logits", bytes.logits)?;
        let mut region =
            |bytes| arena.take("activations", bytes).map(|all| Region { all, used: 0 });
        let regions = [region(bytes.base)?, region(bytes.layer)?, region(bytes.layer)?];
        Ok(Self { regions, current: 0, logits })
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

    /// Takes a matrix of logits in the place of the last one.
    pub(super) fn take_logits(&self, rows: usize, cols: usize) -> Result<CudaTensor, DeviceError> {
        let (bytes, left) = (rows * cols * 4, self.logits.len());
        if bytes > left {
            return Err(DeviceError::ArenaFull { what: "logits".to_owned(), bytes, left });
        }
        Ok(CudaTensor { data: self.logits.slice(0, bytes), rows, cols, dtype: Dtype::F32 })
    }

    /// Takes a matrix of logits behind `held`, a rank's part of them.
    pub(super) fn take_all_logits(
        &self,
        held: CudaTensor,
        cols: usize,
    ) -> Result<CudaTensor, DeviceError> {
        let (offset, bytes) = (held.data.len().next_multiple_of(ALIGN), held.rows * cols * 4);
        let left = self.logits.len().saturating_sub(offset);
        if bytes > left {
            return Err(DeviceError::ArenaFull { what: "logits".to_owned(), bytes, left });
        }
        let data = self.logits.slice(offset, bytes);
        Ok(CudaTensor { data, rows: held.rows, cols, dtype: Dtype::F32 })
    }

    /// Returns where all of it begins; everything is at the same distance from there on ranks of the same sizes.
    pub(super) const fn start(&self) -> DeviceSlice {
        self.logits
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
