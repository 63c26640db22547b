//! Normal random numbers that depend on a name and on nothing else.

use std::f64::consts::TAU;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers, the same on every machine and in every version.
#[derive(Debug)]
pub(crate) struct Stream(u64);

impl Stream {
    /// Starts the stream of `name`, by its FNV-1a hash.
    pub(crate) fn named(name: &str, seed: u64) -> Self {
        let start = 0xcbf2_9ce4_8422_2325 ^ seed;
        Self(
            name.bytes()
                .fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
        )
    }

    /// Returns this stream without its first `count` numbers.
    pub(crate) fn skip(&self, count: u64) -> Self {
        Self(self.0.wrapping_add(STEP.wrapping_mul(count)))
    }

    /// Returns the next 64 random bits (SplitMix64, Steele et al. 2014).
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Returns `len` normal numbers of mean 0 (Box and Muller 1958).
    pub(crate) fn normals(&mut self, len: usize, std: f64) -> Vec<f32> {
        let mut values = Vec::with_capacity(len + 1);
        while values.len() < len {
            let radius = std * (-2.0 * self.unit().ln()).sqrt();
            let (sin, cos) = (TAU * self.unit()).sin_cos();
            values.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        values.truncate(len);
        values
    }

    /// Returns a number in (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}
