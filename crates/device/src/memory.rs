//! Device memory taken once, and page-locked host memory.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use cudarc::driver::sys as cu;

use crate::error::check;
use crate::{Device, DeviceError};

/// What every range of an arena is aligned to: a whole L2 line pair, and more than any vector load or tensor map needs.
const ALIGN: usize = 256;

/// A range of device memory. It is a name, not an owner: it means something as long as its arena lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceSlice {
    address: u64,
    len: usize,
}

impl DeviceSlice {
    #[cfg(test)]
    pub(crate) const fn new(address: u64, len: usize) -> Self {
        Self { address, len }
    }

    /// Returns its address on the device.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }

    /// Returns its length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Says whether it is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Returns `len` bytes of it from `offset`; cut to what is there.
    #[must_use]
    pub fn slice(self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        Self { address: self.address + offset as u64, len: len.min(self.len - offset) }
    }
}

/// One allocation, taken at start, from which ranges are cut one after the other.
#[derive(Debug)]
pub struct DeviceArena {
    all: DeviceSlice,
    used: usize,
    _device: Arc<Device>,
}

impl DeviceArena {
    /// Takes `bytes` of the GPU's memory.
    ///
    /// # Errors
    /// The GPU has not that much left.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, DeviceError> {
        device.bind()?;
        let mut address = 0;
        // SAFETY: this thread's context is set and the pointer is to a live integer.
        check("cuMemAlloc", unsafe { cu::cuMemAlloc_v2(&raw mut address, bytes) })?;
        let all = DeviceSlice { address, len: bytes };
        Ok(Self { all, used: 0, _device: Arc::clone(device) })
    }

    /// Cuts `bytes` off, aligned to 256.
    ///
    /// # Errors
    /// Too little is left; `what` names the user.
    pub fn take(&mut self, what: &str, bytes: usize) -> Result<DeviceSlice, DeviceError> {
        let left = self.all.len - self.used;
        if bytes > left {
            return Err(DeviceError::ArenaFull { what: what.to_owned(), bytes, left });
        }
        let slice = self.all.slice(self.used, bytes);
        self.used = (self.used + bytes).next_multiple_of(ALIGN).min(self.all.len);
        Ok(slice)
    }

    /// Returns all that is taken.
    #[must_use]
    pub fn taken(&self) -> DeviceSlice {
        self.all.slice(0, self.used)
    }

    /// Returns how many bytes are taken, for [`reset_to`](Self::reset_to).
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Gives back what was taken since [`used`](Self::used) read `mark`.
    pub const fn reset_to(&mut self, mark: usize) {
        if mark < self.used {
            self.used = mark;
        }
    }
}

impl Drop for DeviceArena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the driver waits for work that uses it.
        let _ = unsafe { cu::cuMemFree_v2(self.all.address) };
    }
}

/// Page-locked host memory: copies to and from it run beside the host.
#[derive(Debug)]
pub struct PinnedBuffer<T> {
    data: *mut T,
    len: usize,
    _device: Arc<Device>,
}

// SAFETY: it owns plain memory.
unsafe impl<T: Send> Send for PinnedBuffer<T> {}

impl<T: bytemuck::Zeroable> PinnedBuffer<T> {
    /// Takes page-locked memory for `len` zeroed elements.
    ///
    /// # Errors
    /// The host has not that much left to lock.
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Self, DeviceError> {
        device.bind()?;
        let mut data = std::ptr::null_mut();
        let too_many = DeviceError::Driver {
            call: "cuMemHostAlloc",
            code: cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(too_many)?.max(1);
        // SAFETY: this thread's context is set and the pointer is to a live pointer.
        check("cuMemHostAlloc", unsafe { cu::cuMemHostAlloc(&raw mut data, bytes, 0) })?;
        // SAFETY: the allocation has `bytes` bytes, and zeros are a valid T.
        unsafe { std::ptr::write_bytes(data.cast::<u8>(), 0, bytes) };
        Ok(Self { data: data.cast(), len, _device: Arc::clone(device) })
    }
}

impl<T> Deref for PinnedBuffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: page-aligned memory of `len` initialized elements, owned.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl<T> DerefMut for PinnedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { cu::cuMemFreeHost(self.data.cast()) };
    }
}
