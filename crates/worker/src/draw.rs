//! Drawing one token from adjusted logits.

use std::cmp::Ordering;

use stallfree_core::{SamplingParams, TokenId};

/// Returns the index of the largest logit, the lowest one on ties.
pub(crate) fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as TokenId
}

/// A token and its probability relative to the most likely token's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    token: TokenId,
    weight: f32,
}

impl Candidate {
    /// Most likely first, lower tokens first on ties.
    fn order(a: &Self, b: &Self) -> Ordering {
        b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
    }
}

/// Draws from `logits / temperature`, cut by min-p, top-k and top-p in this order, by inverse transform over the tokens in the
/// order of their ids.
///
/// `uniform` is in [0, 1); no logit is NaN or plus infinity.
pub(crate) fn draw(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<Candidate>,
) -> TokenId {
    let best = argmax(logits);
    let top = logits[best as usize];
    let lowest = params.min_p.max(f32::MIN_POSITIVE);
    candidates.clear();
    candidates.extend((0..).zip(logits).filter_map(|(token, &logit)| {
        // The largest is subtracted before dividing, so that no temperature is too small.
        let weight = ((logit - top) / params.temperature).exp();
        (weight >= lowest).then_some(Candidate { token, weight })
    }));
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, Candidate::order);
        candidates.truncate(top_k);
    }
    if params.top_p < 1.0 {
        keep_nucleus(candidates, params.top_p);
    }
    if top_k > 0 || params.top_p < 1.0 {
        candidates.sort_unstable_by_key(|candidate| candidate.token);
    }
    let mut rest = uniform * total(candidates);
    for candidate in &*candidates {
        rest -= f64::from(candidate.weight);
        if rest < 0.0 {
            return candidate.token;
        }
    }
    candidates.last().map_or(best, |last| last.token) // rounding left a sliver
}

