//! Blocks of the GGUF formats, taken apart into codes, scales and minimums.
//!
//! Every format says `weight = scale * (code - offset) + min` with an unsigned code; only how the parts are packed differs.
//!
//! # Source
//! The GGUF specification's table of tensor types; the K-quants are those of llama.cpp's pull request 1684.

use half::f16;

use crate::WeightType;

/// Elements of the longest block.
const MAX_BLOCK: usize = 256;

/// How a quantized type is kept for computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IntFormat {
    /// Bits that hold a code: 4; 7 for a byte below 128; 8.
    pub(super) bits: u8,
    /// Elements that share a scale.
    pub(super) scale_len: usize,
    /// What is subtracted from a code.
    pub(super) offset: u8,
    /// Whether a minimum is added.
    pub(super) has_min: bool,
    /// Whether scales are half-precision floats, and not products with one.
    pub(super) half_scales: bool,
}

impl IntFormat {
    /// Returns the format of a quantized type, `None` for a plain one.
    pub(super) const fn of(dtype: WeightType) -> Option<Self> {
        let (bits, scale_len, offset, has_min, half_scales) = match dtype {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => return None,
            WeightType::Q4_0 => (4, 32, 8, false, true),
            WeightType::Q4_1 => (4, 32, 0, true, true),
            WeightType::Q5_0 => (7, 32, 16, false, true),
            WeightType::Q5_1 => (7, 32, 0, true, true),
            WeightType::Q8_0 => (8, 32, 128, false, true),
            WeightType::Q2K => (4, 16, 0, true, false),
            WeightType::Q3K => (4, 16, 4, false, false),
            WeightType::Q4K => (4, 32, 0, true, false),
            WeightType::Q5K => (7, 32, 0, true, false),
            WeightType::Q6K => (7, 16, 32, false, false),
            WeightType::Q8K => (8, 32, 128, false, false),
        };
        Some(Self { bits, scale_len, offset, has_min, half_scales })
    }
}

/// A block taken apart.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// A code an element.
    pub(super) codes: [u8; MAX_BLOCK],
    /// A scale for each `scale_len` elements.
    pub(super) scales: [f32; MAX_BLOCK / 16],
    /// As many minimums.
    pub(super) mins: [f32; MAX_BLOCK / 16],
}

impl Default for Unpacked {
    fn default() -> Self {
        Self { codes: [0; MAX_BLOCK], scales: [0.0; 16], mins: [0.0; 16] }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

impl Unpacked {
    /// Takes apart one block of a quantized type.
    pub(super) fn read(&mut self, dtype: WeightType, block: &[u8]) {
        match dtype {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {}
            WeightType::Q4_0 => self.simple(block, 2, None),
            WeightType::Q4_1 => self.simple(block, 4, None),
            WeightType::Q5_0 => self.simple(block, 6, Some(2)),
            WeightType::Q5_1 => self.simple(block, 8, Some(4)),
            WeightType::Q8_0 => {
                self.scales[0] = half_at(block, 0);
                self.signed(&block[2..34]);
            }
            WeightType::Q2K => self.q2k(block),
            WeightType::Q3K => self.q3k(block),
            WeightType::Q4K => self.q4k(block, 16, None),
            WeightType::Q5K => self.q4k(block, 48, Some(16)),
            WeightType::Q6K => self.q6k(block),
            WeightType::Q8K => {
                let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                self.scales[..8].fill(scale);
                self.signed(&block[4..260]);
            }
        }
    }

    /// Bytes in two's complement, moved up by 128.
    fn signed(&mut self, bytes: &[u8]) {
        for (code, byte) in self.codes.iter_mut().zip(bytes) {
            *code = byte ^ 128;
        }
    }

    /// Sixteen bytes of nibbles at `at`, first halves first; fifth bits at `high` if there are any.
    fn simple(&mut self, block: &[u8], at: usize, high: Option<usize>) {
        self.scales[0] = half_at(block, 0);
        self.mins[0] = half_at(block, 2);
        for (i, byte) in block[at..at + 16].iter().enumerate() {
            self.codes[i] = byte & 15;
            self.codes[i + 16] = byte >> 4;
        }
        if let Some(high) = high {
            for (i, code) in self.codes[..32].iter_mut().enumerate() {
                *code |= (block[high + i / 8] >> (i % 8) & 1) << 4;
            }
        }
    }

    /// Two bits an element; a nibble of scale and one of minimum for each sixteen.
    fn q2k(&mut self, block: &[u8]) {
        let (scales, codes) = (&block[..16], &block[16..80]);
        let (d, dmin) = (half_at(block, 80), half_at(block, 82));
        for (i, packed) in scales.iter().enumerate() {
            self.scales[i] = d * f32::from(packed & 15);
            self.mins[i] = -(dmin * f32::from(packed >> 4));
        }
        self.two_bits(codes);
    }

    /// Each byte holds elements 32 apart.
    fn two_bits(&mut self, bytes: &[u8]) {
        for (i, code) in self.codes.iter_mut().enumerate() {
            let (half, shift, lane) = (i / 128, i / 32 % 4, i % 32);
            *code = bytes[half * 32 + lane] >> (2 * shift) & 3;
        }
    }

    /// Two bits and a mask's third; sixteen scales of six bits in twelve bytes.
    fn q3k(&mut self, block: &[u8]) {
        let (mask, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
        let d = half_at(block, 108);
        for i in 0..16 {
            let low = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
            let high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
            self.scales[i] = d * (f32::from(low | high << 4) - 32.0);
        }
        self.two_bits(codes);
        for (i, code) in self.codes.iter_mut().enumerate() {
            *code |= (mask[i % 32] >> (i / 32) & 1) << 2;
        }
    }

    /// Nibbles at `at`, 32 low ones before their 32 high ones; fifth bits at `high` if there are any.
    fn q4k(&mut self, block: &[u8], at: usize, high: Option<usize>) {
        let (d, dmin, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
        for i in 0..8 {
            let (scale, min) = if i < 4 {
                (packed[i] & 63, packed[i + 4] & 63)
            } else {
                (
                    packed[i + 4] & 15 | packed[i - 4] >> 6 << 4,
                    packed[i + 4] >> 4 | packed[i] >> 6 << 4,
                )
            };
            self.scales[i] = d * f32::from(scale);
            self.mins[i] = -(dmin * f32::from(min));
        }
        for (i, code) in self.codes.iter_mut().enumerate() {
            let (part, lane) = (i / 32, i % 32);
            *code = block[at + part / 2 * 32 + lane] >> (4 * (part % 2)) & 15;
            if let Some(high) = high {
                *code |= (block[high + lane] >> part & 1) << 4;
            }
        }
    }

    /// Nibbles and two more bits; sixteen signed scales.
    fn q6k(&mut self, block: &[u8]) {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let d = half_at(block, 208);
        for (to, scale) in self.scales.iter_mut().zip(scales) {
            *to = d * f32::from(scale.cast_signed());
        }
        for (i, code) in self.codes.iter_mut().enumerate() {
            let (half, part, lane) = (i / 128, i / 32 % 4, i % 32);
            let nibble = low[half * 64 + part % 2 * 32 + lane] >> (4 * (part / 2)) & 15;
            *code = nibble | (high[half * 32 + lane] >> (2 * part) & 3) << 4;
        }
    }
}
