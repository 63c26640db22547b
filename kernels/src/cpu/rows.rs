//! The ops that work on each row by itself: norms, activation, look-up.

use super::memory::Shared;
use super::pool::{Pool, TASK_ELEMENTS};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch, exp, padded};

/// Calls `row` for each row below `num_rows`, of about `cols` elements' work each.
pub(super) fn for_each_row(
    pool: &mut Pool,
    num_rows: usize,
    cols: usize,
    row: &(dyn Fn(usize) + Sync),
) {
    let per_task = (TASK_ELEMENTS / cols.max(1)).max(1);
    pool.run(num_rows.div_ceil(per_task), &|_, task| {
        (task * per_task..((task + 1) * per_task).min(num_rows)).for_each(row);
    });
}

/// Sums the squares of `x`, lane by lane and then the lanes.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sum = s.splat(0.0);
    for chunk in chunks {
        let x = s.load(chunk);
        sum = s.fma(x, x, sum);
    }
    let rest = s.load(&padded(rest));
    s.sum(s.fma(rest, rest, sum))
}

/// Writes `x / rms(x) * weight`.
#[inline(always)]
pub(super) fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, to: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares(s, x) / x.len() as f32 + eps).sqrt();
    for ((x, weight), to) in x.iter().zip(weight).zip(to) {
        *to = x * scale * weight;
    }
}

/// The norm of a row, after adding it to the residual if there is one.
pub(super) struct Norm<'a> {
    pub(super) x: &'a [f32],
    pub(super) residual: Option<&'a mut [f32]>,
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) to: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.residual {
            Some(residual) => {
                for (sum, x) in residual.iter_mut().zip(self.x) {
                    *sum += x;
                }
                rms_norm(s, residual, self.weight, self.eps, self.to);
            }
            None => rms_norm(s, self.x, self.weight, self.eps, self.to),
        }
    }
}

/// One row of `silu(gate) * up`.
struct SiluMul<'a> {
    gate_up: &'a [f32],
    to: &'a mut [f32],
}

#[inline(always)]
fn silu_mul_lanes<S: Simd>(s: S, gate: &[f32; LANES], up: &[f32; LANES]) -> S::F {
    let (gate, up) = (s.load(gate), s.load(up));
    let one = s.splat(1.0);
    let sigmoid = s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), gate))));
    s.mul(s.mul(gate, sigmoid), up)
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (gate, up) = self.gate_up.split_at(self.to.len());
        let (gates, gate_rest) = gate.as_chunks::<LANES>();
        let (ups, up_rest) = up.as_chunks::<LANES>();
        let (tos, to_rest) = self.to.as_chunks_mut::<LANES>();
        for ((gate, up), to) in gates.iter().zip(ups).zip(tos) {
            s.store(to, silu_mul_lanes(s, gate, up));
        }
        let mut rest = [0.0; LANES];
        s.store(&mut rest, silu_mul_lanes(s, &padded(gate_rest), &padded(up_rest)));
        to_rest.copy_from_slice(&rest[..to_rest.len()]);
    }
}

/// Writes `silu(gate) * up` for rows `[gate | up]`.
pub(super) fn silu_mul(isa: Isa, pool: &mut Pool, gate_up: &[f32], ffn: usize, to: &mut [f32]) {
    let num_rows = to.len() / ffn.max(1);
    let to = Shared::new(to);
    // An exponential costs about what eight other operations do.
    for_each_row(pool, num_rows, 8 * ffn, &|row| {
        // SAFETY: each row is visited once.
        let to = unsafe { to.part(row * ffn..(row + 1) * ffn) };
        let gate_up = &gate_up[2 * row * ffn..2 * (row + 1) * ffn];
        dispatch(isa, SiluMul { gate_up, to });
    });
}
