//! Weights that are drawn, for when only a model's speed matters.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;
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
        let stream = Stream::named(name, 0);
        let mut bytes = vec![0; len.next_multiple_of(DRAWN_AT_ONCE) * SIZE];
        bytes.par_chunks_mut(SHARE * SIZE).enumerate().for_each(|(i, part)| {
            fill(part, stream.skip((i * SHARE / DRAWN_AT_ONCE) as u64), table);
        });
        bytes.truncate(len * SIZE);
        bytes
    }
}

/// A random number of 64 bits draws this many from a table of 65,536.
const DRAWN_AT_ONCE: usize = 4;

/// How many a thread draws at once.
const SHARE: usize = 1 << 18;

fn fill<const SIZE: usize>(bytes: &mut [u8], mut stream: Stream, table: &[[u8; SIZE]]) {
    let (values, _) = bytes.as_chunks_mut::<SIZE>();
    for values in values.chunks_exact_mut(DRAWN_AT_ONCE) {
        let bits = stream.bits();
        for (i, value) in values.iter_mut().enumerate() {
            *value = table[usize::from((bits >> (16 * i)) as u16)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_normal_and_named() {
        let dummy = Dummy::new(WeightType::F32);
        let values = |name: &str| dummy.tensor(name, &[300, 333]).floats().unwrap_or_default();
        let (first, second) = (values("first"), values("second"));
        assert_eq!(first, values("first"));
        assert!(first[..1000] != second[..1000]);
        let mean = first.iter().sum::<f32>() / first.len() as f32;
        let variance = first.iter().map(|x| x * x).sum::<f32>() / first.len() as f32;
        assert!(mean.abs() < 3e-4, "mean {mean}");
        assert!((variance.sqrt() - 0.02).abs() < 2e-4, "standard deviation {}", variance.sqrt());
        let beyond = first.iter().filter(|x| x.abs() > 0.04).count() as f32 / first.len() as f32;
        assert!((beyond - 0.0455).abs() < 3e-3, "{beyond} beyond two standard deviations");
    }
}
