//! Which part of a model a rank holds.

use std::ops::Range;

/// One of several equal shares: the rank's place among those that share something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Which one, below `of`.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Returns this share of `len` things; shares differ by one at most.
    #[must_use]
    pub const fn range(self, len: usize) -> Range<usize> {
        self.index * len / self.of..(self.index + 1) * len / self.of
    }

    /// Returns this share of `len` things where shares begin at multiples of `unit`: all shares have the size of the first, but for
    /// the last ones, which have what is left.
    #[must_use]
    pub const fn range_of_units(self, len: usize, unit: usize) -> Range<usize> {
        let size = len.div_ceil(self.of).next_multiple_of(unit);
        let start = if self.index * size < len { self.index * size } else { len };
        let end = if start + size < len { start + size } else { len };
        start..end
    }

    /// Tells whether this is the first share.
    #[must_use]
    pub const fn is_first(self) -> bool {
        self.index == 0
    }

    /// Tells whether this is the last share.
    #[must_use]
    pub const fn is_last(self) -> bool {
        self.index + 1 == self.of
    }
}

/// Which part of a model a rank holds: a share of every layer's matrices, of a share of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// The share of each layer (tensor parallelism; Shoeybi et al. 2019, Megatron-LM, §3).
    pub tensor: Share,
    /// The share of the layers: the stage (pipeline parallelism).
    pub stage: Share,
}

impl Part {
    /// The whole model.
    pub const WHOLE: Self = Self { tensor: Share::WHOLE, stage: Share::WHOLE };

    /// Returns the parts of all ranks of a world of `tensor * stages`: the ranks of a stage are next to each other.
    #[must_use]
    pub fn all(tensor: usize, stages: usize) -> Vec<Self> {
        let part = |rank: usize| Self {
            tensor: Share { index: rank % tensor, of: tensor },
            stage: Share { index: rank / tensor, of: stages },
        };
        (0..tensor * stages).map(part).collect()
    }

    /// Returns how many ranks there are.
    #[must_use]
    pub const fn world_size(self) -> usize {
        self.tensor.of * self.stage.of
    }

    /// Returns the rank that holds this part.
    #[must_use]
    pub const fn rank(self) -> usize {
        self.stage.index * self.tensor.of + self.tensor.index
    }

    /// Returns the ranks of the same stage.
    #[must_use]
    pub const fn tensor_ranks(self) -> Range<usize> {
        let first = self.stage.index * self.tensor.of;
        first..first + self.tensor.of
    }

    /// Returns the ranks that hold the same share of the other stages, and this one.
    #[must_use]
    pub fn stage_ranks(self) -> Vec<usize> {
        (0..self.stage.of).map(|stage| stage * self.tensor.of + self.tensor.index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, Share};

    #[test]
    fn shares_cover_everything_once() {
        for (len, of, unit) in [(60, 2, 1), (61, 4, 1), (259, 2, 8), (259, 4, 8), (5, 3, 8)] {
            let shares = || (0..of).map(|index| Share { index, of });
            let all: Vec<usize> = shares().flat_map(|share| share.range(len)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>(), "{len} by {of}");
            let all: Vec<usize> =
                shares().flat_map(|share| share.range_of_units(len, unit)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>(), "{len} by {of} in units of {unit}");
        }
    }

    #[test]
    fn ranks_know_their_neighbours() {
        let parts = Part::all(2, 3);
        for (rank, part) in parts.iter().enumerate() {
            assert_eq!((part.rank(), part.world_size()), (rank, 6));
            assert!(part.tensor_ranks().contains(&rank) && part.stage_ranks().contains(&rank));
        }
        assert_eq!((parts[3].tensor_ranks(), parts[3].stage_ranks()), (2..4, vec![1, 3, 5]));
    }
}
