//! Rows times plain weights.
//!
//! Each result is one chain of fused multiply-adds in the order of the columns, so it does not depend on the tokens and panels that
//! are worked on at once.

use super::int_gemm::Stored;
use super::simd::{LANES, Simd};

/// Sixteen results for each of `P` consecutive panels and `T` tokens.
#[inline(always)]
pub(super) fn float_panels<S: Simd, E: Stored, const P: usize, const T: usize>(
    s: S,
    weights: &[[E; LANES]],
    first_panel: usize,
    x: [&[f32]; T],
) -> [[S::F; T]; P] {
    let cols = x[0].len();
    let x = x.map(|row| &row[..cols]);
    let mut panels = [weights; P];
    for (i, panel) in panels.iter_mut().enumerate() {
        *panel = &weights[(first_panel + i) * cols..][..cols];
    }
    let mut out = [[s.splat(0.0); T]; P];
    for col in 0..cols {
        for p in 0..P {
            let weight = E::load(s, &panels[p][col]);
            for t in 0..T {
                out[p][t] = s.fma(weight, s.splat(x[t][col]), out[p][t]);
            }
        }
    }
    out
}
