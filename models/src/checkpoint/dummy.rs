//! Weights that are drawn, for when only a model's speed matters.

use stallfree_kernels::WeightType;

use crate::normal::Stream;
use crate::weight::{Weight, encode};

const STD: f64 = 0.02;

/// Normal numbers to draw weights from. Each weight is drawn from its own stream, named after it, so any part of a model can be
/// made alone; drawing from a table makes billions of weights a matter of memory speed.
#[derive(Debug)]
pub(crate) struct Dummy {
    dtype: WeightType,
    /// 65,536 numbers of `dtype`.
    table: Vec<u8>,
}

impl Dummy {
    pub(crate) fn new(dtype: WeightType) -> Self {
        let normals = Stream::named("normals", 0).normals(1 << 16, STD);
        Self { dtype, table: encode(&normals, dtype) }
    }

    pub(crate) fn dtype(&self) -> WeightType {
        self.dtype
    }

    /// Draws the weight `name`; a norm's weights are ones, so that hidden states keep their size.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Weight<'static> {
        let len: usize = shape.iter().product();
        let bytes = if name.ends_with("norm.weight") {
            encode(&vec![1.0; len], self.dtype)
        } else {
            match self.dtype {
                WeightType::F32 => self.draw::<4>(name, len),
                _ => self.draw::<2>(name, len),
            }
        };
        Weight {
            name: name.to_owned(),
            dtype: self.dtype,
            shape: shape.to_vec(),
            bytes: bytes.into(),
        }
    }

    fn draw<const SIZE: usize>(&self, name: &str, len: usize) -> Vec<u8> {
        let (table, _) = self.table.as_chunks::<SIZE>();
        let mut stream = Stream::named(name, 0);
        let mut bytes = Vec::with_capacity(len.next_multiple_of(4) * SIZE);
        while bytes.len() < len * SIZE {
            let bits = stream.bits();
            for shift in [0, 16, 32, 48] {
                bytes.extend_from_slice(&table[usize::from((bits >> shift) as u16)]);
            }
        }
        bytes.truncate(len * SIZE);
        bytes
    }
}
