//! Weights that are drawn, for when only a model's speed matters.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut as _;
use stallfree_kernels::WeightType;

use crate::normal::Stream;
use crate::weight::{Cut, Weight, encode};

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

    /// Draws a part of the weight `name`; a norm's weights are ones, so that hidden states keep their size.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize], cut: &Cut) -> Weight<'static> {
        let cols: usize = shape.iter().skip(1).product();
        let (mut shape, mut drawn) = (shape.to_vec(), Drawn { first: 0, stride: 0, len: 0 });
        match cut {
            Cut::Whole => {}
            Cut::Rows(rows) => (shape[0], drawn.first) = (rows.len(), rows.start * cols),
            Cut::Columns(columns) => {
                (shape[1], drawn.first, drawn.stride) = (columns.len(), columns.start, cols);
                drawn.len = columns.len();
            }
        }
        let len: usize = shape.iter().product();
        if drawn.len == 0 {
            drawn.len = SHARE.min(len.max(1));
            drawn.stride = drawn.len;
        }
        let bytes = if name.ends_with("norm.weight") {
            encode(&vec![1.0; len], self.dtype)
        } else {
            match self.dtype {
                WeightType::F32 => self.draw::<4>(name, len, &drawn),
                _ => self.draw::<2>(name, len, &drawn),
            }
        };
        Weight { name: name.to_owned(), dtype: self.dtype, shape, bytes: bytes.into() }
    }

    fn draw<const SIZE: usize>(&self, name: &str, len: usize, drawn: &Drawn) -> Vec<u8> {
        let (table, _) = self.table.as_chunks::<SIZE>();
        let stream = Stream::named(name, 0);
        let mut bytes = vec![0; len * SIZE];
        let at_once = SHARE.div_ceil(drawn.len);
        let runs = bytes.par_chunks_mut(drawn.len * SIZE).with_min_len(at_once);
        runs.enumerate().for_each(|(i, run)| {
            fill(run, &stream, drawn.first + i * drawn.stride, table);
        });
        bytes
    }
}

/// Which of a weight's elements are drawn: runs of `len`, each `stride` behind the one before.
struct Drawn {
    first: usize,
    stride: usize,
    len: usize,
}

/// A random number of 64 bits draws this many from a table of 65,536.
const DRAWN_AT_ONCE: usize = 4;

/// How many a thread draws at once.
const SHARE: usize = 1 << 18;

/// Draws the elements from `first` on.
fn fill<const SIZE: usize>(bytes: &mut [u8], stream: &Stream, first: usize, table: &[[u8; SIZE]]) {
    let mut stream = stream.skip((first / DRAWN_AT_ONCE) as u64);
    let mut draw = |values: &mut [[u8; SIZE]], skipped: usize| {
        let bits = stream.bits() >> (16 * skipped);
        for (i, value) in values.iter_mut().enumerate() {
            *value = table[usize::from((bits >> (16 * i)) as u16)];
        }
    };
    let (values, _) = bytes.as_chunks_mut::<SIZE>();
    let skipped = first % DRAWN_AT_ONCE;
    let head = if skipped == 0 { 0 } else { (DRAWN_AT_ONCE - skipped).min(values.len()) };
    let (head, values) = values.split_at_mut(head);
    if !head.is_empty() {
        draw(head, skipped);
    }
    let (whole, tail) = values.as_chunks_mut::<DRAWN_AT_ONCE>();
    whole.iter_mut().for_each(|values| draw(values, 0));
    if !tail.is_empty() {
        draw(tail, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_normal_and_named() {
        let dummy = Dummy::new(WeightType::F32);
        let values = |name: &str| dummy.tensor(name, &[300, 333], &Cut::Whole).to_f32();
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

    #[test]
    fn a_part_is_drawn_as_in_the_whole() {
        let dummy = Dummy::new(WeightType::BF16);
        let shape = [7, 333];
        let draw = |cut: &Cut| dummy.tensor("weight", &shape, cut);
        for cut in [Cut::Rows(2..5), Cut::Columns(0..100), Cut::Columns(101..333)] {
            let (part, whole) = (draw(&cut), draw(&Cut::Whole).cut(&cut).expect("plain weights"));
            assert_eq!((part.shape, part.bytes), (whole.shape, whole.bytes), "{cut:?}");
        }
    }
}
