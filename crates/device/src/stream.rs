//! Queues of device work, and marks in them.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys as cu;

use crate::error::check;
use crate::{Device, DeviceError, DeviceSlice};

/// A queue: what is submitted to it runs in order.
#[derive(Debug)]
pub struct Stream {
    pub(crate) raw: cu::CUstream,
    device: Arc<Device>,
}

// SAFETY: a stream may be used from any thread whose context is bound.
unsafe impl Send for Stream {}

impl Stream {
    /// Makes a queue.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = cu::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: this thread's context is set and the pointer is to a live handle.
        check("cuStreamCreate", unsafe { cu::cuStreamCreate(&raw mut raw, flags) })?;
        Ok(Self { raw, device: Arc::clone(device) })
    }

    /// Returns the queue's GPU.
    #[must_use]
    pub const fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Returns the driver's handle of the queue, for libraries that submit to it; it means something as long as the queue lives.
    #[must_use]
    pub const fn handle(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Waits until the queue is empty.
    ///
    /// # Errors
    /// Something in the queue failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream lives until drop.
        check("cuStreamSynchronize", unsafe { cu::cuStreamSynchronize(self.raw) })
    }

    /// Copies `src` to the device, in order; returns once `src` may be reused (pageable memory is staged by the driver).
    ///
    /// # Errors
    /// The sizes differ, or an earlier failure of the context.
    pub fn upload<T: bytemuck::NoUninit>(
        &self,
        dst: DeviceSlice,
        src: &[T],
    ) -> Result<(), DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(src);
        same_size(bytes.len(), dst)?;
        // SAFETY: the host side is a live slice of that size; the driver refuses addresses that are not its own.
        let code = unsafe {
            cu::cuMemcpyHtoDAsync_v2(dst.address(), bytes.as_ptr().cast(), bytes.len(), self.raw)
        };
        check("cuMemcpyHtoDAsync", code)
    }

    /// Copies from the device and waits for it.
    ///
    /// # Errors
    /// The sizes differ, or something earlier in the queue failed.
    pub fn download<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        dst: &mut [T],
        src: DeviceSlice,
    ) -> Result<(), DeviceError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(dst);
        same_size(bytes.len(), src)?;
        // SAFETY: the host side is a live slice of that size, borrowed until the wait below.
        let code = unsafe {
            cu::cuMemcpyDtoHAsync_v2(
                bytes.as_mut_ptr().cast(),
                src.address(),
                bytes.len(),
                self.raw,
            )
        };
        check("cuMemcpyDtoHAsync", code)?;
        self.synchronize()
    }

    /// Copies within the device, in order.
    ///
    /// # Errors
    /// The sizes differ, or an earlier failure of the context.
    pub fn copy(&self, dst: DeviceSlice, src: DeviceSlice) -> Result<(), DeviceError> {
        same_size(src.len(), dst)?;
        // SAFETY: the driver refuses addresses that are not its own.
        let code =
            unsafe { cu::cuMemcpyDtoDAsync_v2(dst.address(), src.address(), src.len(), self.raw) };
        check("cuMemcpyDtoDAsync", code)
    }

    /// Sets every byte of `dst`.
    ///
    /// # Errors
    /// An earlier failure of the context.
    pub fn fill(&self, dst: DeviceSlice, byte: u8) -> Result<(), DeviceError> {
        // SAFETY: the driver refuses addresses that are not its own.
        let code = unsafe { cu::cuMemsetD8Async(dst.address(), byte, dst.len(), self.raw) };
        check("cuMemsetD8Async", code)
    }

    /// Says whether what is submitted is being recorded instead of run: then nothing can be waited for or timed.
    ///
    /// # Errors
    /// An earlier failure of the context.
    pub fn is_recording(&self) -> Result<bool, DeviceError> {
        let mut status = cu::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream lives and the pointer is to a live value.
        let code = unsafe { cu::cuStreamIsCapturing(self.raw, &raw mut status) };
        check("cuStreamIsCapturing", code)?;
        Ok(status != cu::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Marks this point of the queue.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self) -> Result<Event, DeviceError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the stream's context is bound; the event lives until its drop.
        unsafe {
            check("cuEventCreate", cu::cuEventCreate(&raw mut raw, 0))?;
            let event = Event { raw };
            check("cuEventRecord", cu::cuEventRecord(raw, self.raw))?;
            Ok(event)
        }
    }

    /// Makes what follows wait for a mark in another queue.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        // SAFETY: both handles live.
        check("cuStreamWaitEvent", unsafe { cu::cuStreamWaitEvent(self.raw, event.raw, 0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; the driver finishes queued work first.
        let _ = unsafe { cu::cuStreamDestroy_v2(self.raw) };
    }
}

/// A point in a queue that has a time.
#[derive(Debug)]
pub struct Event {
    raw: cu::CUevent,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// Makes an event without a time, whose waiters sleep; it is done until it is first recorded.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn new(device: &Device) -> Result<Self, DeviceError> {
        device.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = cu::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as u32
            | cu::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: this thread's context is set and the pointer is to a live handle.
        check("cuEventCreate", unsafe { cu::cuEventCreate(&raw mut raw, flags) })?;
        Ok(Self { raw })
    }

    /// Moves the mark to this point of a queue.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both handles live.
        check("cuEventRecord", unsafe { cu::cuEventRecord(self.raw, stream.raw) })
    }

    /// Says whether the queue has reached this point.
    ///
    /// # Errors
    /// Something earlier in the queue failed.
    pub fn is_done(&self) -> Result<bool, DeviceError> {
        // SAFETY: the event lives until drop.
        match unsafe { cu::cuEventQuery(self.raw) } {
            cu::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Waits until the queue has reached this point.
    ///
    /// # Errors
    /// Something earlier in the queue failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // Asking takes half the time of waiting for what is done.
        if self.is_done()? {
            return Ok(());
        }
        // SAFETY: the event lives until drop.
        check("cuEventSynchronize", unsafe { cu::cuEventSynchronize(self.raw) })
    }

    /// Returns the milliseconds from `start` to this point, once it is reached.
    ///
    /// # Errors
    /// Something earlier in the queue failed.
    pub fn ms_since(&self, start: &Self) -> Result<f32, DeviceError> {
        self.synchronize()?;
        let mut ms = 0.0;
        // SAFETY: both events live and are recorded.
        let code = unsafe { cu::cuEventElapsedTime_v2(&raw mut ms, start.raw, self.raw) };
        check("cuEventElapsedTime", code)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `Stream::record`, destroyed once.
        let _ = unsafe { cu::cuEventDestroy_v2(self.raw) };
    }
}

fn same_size(host: usize, device: DeviceSlice) -> Result<(), DeviceError> {
    if host == device.len() {
        Ok(())
    } else {
        Err(DeviceError::CopySize { host, device: device.len() })
    }
}
