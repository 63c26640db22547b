//! Sixteen lanes as two AVX2 registers.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_GE_OQ, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_add_ps,
    _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps, _mm_prefetch, _mm_shuffle_ps,
    _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256,
    _mm256_andnot_ps, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cmp_ps,
    _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32,
    _mm256_cvtps_ph, _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi32, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
};

use super::{Kernel, LANES, Simd};

/// The proof that AVX2, FMA and F16C are there.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        there.then_some(Self(()))
    }

    #[inline]
    pub(super) fn dispatch<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) {
            kernel.run(simd);
        }
        // SAFETY: `self` exists only where the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Adds lane i to i + 4, then i to i + 2, then the two.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn sum8(a: __m256) -> f32 {
    // SAFETY: the caller promises AVX.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Calls an intrinsic; the proof is `self`.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` exists only where the CPU has the features, and all memory is reached through references of its size.
        unsafe { $call }
    };
}

/// Both halves of an array.
macro_rules! halves {
    ($x:expr) => {{
        let pointer = $x.as_ptr();
        // SAFETY: the array has sixteen elements.
        [pointer, unsafe { pointer.add(8) }]
    }};
}

#[inline(always)]
fn both<A: Copy, R: Copy>(a: [A; 2], f: impl Fn(A) -> R) -> [R; 2] {
    [f(a[0]), f(a[1])]
}

/// Adds products of unsigned bytes `u` and signed bytes `a`, whose pairs must not exceed 16 bits.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn dot_half(sum: __m256i, u: __m256i, a: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2.
    unsafe {
        let pairs = _mm256_maddubs_epi16(u, a);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type U = [__m256i; 2];
    const TILE: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        let [low, high] = halves!(x);
        op!([_mm256_loadu_ps(low), _mm256_loadu_ps(high)])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Self::F) {
        let (low, high) = to.split_at_mut(8);
        op!({
            _mm256_storeu_ps(low.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), x[1]);
        });
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        let [low, high] = halves!(x);
        op!([
            _mm256_cvtph_ps(_mm_loadu_si128(low.cast::<__m128i>())),
            _mm256_cvtph_ps(_mm_loadu_si128(high.cast::<__m128i>())),
        ])
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        both(halves!(x), |half| {
            op!({
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(half.cast::<__m128i>()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            })
        })
    }
    #[inline(always)]
    fn to_f16(self, x: Self::F) -> [u16; LANES] {
        let mut bits = [0; LANES];
        let (low, high) = bits.split_at_mut(8);
        op!({
            let halves = both(x, |half| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(half));
            _mm_storeu_si128(low.as_mut_ptr().cast(), halves[0]);
            _mm_storeu_si128(high.as_mut_ptr().cast(), halves[1]);
        });
        bits
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        op!({
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        })
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn keep_at_least(self, x: Self::F, test: Self::F, limit: f32) -> Self::F {
        op!({
            let limit = _mm256_set1_ps(limit);
            [
                _mm256_and_ps(x[0], _mm256_cmp_ps::<_CMP_GE_OQ>(test[0], limit)),
                _mm256_and_ps(x[1], _mm256_cmp_ps::<_CMP_GE_OQ>(test[1], limit)),
            ]
        })
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        op!(sum8(_mm256_add_ps(a[0], a[1])))
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        let mut lanes = [0.0; 8];
        op!(_mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_max_ps(a[0], a[1])));
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        // The rounding mode is the default, to nearest: Rust code may not change it.
        op!([_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])])
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        op!([_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])])
    }
    #[inline(always)]
    fn pow2(self, a: Self::I) -> Self::F {
        both(a, |half| {
            op!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                half,
                _mm256_set1_epi32(127)
            ))))
        })
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        op!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn sum_int(self, a: Self::I) -> i32 {
        let mut lanes = [0i32; 8];
        op!(_mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(a[0], a[1])));
        lanes.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [i8; LANES], a: Self::I) {
        let mut lanes = [0i32; LANES];
        let (low, high) = lanes.split_at_mut(8);
        op!({
            _mm256_storeu_si256(low.as_mut_ptr().cast(), a[0]);
            _mm256_storeu_si256(high.as_mut_ptr().cast(), a[1]);
        });
        for (byte, lane) in to.iter_mut().zip(lanes) {
            *byte = lane as i8;
        }
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> Self::U {
        let (low, high) = x.split_at(32);
        op!([
            _mm256_loadu_si256(low.as_ptr().cast::<__m256i>()),
            _mm256_loadu_si256(high.as_ptr().cast::<__m256i>()),
        ])
    }
    #[inline(always)]
    fn low_nibbles(self, x: Self::U) -> Self::U {
        both(x, |half| op!(_mm256_and_si256(half, _mm256_set1_epi8(15))))
    }
    #[inline(always)]
    fn high_nibbles(self, x: Self::U) -> Self::U {
        both(x, |half| op!(_mm256_and_si256(_mm256_srli_epi16::<4>(half), _mm256_set1_epi8(15))))
    }
    #[inline(always)]
    fn dot_small(self, sum: Self::I, u: Self::U, a: i32) -> Self::I {
        op!({
            let a = _mm256_set1_epi32(a);
            [dot_half(sum[0], u[0], a), dot_half(sum[1], u[1], a)]
        })
    }
    #[inline(always)]
    fn dot(self, sum: Self::I, u: Self::U, a: i32) -> Self::I {
        // A pair of products with a whole byte may pass 16 bits; the top bit's share is added on its own.
        let small = both(u, |half| op!(_mm256_and_si256(half, _mm256_set1_epi8(127))));
        let top = both(u, |half| op!(_mm256_and_si256(half, _mm256_set1_epi8(-128))));
        self.dot_small(self.dot_small(sum, small, a), top, a)
    }
}
