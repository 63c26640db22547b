//! A weight on its way from a file to a backend.

use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};
use stallfree_kernels::cpu::dequantize;
use stallfree_kernels::{KernelError, WeightTensor, WeightType};

use crate::Error;

/// A weight's bytes, borrowed from the file where they need no change.
#[derive(Clone, Debug)]
pub(crate) struct Weight<'a> {
    /// Its name in the file.
    pub(crate) name: String,
    pub(crate) dtype: WeightType,
    /// Rows first.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Cow<'a, [u8]>,
}

/// Which part of a weight a rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All of it.
    Whole,
    /// Some rows, or elements of a vector: a share of a product's outputs.
    Rows(Range<usize>),
    /// Some columns: a share of a product's inputs.
    Columns(Range<usize>),
}

impl Weight<'_> {
    pub(crate) fn as_tensor(&self) -> WeightTensor<'_> {
        WeightTensor { name: &self.name, dtype: self.dtype, shape: &self.shape, bytes: &self.bytes }
    }

    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.shape.first().copied().unwrap_or(1).max(1)
    }

    /// Returns a part.
    ///
    /// # Errors
    /// The part's columns are not whole blocks of a quantized weight.
    pub(crate) fn cut(self, cut: &Cut) -> Result<Self, Error> {
        match cut {
            Cut::Whole => Ok(self),
            Cut::Rows(rows) => Ok(self.rows(rows.clone())),
            Cut::Columns(columns) => self.columns(columns.clone()),
        }
    }

    /// Returns some columns, which are copied.
    fn columns(self, columns: Range<usize>) -> Result<Self, Error> {
        let (block, row_bytes) = (self.dtype.block_len(), self.row_bytes());
        if !columns.start.is_multiple_of(block) || !columns.end.is_multiple_of(block) {
            let problem = format!(
                "weight {} is {:?}, whose blocks of {block} elements would be cut",
                self.name, self.dtype
            );
            return Err(Error::Split { flag: "--tensor-parallel-size", problem });
        }
        let range = self.dtype.bytes_for(columns.start)..self.dtype.bytes_for(columns.end);
        let mut bytes = Vec::with_capacity(self.shape[0] * range.len());
        for row in self.bytes.chunks_exact(row_bytes.max(1)) {
            bytes.extend_from_slice(&row[range.clone()]);
        }
        let shape = vec![self.shape[0], columns.len()];
        Ok(Self { shape, bytes: bytes.into(), ..self })
    }

    /// Returns some rows, without copying what is borrowed.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        let row_bytes = self.row_bytes();
        let range = rows.start * row_bytes..rows.end * row_bytes;
        let bytes = match &self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
            Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
        };
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self { name: self.name.clone(), dtype: self.dtype, shape, bytes }
    }

    /// Orders the rows of each head as [`Backend`](stallfree_kernels::Backend) rotates them, in pairs (i, i + head_dim / 2);
    /// the file has the two of a pair side by side. Rows stay whole, so quantized ones move like any others.
    pub(crate) fn unpair_rows(self, head_dim: usize) -> Self {
        let row_bytes = self.row_bytes();
        let half = head_dim / 2;
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for head in self.bytes.chunks_exact(head_dim * row_bytes) {
            for row in 0..head_dim {
                let start = (2 * (row % half) + row / half) * row_bytes;
                bytes.extend_from_slice(&head[start..start + row_bytes]);
            }
        }
        Self { bytes: bytes.into(), ..self }
    }

    /// Converts weights to a plain type. Quantized ones stay as they are unless to single precision, which loses nothing.
    pub(crate) fn converted(self, dtype: WeightType) -> Result<Self, KernelError> {
        let is_quantized = self.dtype.block_len() > 1;
        if self.dtype == dtype || is_quantized && dtype != WeightType::F32 {
            return Ok(self);
        }
        let values = if is_quantized { dequantize(&self.as_tensor())? } else { self.to_f32() };
        Ok(Self { dtype, bytes: encode(&values, dtype).into(), ..self })
    }

    /// Returns a plain weight's values, as every vector is.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let (pairs, _) = self.bytes.as_chunks::<2>();
        let (quads, _) = self.bytes.as_chunks::<4>();
        match self.dtype {
            WeightType::BF16 => {
                pairs.iter().map(|&pair| bf16::from_le_bytes(pair).to_f32()).collect()
            }
            WeightType::F16 => {
                pairs.iter().map(|&pair| f16::from_le_bytes(pair).to_f32()).collect()
            }
            _ => quads.iter().map(|&quad| f32::from_le_bytes(quad)).collect(),
        }
    }
}

/// Writes `values` as the plain type `dtype`.
pub(crate) fn encode(values: &[f32], dtype: WeightType) -> Vec<u8> {
    match dtype {
        WeightType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        WeightType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}
