//! Boxes of device memory as Hopper's copy engine (TMA) reads them.

use std::ffi::c_void;

use cudarc::driver::sys as cu;

use crate::error::check;
use crate::{DeviceError, DeviceSlice, Dtype};

/// How the 16-byte units of a box's rows are interchanged on their way to shared memory, so that reads by column meet no bank
/// conflict. A box's row is at most as long as the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// As they are.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes: what the matrix instructions read fastest.
    B128,
}

/// A view of device memory and the boxes that are read from it.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapSpec<'a> {
    /// The memory; its address is a multiple of 16.
    pub data: DeviceSlice,
    /// The element type.
    pub dtype: Dtype,
    /// Elements along each dimension, the contiguous one first; at most five. What a box reads beyond them is zero.
    pub dims: &'a [usize],
    /// Bytes from one element to the next along each dimension but the first; multiples of 16.
    pub strides: &'a [usize],
    /// A box's elements along each dimension; at most 256 each.
    pub box_dims: &'a [usize],
    /// How a box lies in shared memory.
    pub swizzle: Swizzle,
}

/// A view as the copy engine takes it: a kernel's parameter, `const __grid_constant__`, aligned to 64 bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(pub(crate) cu::CUtensorMap);

impl TensorMap {
    /// Encodes a view; needs no memory of the device and submits nothing.
    ///
    /// # Errors
    /// The view is longer than its memory, or not one that the copy engine takes.
    pub fn encode(spec: TensorMapSpec<'_>) -> Result<Self, DeviceError> {
        let rank = spec.dims.len();
        let last =
            spec.dims.iter().skip(1).zip(spec.strides).map(|(dim, stride)| (dim - 1) * stride);
        let bytes =
            spec.dims.first().map_or(0, |dim| dim * spec.dtype.bytes()) + last.sum::<usize>();
        let sound = (1..=5).contains(&rank)
            && spec.strides.len() + 1 == rank
            && spec.box_dims.len() == rank
            && bytes <= spec.data.len();
        if !sound {
            let what = format!("{spec:?} needs {bytes} bytes");
            return Err(DeviceError::TensorMap { what });
        }
        let to_u64 = |values: &[usize]| values.iter().map(|&v| v as u64).collect::<Vec<_>>();
        let (dims, strides) = (to_u64(spec.dims), to_u64(spec.strides));
        let box_dims: Vec<u32> =
            spec.box_dims.iter().map(|&dim| u32::try_from(dim).unwrap_or(u32::MAX)).collect();
        let ones = vec![1u32; rank];
        let mut map = cu::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the lists have `rank` elements (strides one less) and outlive the call; the address is only recorded.
        let code = unsafe {
            cu::cuTensorMapEncodeTiled(
                &raw mut map,
                data_type(spec.dtype),
                u32::try_from(rank).unwrap_or(0),
                pointer(spec.data),
                dims.as_ptr(),
                strides.as_ptr(),
                box_dims.as_ptr(),
                ones.as_ptr(),
                cu::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle(spec.swizzle),
                cu::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                cu::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", code)?;
        Ok(Self(map))
    }
}

fn pointer(slice: DeviceSlice) -> *mut c_void {
    std::ptr::without_provenance_mut(usize::try_from(slice.address()).unwrap_or(0))
}

const fn data_type(dtype: Dtype) -> cu::CUtensorMapDataType {
    match dtype {
        Dtype::Bf16 => cu::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        Dtype::F16 => cu::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Dtype::F32 => cu::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }
}

const fn swizzle(swizzle: Swizzle) -> cu::CUtensorMapSwizzle {
    match swizzle {
        Swizzle::None => cu::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => cu::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => cu::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => cu::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_beyond_its_memory_is_refused() {
        let check = |dims: &[usize], strides: &[usize], box_dims: &[usize]| {
            let data = DeviceSlice::new(0, 1000);
            let swizzle = Swizzle::None;
            TensorMap::encode(TensorMapSpec {
                data,
                dtype: Dtype::Bf16,
                dims,
                strides,
                box_dims,
                swizzle,
            })
        };
        for (dims, strides, box_dims) in [
            (&[8, 64][..], &[16][..], &[8, 8][..]),
            (&[501], &[], &[8]),
            (&[8, 8], &[], &[8, 8]),
            (&[8, 8], &[16], &[8]),
            (&[], &[], &[]),
        ] {
            let refused = check(dims, strides, box_dims);
            assert!(matches!(refused, Err(DeviceError::TensorMap { .. })), "{dims:?}");
        }
    }
}
