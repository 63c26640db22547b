//! Over how many ranks a model is spread.

/// Over how many ranks a model is spread, each on a device of its own or a share of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Ranks that share each layer.
    pub tensor: usize,
    /// Stages, one after the other, each with its share of the layers.
    pub pipeline: usize,
}

impl Parallel {
    /// One rank that has everything.
    pub const NONE: Self = Self { tensor: 1, pipeline: 1 };

    /// Returns how many ranks there are.
    #[must_use]
    pub const fn world_size(self) -> usize {
        self.tensor * self.pipeline
    }
}