/// Keeps the most likely candidates that together have at least `top_p` of the probability.
///
/// The nucleus is mostly small: a growing head is sorted, and the long tail never.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f32) {
    let wanted = total(candidates) * f64::from(top_p);
    let (mut sum, mut sorted, mut step) = (0.0, 0, 64);
    while sorted < candidates.len() {
        let tail = &mut candidates[sorted..];
        let taken = step.min(tail.len());
        if taken < tail.len() {
            tail.select_nth_unstable_by(taken - 1, Candidate::order);
        }
        tail[..taken].sort_unstable_by(Candidate::order);
        for (index, candidate) in tail[..taken].iter().enumerate() {
            sum += f64::from(candidate.weight);
            if sum >= wanted {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += taken;
        step *= 4;
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Returns draw `index` of the stream `seed`, uniform in [0, 1).
///
/// # Source
/// SplitMix64's finalizer (Steele, Lea, Flood 2014, §3), over seed and index.
pub(crate) fn uniform(seed: u64, index: usize) -> f64 {
    let mut bits = mix(seed ^ mix((index as u64).wrapping_add(0x9e37_79b9_7f4a_7c15)));
    bits = mix(bits.wrapping_add(0x9e37_79b9_7f4a_7c15));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use stallfree_core::SamplingParams;

    use super::{argmax, draw, uniform};

    /// Draws `n` tokens and compares their shares with `expected` within four standard errors.
    fn check(logits: &[f32], params: &SamplingParams, expected: &[f64]) {
        let n = 20_000;
        let mut counts = vec![0.0; logits.len()];
        let mut scratch = Vec::new();
        for index in 0..n {
            counts[draw(logits, params, uniform(7, index), &mut scratch) as usize] += 1.0;
        }
        for (token, (&count, &share)) in counts.iter().zip(expected).enumerate() {
            let error = 4.0 * (share * (1.0 - share) / n as f64).sqrt() + 1e-9;
            let got = count / n as f64;
            assert!((got - share).abs() <= error, "token {token}: {got} for {share} ({params:?})");
        }
    }

    #[test]
    fn shares_follow_the_settings() {
        let logits: Vec<f32> = [0.1f32, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect();
        let base = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
        check(&logits, &base, &[0.1, 0.4, 0.2, 0.3]);
        check(&logits, &SamplingParams { top_k: 1, ..base.clone() }, &[0.0, 1.0, 0.0, 0.0]);
        check(
            &logits,
            &SamplingParams { top_k: 2, ..base.clone() },
            &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        );
        check(
            &logits,
            &SamplingParams { top_p: 0.6, ..base.clone() },
            &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        );
        let min_p = SamplingParams { min_p: 0.45, ..base.clone() };
        check(&logits, &min_p, &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        let cold = SamplingParams { temperature: 0.5, ..base };
        check(&logits, &cold, &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
    }

    /// Sorts everything, cuts, and walks: what [`draw`] must amount to.
    fn naive(logits: &[f32], params: &SamplingParams, uniform: f64) -> u32 {
        let top = logits[argmax(logits) as usize];
        let weight = |logit: f32| ((logit - top) / params.temperature).exp();
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied().map(weight)).collect();
        all.retain(|&(_, weight)| weight > 0.0 && weight >= params.min_p);
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(if params.top_k == 0 { usize::MAX } else { params.top_k as usize });
        if params.top_p < 1.0 {
            let sum = |part: &[(u32, f32)]| part.iter().map(|&(_, w)| f64::from(w)).sum::<f64>();
            let wanted = sum(&all) * f64::from(params.top_p);
            let kept = (1..=all.len()).find(|&n| sum(&all[..n]) >= wanted);
            all.truncate(kept.unwrap_or(all.len()));
        }
        all.sort_by_key(|&(token, _)| token);
        let mut rest = uniform * all.iter().map(|&(_, weight)| f64::from(weight)).sum::<f64>();
        for &(token, weight) in &all {
            rest -= f64::from(weight);
            if rest < 0.0 {
                return token;
            }
        }
        all[all.len() - 1].0
    }

    proptest::proptest! {
        #[test]
        fn cutting_by_selection_equals_cutting_by_sorting(
            logits in proptest::collection::vec(-40_i8..40, 1..400),
            (top_k, top_p, min_p) in (0_u32..90, 0_u8..=10, 0_u8..4),
            temperature in 1_u8..30,
            at in 0_usize..1000,
        ) {
            // Coarse steps, so that ties are common.
            let logits: Vec<f32> = logits.into_iter().map(|logit| f32::from(logit) / 4.0).collect();
            let params = SamplingParams {
                temperature: f32::from(temperature) / 10.0,
                top_k,
                top_p: f32::from(top_p) / 10.0,
                min_p: f32::from(min_p) / 10.0,
                ..SamplingParams::greedy()
            };
            let u = uniform(3, at);
            let got = draw(&logits, &params, u, &mut Vec::new());
            proptest::prop_assert_eq!(got, naive(&logits, &params, u));
            let one = SamplingParams { top_k: 1, ..params };
            proptest::prop_assert_eq!(draw(&logits, &one, u, &mut Vec::new()), argmax(&logits));
        }
    }

    #[test]
    fn extreme_temperatures_are_harmless() {
        let at = |temperature| SamplingParams { temperature, ..SamplingParams::greedy() };
        for u in [0.0, 0.5, 0.999_999] {
            assert_eq!(draw(&[1.0, 1.5, f32::MIN], &at(1e-40), u, &mut Vec::new()), 1);
            assert!(draw(&[1.0, 1.5, 1.2], &at(f32::MAX), u, &mut Vec::new()) < 3);
        }
        assert_eq!(draw(&[f32::NEG_INFINITY; 3], &at(1.0), 0.5, &mut Vec::new()), 0);
    }

    #[test]
    fn ties_go_to_the_lowest_token() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0, 1.0]), 1);
    }
}
