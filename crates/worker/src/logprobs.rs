//! How likely tokens were.

use stallfree_core::{TokenId, TokenLogprob};

/// Returns `token`'s logprob, then those of the `num_top` most likely tokens in order, under the softmax of `logits`.
pub(crate) fn logprobs(logits: &[f32], token: TokenId, num_top: usize) -> Vec<TokenLogprob> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - top).exp()).sum();
    let log_sum = f64::from(top) + sum.ln();
    let own = logits[token as usize];
    let entry = |token: TokenId, rank: usize| TokenLogprob {
        token,
        logprob: (f64::from(logits[token as usize]) - log_sum) as f32,
        rank: rank as u32,
    };
    let rank = logits.iter().filter(|&&logit| logit >= own).count();
    let mut found = vec![entry(token, rank)];
    found.extend(top_tokens(logits, num_top).iter().enumerate().map(|(i, &t)| entry(t, i + 1)));
    found
}

/// Returns the `n` most likely tokens, most likely first, lower tokens first on ties.
fn top_tokens(logits: &[f32], n: usize) -> Vec<TokenId> {
    if n == 0 {
        return Vec::new();
    }
    let order = |&a: &TokenId, &b: &TokenId| {
        logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
    };
    let mut tokens: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    if n < tokens.len() {
        tokens.select_nth_unstable_by(n - 1, order);
        tokens.truncate(n);
    }
    tokens.sort_unstable_by(order);
    tokens
}

#[cfg(test)]
mod tests {
    use super::logprobs;

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let logits: Vec<f32> = [0.1f32, 0.4, 0.2, 0.3].iter().map(|p| p.ln() + 5.0).collect();
        let found = logprobs(&logits, 2, 2);
        let got: Vec<_> = found.iter().map(|l| (l.token, l.rank, l.logprob.exp())).collect();
        for ((token, rank, p), expected) in got.iter().zip([(2, 3, 0.2), (1, 1, 0.4), (3, 2, 0.3)])
        {
            assert_eq!((*token, *rank), (expected.0, expected.1));
            assert!((p - expected.2).abs() < 1e-6, "{p} for {}", expected.2);
        }
        assert_eq!(found.len(), 3);
    }
}
