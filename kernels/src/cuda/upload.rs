//! Weights on their way to the device: any stored type becomes the device's 16-bit one.

use half::{bf16, f16};
use stallfree_device::Dtype;

use crate::cpu::dequantize;
use crate::{KernelError, WeightTensor, WeightType};

/// Returns a weight's elements as 16-bit floats.
pub(super) fn converted(part: &WeightTensor<'_>, dtype: Dtype) -> Result<Vec<u16>, KernelError> {
    let from_f32 = |value: f32| match dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        Dtype::Bf16 | Dtype::F32 => bf16::from_f32(value).to_bits(),
    };
    let halves = || part.bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    let expected = part.dtype.bytes_for(part.shape.iter().product());
    if part.bytes.len() != expected {
        let (operand, got) = (part.name.to_owned(), part.bytes.len());
        return Err(KernelError::Bytes { operand, expected, got });
    }
    Ok(match (part.dtype, dtype) {
        (WeightType::BF16, Dtype::Bf16) | (WeightType::F16, Dtype::F16) => halves().collect(),
        (WeightType::BF16, _) => halves().map(|b| from_f32(bf16::from_bits(b).to_f32())).collect(),
        (WeightType::F16, _) => halves().map(|b| from_f32(f16::from_bits(b).to_f32())).collect(),
        (WeightType::F32, _) => {
            let words = part.bytes.as_chunks::<4>().0.iter();
            words.map(|bytes| from_f32(f32::from_le_bytes(*bytes))).collect()
        }
        _ => dequantize(part)?.into_iter().map(from_f32).collect(),
    })
}
