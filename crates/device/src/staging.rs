//! Copies that run beside the host: through page-locked memory, each with an event that says when it is done.

use std::sync::Arc;

use cudarc::driver::sys as cu;

use crate::error::check;
use crate::{Device, DeviceError, DeviceSlice, Event, PinnedBuffer, Stream};

/// A step's values on their way to the device. One buffer serves one step at a time; several take turns.
#[derive(Debug)]
pub struct Upload {
    buffer: PinnedBuffer<u8>,
    used: usize,
    done: Event,
}

impl Upload {
    /// Takes page-locked memory for `capacity` bytes; it grows when a step needs more.
    ///
    /// # Errors
    /// The host has not that much left to lock.
    pub fn new(device: &Arc<Device>, capacity: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            buffer: PinnedBuffer::new(device, capacity)?,
            used: 0,
            done: Event::new(device)?,
        })
    }

    /// Begins anew, once the copies of the time before are done.
    ///
    /// # Errors
    /// One of them failed.
    pub fn begin(&mut self) -> Result<(), DeviceError> {
        self.used = 0;
        self.done.synchronize()
    }

    /// Copies `src` to the device, in order, and returns at once.
    ///
    /// # Errors
    /// The sizes differ, or an earlier failure of the context.
    pub fn push<T: bytemuck::NoUninit>(
        &mut self,
        stream: &Stream,
        dst: DeviceSlice,
        src: &[T],
    ) -> Result<(), DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(src);
        if bytes.len() != dst.len() {
            return Err(DeviceError::CopySize { host: bytes.len(), device: dst.len() });
        }
        self.push_with(stream, dst, |staged| staged.copy_from_slice(bytes))
    }

    /// Does the same with bytes that `write` puts where they are copied from, and returns what that returns.
    ///
    /// # Errors
    /// The host has too little memory to lock, or an earlier failure of the context.
    pub fn push_with<R>(
        &mut self,
        stream: &Stream,
        dst: DeviceSlice,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, DeviceError> {
        let len = dst.len();
        if self.used + len > self.buffer.len() {
            // What is under way still reads the old buffer.
            stream.synchronize()?;
            let capacity = (self.used + len).next_power_of_two();
            self.buffer = PinnedBuffer::new(stream.device(), capacity)?;
            self.used = 0;
        }
        let staged = &mut self.buffer[self.used..self.used + len];
        let written = write(staged);
        let from = staged.as_ptr().cast();
        // SAFETY: the staged bytes are not touched again until `begin` has waited for `done`, nor freed before drop has.
        let code = unsafe { cu::cuMemcpyHtoDAsync_v2(dst.address(), from, len, stream.raw) };
        self.used = (self.used + len).next_multiple_of(16).min(self.buffer.len());
        check("cuMemcpyHtoDAsync", code)?;
        self.done.record(stream)?;
        Ok(written)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // The device may still read the buffer; a failure leaves nothing that reads it.
        self.done.synchronize().unwrap_or_default();
    }
}

/// Values on their way from the device.
#[derive(Debug)]
pub struct Download {
    buffer: PinnedBuffer<u8>,
    len: usize,
    done: Event,
    device: Arc<Device>,
}

impl Download {
    /// Takes page-locked memory for `capacity` bytes.
    ///
    /// # Errors
    /// The host has not that much left to lock.
    pub fn new(device: &Arc<Device>, capacity: usize) -> Result<Self, DeviceError> {
        let (buffer, done) = (PinnedBuffer::new(device, capacity)?, Event::new(device)?);
        Ok(Self { buffer, len: 0, done, device: Arc::clone(device) })
    }

    /// Returns how many bytes it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Copies `src` from the device, in order, and returns at once; an empty one still marks its place in the queue.
    ///
    /// # Errors
    /// There is no room for `src`, or an earlier failure of the context.
    pub fn start(&mut self, stream: &Stream, src: DeviceSlice) -> Result<(), DeviceError> {
        self.done.synchronize()?;
        if src.len() > self.buffer.len() {
            return Err(DeviceError::CopySize { host: self.buffer.len(), device: src.len() });
        }
        self.len = src.len();
        if src.is_empty() {
            return self.done.record(stream);
        }
        let to = self.buffer.as_mut_ptr().cast();
        // SAFETY: the buffer is neither read nor freed before `done`, and has room.
        let code = unsafe { cu::cuMemcpyDtoHAsync_v2(to, src.address(), src.len(), stream.raw) };
        check("cuMemcpyDtoHAsync", code)?;
        self.done.record(stream)
    }

    /// Waits for the values, on any thread; it sleeps meanwhile.
    ///
    /// # Errors
    /// The copy, or something earlier in its queue, failed.
    pub fn wait<T: bytemuck::AnyBitPattern>(&self) -> Result<&[T], DeviceError> {
        self.device.bind()?;
        self.done.synchronize()?;
        Ok(bytemuck::cast_slice(&self.buffer[..self.len]))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // The device may still write the buffer; a failure leaves nothing that writes it.
        self.done.synchronize().unwrap_or_default();
    }
}
