//! Many copies submitted at once: within a GPU, or out of the memory of others that it can reach.

use cudarc::driver::sys as cu;

use crate::error::check;
use crate::{DeviceError, DeviceSlice, Stream};

/// Copies that are submitted together. In what order they run is the device's affair; none may read what another one writes.
#[derive(Debug, Default)]
pub struct Copies {
    to: Vec<u64>,
    from: Vec<u64>,
    sizes: Vec<usize>,
    strided: Vec<(u64, u64, Rows)>,
}

/// Rows of bytes at equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Bytes of a row.
    pub width: usize,
    /// How many rows.
    pub count: usize,
    /// Bytes from row to row where they come from.
    pub from_pitch: usize,
    /// Bytes from row to row where they go.
    pub to_pitch: usize,
}

impl Rows {
    /// Checks that both ranges hold them; returns how many bytes there are.
    fn check(self, to: DeviceSlice, from: DeviceSlice) -> Result<usize, DeviceError> {
        let Some(between) = self.count.checked_sub(1) else { return Ok(0) };
        for (slice, pitch) in [(to, self.to_pitch), (from, self.from_pitch)] {
            let needed = between * pitch + self.width;
            if slice.len() < needed {
                return Err(DeviceError::CopySize { host: needed, device: slice.len() });
            }
        }
        Ok(self.width * self.count)
    }
}

impl Stream {
    /// Copies rows within the device, in order. It can be recorded.
    ///
    /// # Errors
    /// A range does not hold them, or an earlier failure of the context.
    pub fn copy_rows(
        &self,
        to: DeviceSlice,
        from: DeviceSlice,
        rows: Rows,
    ) -> Result<(), DeviceError> {
        match rows.check(to, from)? {
            0 => Ok(()),
            _ => submit_rows(self, to.address(), from.address(), rows),
        }
    }
}

impl Copies {
    /// Adds rows that begin with the two ranges.
    ///
    /// # Errors
    /// A range does not hold them.
    pub fn push(
        &mut self,
        to: DeviceSlice,
        from: DeviceSlice,
        rows: Rows,
    ) -> Result<(), DeviceError> {
        let Rows { width, count, from_pitch, to_pitch } = rows;
        if rows.check(to, from)? == 0 {
            return Ok(());
        }
        let (to, from) = (to.address(), from.address());
        if count > 1 && (from_pitch, to_pitch) != (width, width) {
            self.strided.push((to, from, rows));
            return Ok(());
        }
        let size = width * count;
        // Neighbours on both sides are one copy.
        if let Some(last) = self.sizes.len().checked_sub(1) {
            let end = self.sizes[last] as u64;
            if (self.to[last] + end, self.from[last] + end) == (to, from) {
                self.sizes[last] += size;
                return Ok(());
            }
        }
        self.to.push(to);
        self.from.push(from);
        self.sizes.push(size);
        Ok(())
    }

    /// Submits all of them to a queue of the GPU that they write to. `across` says whether they come from other GPUs. The arenas of all
    /// slices have to live until the queue is done.
    ///
    /// # Errors
    /// The driver refuses; some of the copies may be under way.
    pub fn submit(mut self, stream: &Stream, across: bool) -> Result<(), DeviceError> {
        self.submit_whole(stream, across)?;
        for &(to, from, rows) in &self.strided {
            submit_rows(stream, to, from, rows)?;
        }
        Ok(())
    }

    fn submit_whole(&mut self, stream: &Stream, across: bool) -> Result<(), DeviceError> {
        if self.sizes.is_empty() {
            return Ok(());
        }
        let nowhere =
            cu::CUmemLocation { type_: cu::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
        // Measured (docs/disaggregation.md): each is the faster one in its place.
        let flags = match across {
            true => cu::CUmemcpyFlags_enum::CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE,
            false => cu::CUmemcpyFlags_enum::CU_MEMCPY_FLAG_DEFAULT,
        };
        let mut attributes = cu::CUmemcpyAttributes {
            srcAccessOrder: cu::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere,
            dstLocHint: nowhere,
            flags: flags as u32,
        };
        let mut first = 0;
        // SAFETY: the lists are of one length and live through the call, which keeps none of them; addresses are those of slices, whose
        // arenas the caller keeps until the stream is done.
        let code = unsafe {
            cu::cuMemcpyBatchAsync_v2(
                self.to.as_mut_ptr(),
                self.from.as_mut_ptr(),
                self.sizes.as_mut_ptr(),
                self.sizes.len(),
                &raw mut attributes,
                &raw mut first,
                1,
                stream.raw,
            )
        };
        check("cuMemcpyBatchAsync", code)
    }
}

fn submit_rows(stream: &Stream, to: u64, from: u64, rows: Rows) -> Result<(), DeviceError> {
    let Rows { width, count, from_pitch, to_pitch } = rows;
    let copy = cu::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: cu::CUmemorytype::CU_MEMORYTYPE_UNIFIED,
        srcHost: std::ptr::null(),
        srcDevice: from,
        srcArray: std::ptr::null_mut(),
        srcPitch: from_pitch,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: cu::CUmemorytype::CU_MEMORYTYPE_UNIFIED,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        dstPitch: to_pitch,
        WidthInBytes: width,
        Height: count,
    };
    // SAFETY: the description lives through the call; addresses are those of slices, whose arenas the caller keeps until the stream
    // is done.
    check("cuMemcpy2DAsync", unsafe { cu::cuMemcpy2DAsync_v2(&raw const copy, stream.raw) })
}

#[cfg(test)]
mod tests {
    use super::{Copies, Rows};
    use crate::DeviceSlice;

    #[test]
    fn neighbours_are_one_copy_and_rows_apart_are_not() {
        let slice = |address| DeviceSlice::new(address, 64);
        let whole = Rows { width: 16, count: 4, from_pitch: 16, to_pitch: 16 };
        let apart = Rows { to_pitch: 8, width: 8, ..whole };
        let mut copies = Copies::default();
        let mut push =
            |to, from, rows| copies.push(slice(to), slice(from), rows).map_err(|e| e.to_string());
        push(1000, 5000, whole).expect("it fits");
        push(1064, 5064, whole).expect("it fits");
        push(1128, 6000, whole).expect("it fits");
        push(2000, 7000, apart).expect("it fits");
        let too_many = Rows { count: 5, ..whole };
        assert!(push(3000, 8000, too_many).expect_err("64 bytes").contains("80 bytes"));
        assert_eq!(copies.to, [1000, 1128]);
        assert_eq!(copies.from, [5000, 6000]);
        assert_eq!(copies.sizes, [128, 64]);
        assert_eq!(copies.strided, [(2000, 7000, apart)]);
    }
}
