//! Sixteen lanes, whatever the CPU.
//!
//! Every kernel is written once over [`Simd`]. Each operation rounds as IEEE 754 says and each reduction has one fixed order, so
//! a kernel's result is the same, bit for bit, with AVX-512, AVX2 and without either. What a kernel computes is not known here;
//! the first of them is [`super::int_gemm`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::fmt;

/// Lanes of a vector of floats.
pub(super) const LANES: usize = 16;

/// The instruction sets that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// No more than the compiler's target has.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL) with VNNI.
    Avx512,
}

impl Isa {
    /// Every one, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Returns the fastest that this CPU has.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Returns how many tokens a quantized product works on at once: [`Simd::TILE`].
    pub(super) const fn tile(self) -> usize {
        match self {
            Self::Avx512 => 8,
            Self::Portable | Self::Avx2 => 4,
        }
    }

    /// Returns whether this CPU has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable code",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512 VNNI",
        })
    }
}

/// Work that is compiled once for each instruction set.
pub(super) trait Kernel {
    /// Does the work. Must be `#[inline(always)]`, as must be all that it calls with `simd`: only then is it compiled with the
    /// instructions that `simd` stands for.
    fn run<S: Simd>(self, simd: S);
}

/// Runs `kernel` with the instructions of `isa`, which the CPU has.
#[inline]
pub(super) fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512 => {
            if let Some(simd) = avx512::Avx512::detect() {
                return simd.dispatch(kernel);
            }
        }
        Isa::Avx2 => {
            if let Some(simd) = avx2::Avx2::detect() {
                return simd.dispatch(kernel);
            }
        }
        Isa::Portable => {}
    }
    let _ = isa;
    kernel.run(scalar::Scalar);
}

/// A vector unit of sixteen lanes. A value of an implementing type is the proof that the CPU has its instructions.
pub(super) trait Simd: Copy {
    /// Sixteen floats.
    type F: Copy;
    /// Sixteen integers.
    type I: Copy;
    /// Sixty-four bytes: four for each lane.
    type U: Copy;
    /// How many tokens a matrix kernel works on at once, for the registers that there are.
    const TILE: usize;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, to: &mut [f32; LANES], x: Self::F);
    /// Loads half-precision floats, given as their bits.
    fn load_f16(self, x: &[u16; LANES]) -> Self::F;
    /// Loads bfloat16 floats, given as their bits.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F;
    /// Rounds to half precision, as bits.
    fn to_f16(self, x: Self::F) -> [u16; LANES];

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// Returns `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Returns `x` where `test >= limit`, else zero.
    fn keep_at_least(self, x: Self::F, test: Self::F, limit: f32) -> Self::F;
    /// Adds lane i to i + 8, the eight sums' lane i to i + 4, and so on.
    fn sum(self, a: Self::F) -> f32;
    fn largest(self, a: Self::F) -> f32;

    /// Rounds to the nearest integer, halves to even.
    fn round(self, a: Self::F) -> Self::I;
    fn to_float(self, a: Self::I) -> Self::F;
    /// Returns two to the power of each lane, which is in -126..=127.
    fn pow2(self, a: Self::I) -> Self::F;
    fn splat_int(self, x: i32) -> Self::I;
    /// Returns the lanes' sum, which wraps.
    fn sum_int(self, a: Self::I) -> i32;
    /// Stores lanes that fit in a byte.
    fn store_bytes(self, to: &mut [i8; LANES], a: Self::I);

    /// Asks for a cache line that will be needed; the address need not be valid.
    fn prefetch(self, address: *const u8);
    fn load_bytes(self, x: &[u8; 4 * LANES]) -> Self::U;
    fn low_nibbles(self, x: Self::U) -> Self::U;
    fn high_nibbles(self, x: Self::U) -> Self::U;
    /// Adds to each lane the dot product of its four bytes in `u`, below 128, with the four signed bytes of `a`, above -128.
    fn dot_small(self, sum: Self::I, u: Self::U, a: i32) -> Self::I;
    /// As [`dot_small`](Self::dot_small), for any bytes in `u`.
    fn dot(self, sum: Self::I, u: Self::U, a: i32) -> Self::I;
}

/// Returns e to the power of each lane, to 2 units in the last place; zero below -87.
///
/// # Source
/// Cody and Waite's reduction by ln 2 in two parts, then a degree-6 Taylor polynomial on ±ln 2 / 2.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = s.min(s.max(x, s.splat(-87.0)), s.splat(88.0));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let n_float = s.to_float(n);
    let r = s.fma(n_float, s.splat(-LN2_HIGH), clamped);
    let r = s.fma(n_float, s.splat(-LN2_LOW), r);
    let mut poly = s.splat(1.0 / 720.0);
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        poly = s.fma(poly, r, s.splat(coefficient));
    }
    s.keep_at_least(s.mul(poly, s.pow2(n)), x, -87.0)
}

/// Returns up to sixteen floats and zeros after them.
#[inline(always)]
pub(super) fn padded(x: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (lane, x) in lanes.iter_mut().zip(x) {
        *lane = *x;
    }
    lanes
}
