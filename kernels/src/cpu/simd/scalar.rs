//! Sixteen lanes as an array, for the compiler to vectorize as it can.

use std::array::from_fn;

use half::{bf16, f16};

use super::{LANES, Simd};

/// No instruction beyond the compiler's target.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

#[inline(always)]
fn nibbles(x: [u8; 64], shift: u32) -> [u8; 64] {
    from_fn(|i| (x[i] >> shift) & 15)
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type U = [u8; 4 * LANES];
    const TILE: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Self::F) {
        *to = x;
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        x.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        x.map(|bits| bf16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn to_f16(self, x: Self::F) -> [u16; LANES] {
        x.map(|x| f16::from_f32(x).to_bits())
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // As the vector instructions do: the second operand unless the first is greater.
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn keep_at_least(self, x: Self::F, test: Self::F, limit: f32) -> Self::F {
        from_fn(|i| if test[i] >= limit { x[i] } else { 0.0 })
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        let a: [f32; 8] = from_fn(|i| a[i] + a[i + 8]);
        let a: [f32; 4] = from_fn(|i| a[i] + a[i + 4]);
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::I {
        a.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    fn pow2(self, a: Self::I) -> Self::F {
        a.map(|x| f32::from_bits(((x + 127) << 23) as u32))
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn sum_int(self, a: Self::I) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [i8; LANES], a: Self::I) {
        *to = a.map(|x| x as i8);
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> Self::U {
        *x
    }
    #[inline(always)]
    fn low_nibbles(self, x: Self::U) -> Self::U {
        nibbles(x, 0)
    }
    #[inline(always)]
    fn high_nibbles(self, x: Self::U) -> Self::U {
        nibbles(x, 4)
    }
    #[inline(always)]
    fn dot_small(self, sum: Self::I, u: Self::U, a: i32) -> Self::I {
        self.dot(sum, u, a)
    }
    #[inline(always)]
    fn dot(self, sum: Self::I, u: Self::U, a: i32) -> Self::I {
        let a = a.to_le_bytes().map(|byte| i32::from(byte as i8));
        from_fn(|i| {
            let products: [i32; 4] = from_fn(|j| i32::from(u[4 * i + j]) * a[j]);
            sum[i] + products[0] + products[1] + products[2] + products[3]
        })
    }
}
