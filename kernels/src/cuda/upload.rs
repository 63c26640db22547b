//! Weights on their way to the device: any stored type becomes the device's 16-bit one.

use std::sync::Arc;

use half::{bf16, f16};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};
use stallfree_device::{Device, DeviceError, DeviceSlice, Dtype, Stream, Upload};

use crate::cpu::dequantize;
use crate::{KernelError, WeightTensor, WeightType};

/// Elements copied at once: while the device takes one lot, the host's threads convert the next.
const LOT: usize = 16 << 20;
/// Elements that a thread converts at once.
const SHARE: usize = 1 << 17;

/// Page-locked memory through which weights go.
#[derive(Debug)]
pub(super) struct WeightUpload {
    uploads: [Upload; 2],
}

impl WeightUpload {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        Ok(Self { uploads: [Upload::new(device, LOT * 2)?, Upload::new(device, LOT * 2)?] })
    }

    /// Copies a weight's elements to `dst` as 16-bit floats.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        dst: DeviceSlice,
        part: &WeightTensor<'_>,
        dtype: Dtype,
    ) -> Result<(), KernelError> {
        let expected = part.dtype.bytes_for(part.shape.iter().product());
        if part.bytes.len() != expected {
            let (operand, got) = (part.name.to_owned(), part.bytes.len());
            return Err(KernelError::Bytes { operand, expected, got });
        }
        let convert = Convert::new(part.dtype, dtype);
        let dequantized;
        let (bytes, size) = match part.dtype {
            WeightType::BF16 | WeightType::F16 => (part.bytes, 2),
            WeightType::F32 => (part.bytes, 4),
            _ => {
                dequantized = dequantize(part)?;
                (bytemuck::cast_slice(&dequantized), 4)
            }
        };
        for (index, lot) in bytes.chunks(LOT * size).enumerate() {
            let to = dst.slice(index * LOT * 2, lot.len() / size * 2);
            self.uploads.rotate_left(1);
            let upload = &mut self.uploads[0];
            let copied = upload.begin().and_then(|()| {
                upload.push_with(stream, to, |staged| {
                    let shares = lot.par_chunks(SHARE * size);
                    let staged = staged.par_chunks_mut(SHARE * 2);
                    staged.zip(shares).for_each(|(to, from)| convert.run(from, to));
                })
            });
            copied.map_err(|error| KernelError::OutOfMemory {
                what: part.name.to_owned(),
                bytes: lot.len(),
                hint: format!("the copy to the GPU failed ({error})"),
            })?;
        }
        Ok(())
    }
}

/// From which type to which.
#[derive(Clone, Copy, Debug)]
enum Convert {
    Same,
    Bf16ToF16,
    F16ToBf16,
    F32ToF16,
    F32ToBf16,
}

impl Convert {
    const fn new(from: WeightType, to: Dtype) -> Self {
        match (from, to) {
            (WeightType::BF16, Dtype::F16) => Self::Bf16ToF16,
            (WeightType::BF16, _) | (WeightType::F16, Dtype::F16) => Self::Same,
            (WeightType::F16, _) => Self::F16ToBf16,
            (_, Dtype::F16) => Self::F32ToF16,
            (_, _) => Self::F32ToBf16,
        }
    }

    fn run(self, from: &[u8], to: &mut [u8]) {
        let f16_bits = |value| f16::from_f32(value).to_bits();
        let bf16_bits = |value| bf16::from_f32(value).to_bits();
        match self {
            Self::Same => to.copy_from_slice(from),
            Self::Bf16ToF16 => each(from, to, |b| f16_bits(bf16::from_le_bytes(b).to_f32())),
            Self::F16ToBf16 => each(from, to, |b| bf16_bits(f16::from_le_bytes(b).to_f32())),
            Self::F32ToF16 => each(from, to, |b| f16_bits(f32::from_le_bytes(b))),
            Self::F32ToBf16 => each(from, to, |b| bf16_bits(f32::from_le_bytes(b))),
        }
    }
}

fn each<const SIZE: usize>(from: &[u8], to: &mut [u8], change: impl Fn([u8; SIZE]) -> u16) {
    let (from, to) = (from.as_chunks::<SIZE>().0, to.as_chunks_mut::<2>().0);
    for (to, from) in to.iter_mut().zip(from) {
        *to = change(*from).to_le_bytes();
    }
}
