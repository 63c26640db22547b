//! Weights as they lie in a file.

/// The element type of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the formats' own")]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

impl WeightType {
    /// Returns how many elements a block holds; 1 for plain types.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Q8K => 256,
        }
    }

    /// Returns how many bytes a block takes.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Q8K => 292,
        }
    }

    /// Returns how many bytes `num_elements` take; they fill whole blocks.
    #[must_use]
    pub const fn bytes_for(self, num_elements: usize) -> usize {
        num_elements / self.block_len() * self.block_bytes()
    }
}

/// A weight as it lies in a file: row-major, its rows whole blocks.
#[derive(Clone, Debug)]
pub struct WeightTensor<'a> {
    /// The tensor's name, for errors.
    pub name: &'a str,
    /// Its element type.
    pub dtype: WeightType,
    /// Its shape, rows first: `[out_features, in_features]` for a linear layer, `[len]` for a vector.
    pub shape: &'a [usize],
    /// Its bytes, little-endian, of any alignment.
    pub bytes: &'a [u8],
}
