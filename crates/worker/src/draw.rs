//! Drawing one token from adjusted logits.

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

/// Draws from `logits / temperature`, cut by min-p, top-k and top-p in this order.
///
/// `uniform` is in [0, 1). Candidates are ordered by logit, then by token, so equal inputs draw equal tokens.
pub(crate) fn draw(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<(TokenId, f32)>,
) -> TokenId {
    let top = logits[argmax(logits) as usize];
    if top == f32::NEG_INFINITY {
        return argmax(logits); // everything is banned: any token is as good
    }
    // A token with min_p of the top one's probability lies this far below it.
    let floor = if params.min_p > 0.0 {
        top + params.temperature * params.min_p.ln()
    } else {
        f32::NEG_INFINITY
    };
    candidates.clear();
    let kept = logits
        .iter()
        .enumerate()
        .filter(|&(_, &logit)| logit >= floor && logit > f32::NEG_INFINITY);
    candidates.extend(kept.map(|(token, &logit)| (token as TokenId, logit)));
    let order = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, order);
        candidates.truncate(top_k);
    }
    if params.top_p < 1.0 {
        candidates.sort_unstable_by(order);
    }
    // From here on the second element is a weight.
    let mut total = 0.0;
    for (_, logit) in candidates.iter_mut() {
        *logit = ((*logit - top) / params.temperature).exp();
        total += f64::from(*logit);
    }
    if params.top_p < 1.0 {
        let wanted = total * f64::from(params.top_p);
        let mut sum = 0.0;
        let nucleus = candidates.iter().position(|&(_, weight)| {
            sum += f64::from(weight);
            sum >= wanted
        });
        candidates.truncate(nucleus.map_or(candidates.len(), |last| last + 1));
        total = candidates.iter().map(|&(_, weight)| f64::from(weight)).sum();
    }
    let mut rest = uniform * total;
    for &(token, weight) in candidates.iter() {
        rest -= f64::from(weight);
        if rest < 0.0 {
            return token;
        }
    }
    candidates.last().map_or(0, |&(token, _)| token) // rounding left a sliver
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

    #[test]
    fn ties_go_to_the_lowest_token() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0, 1.0]), 1);
    }
}
