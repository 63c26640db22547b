//! From one row of logits to one token, and how likely tokens were. What every GPU kernel for it is held against.

use stallfree_core::TokenId;

use crate::sampling::{
    LogitEdit, NATURAL_SCALE, NONE, SampleRow, SampleRows, Sampled, Softmax, depth, fraction,
    nucleus_weight, weight,
};

/// Draws tokens; keeps nothing between draws but scratch memory.
#[derive(Debug, Default)]
pub struct Sampler {
    edits: Vec<LogitEdit>,
    edited: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Returns what is wanted of row `index`, whose logits are given; `chosen` is what the step before chose.
    ///
    /// # Panics
    /// There is no such row, or a token whose logprobs are wanted is outside the vocabulary.
    pub fn sample(
        &mut self,
        logits: &[f32],
        (rows, index): (&SampleRows, usize),
        chosen: &[TokenId],
    ) -> Sampled {
        if !logits.iter().all(|&logit| logit < f32::INFINITY) {
            return Sampled { token: TokenId::MAX, logprobs: Vec::new() };
        }
        let row = &rows.rows[index];
        self.edits.clear();
        self.edits.extend_from_slice(rows.edits_of(row));
        row.resolve(&mut self.edits, chosen);
        let token = if row.target == NONE { self.draw(logits, row) } else { row.target };
        let mut logprobs = Vec::new();
        if row.num_top != NONE {
            let own = logits[token as usize];
            let rank = logits.iter().filter(|&&logit| logit >= own).count();
            let softmax = softmax(logits);
            logprobs.push(softmax.logprob(token, own, rank as u32));
            let top = (1..).zip(top_tokens(logits, row.num_top as usize));
            logprobs.extend(top.map(|(rank, t)| softmax.logprob(t, logits[t as usize], rank)));
        }
        Sampled { token, logprobs }
    }

    fn draw(&mut self, logits: &[f32], row: &SampleRow) -> TokenId {
        let mut from = logits;
        let is_edited = !self.edits.is_empty() || row.only_edits == 1;
        if is_edited {
            self.edited.clear();
            if row.only_edits == 1 {
                self.edited.resize(logits.len(), f32::NEG_INFINITY);
            } else {
                self.edited.extend_from_slice(logits);
            }
            for edit in &self.edits {
                if let Some(&logit) = logits.get(edit.token as usize) {
                    self.edited[edit.token as usize] = row.edited(logit, edit);
                }
            }
            from = &self.edited;
        }
        let mut best = argmax(from);
        if from[best as usize] == f32::NEG_INFINITY && is_edited {
            // Everything is banned.
            from = logits;
            best = argmax(from);
        }
        if row.scale == 0.0 { best } else { draw(from, best, row, &mut self.candidates) }
    }
}

/// Returns the index of the largest logit, the lowest one on ties.
fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as TokenId
}

/// A token by its depth: the smaller of two is the likelier, or the lower on ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    depth: u32,
    token: TokenId,
}

/// Draws from a row, cut by min-p, top-k and top-p in this order, by inverse transform over the tokens in the order of their ids.
/// `best` has the largest logit.
fn draw(
    logits: &[f32],
    best: TokenId,
    row: &SampleRow,
    candidates: &mut Vec<Candidate>,
) -> TokenId {
    let top = logits[best as usize];
    candidates.clear();
    candidates.extend((0..).zip(logits).filter_map(|(token, &logit)| {
        let depth = depth(top, logit, row.scale);
        (depth <= row.max_depth).then_some(Candidate { depth, token })
    }));
    let top_k = row.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable(top_k - 1);
        candidates.truncate(top_k);
    }
    if row.nucleus > 0 {
        keep_nucleus(candidates, row.nucleus);
    }
    if top_k > 0 || row.nucleus > 0 {
        candidates.sort_unstable_by_key(|candidate| candidate.token);
    }
    let target = fraction(row.uniform, total(candidates));
    let mut sum = 0;
    for candidate in &*candidates {
        sum += weight(candidate.depth);
        if sum > target {
            return candidate.token;
        }
    }
    best // every logit is minus infinity
}

/// Keeps the most likely candidates that together have at least a share of the weight.
///
/// The nucleus is mostly small: a growing head is sorted, and the long tail never.
fn keep_nucleus(candidates: &mut Vec<Candidate>, nucleus: u64) {
    let wanted = nucleus_weight(nucleus, total(candidates));
    let (mut sum, mut sorted, mut step) = (0, 0, 64);
    while sorted < candidates.len() {
        let tail = &mut candidates[sorted..];
        let taken = step.min(tail.len());
        if taken < tail.len() {
            tail.select_nth_unstable(taken - 1);
        }
        tail[..taken].sort_unstable();
        for (index, candidate) in tail[..taken].iter().enumerate() {
            sum += weight(candidate.depth);
            if sum >= wanted {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += taken;
        step *= 4;
    }
}

fn total(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| weight(candidate.depth)).sum()
}

fn softmax(logits: &[f32]) -> Softmax {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = logits.iter().map(|&logit| weight(depth(top, logit, NATURAL_SCALE)));
    Softmax { top, total: weights.sum() }
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
    use std::sync::Arc;

    use stallfree_core::{History, PENDING_TOKEN, SampleSpec, SamplingParams, TokenId};

    use super::{Sampler, argmax, depth, fraction, nucleus_weight, weight};
    use crate::chosen_at;
    use crate::sampling::{MAX_DEPTH, SampleRows, Sampled};

    /// Draws `index` of the settings' stream.
    fn spec(params: &SamplingParams, index: usize) -> SampleSpec {
        SampleSpec {
            params: Arc::new(params.clone()),
            num_output_tokens: index,
            banned: Arc::new([]),
            history: None,
        }
    }

    fn sample(logits: &[f32], spec: &SampleSpec) -> Sampled {
        let mut rows = SampleRows::new(logits.len());
        rows.push_draw(spec, PENDING_TOKEN);
        Sampler::default().sample(logits, (&rows, 0), &[])
    }

    fn check_choice(
        params: &SamplingParams,
        banned: &[u32],
        history: Option<(&[u32], usize)>,
        expected: TokenId,
    ) {
        let history =
            history.map(|(tokens, prompt_len)| History { tokens: tokens.to_vec(), prompt_len });
        let spec = SampleSpec { banned: banned.into(), history, ..spec(params, 0) };
        assert_eq!(sample(&[1.0, 3.0, 2.5, -1.0], &spec).token, expected, "{spec:?}");
    }

    #[test]
    fn settings_move_the_choice() {
        let greedy = SamplingParams::greedy;
        check_choice(&greedy(), &[], None, 1);
        check_choice(&greedy(), &[1], None, 2);
        let bias = SamplingParams { logit_bias: Arc::new([(3, 10.0), (99, 1.0)]), ..greedy() };
        check_choice(&bias, &[], None, 3);
        check_choice(&bias, &[3, 99], None, 1);
        let presence = SamplingParams { presence_penalty: 1.0, ..greedy() };
        check_choice(&presence, &[], Some((&[1], 1)), 1); // in the prompt: free
        check_choice(&presence, &[], Some((&[0, 1], 1)), 2);
        let frequency = SamplingParams { frequency_penalty: 0.2, ..greedy() };
        check_choice(&frequency, &[], Some((&[0, 1, 1], 1)), 1);
        check_choice(&frequency, &[], Some((&[0, 1, 1, 1], 1)), 2);
        check_choice(&greedy(), &[0, 1, 2, 3], None, 1);
        let extreme = SamplingParams { repetition_penalty: 1e-40, ..greedy() };
        check_choice(&extreme, &[], Some((&[2], 1)), 2);
        let repetition = SamplingParams { repetition_penalty: 1.5, ..greedy() };
        check_choice(&repetition, &[], Some((&[1], 1)), 2);
    }

    #[test]
    fn allowed_tokens_and_bad_words() {
        let allow = |tokens: &[u32]| SamplingParams {
            allowed_token_ids: tokens.into(),
            ..SamplingParams::greedy()
        };
        check_choice(&allow(&[0, 3]), &[], None, 0);
        check_choice(&allow(&[3, 99]), &[], None, 3);
        check_choice(&allow(&[0, 3]), &[0], None, 3);
        check_choice(&allow(&[0]), &[0], None, 1); // nothing is left
        check_choice(&allow(&[99]), &[], None, 1);
        let biased =
            SamplingParams { logit_bias: Arc::new([(2, 9.0), (3, 9.0)]), ..allow(&[0, 3]) };
        check_choice(&biased, &[], None, 3);
        let bad = |words: &[&[u32]]| SamplingParams {
            bad_words: words.iter().map(|word| word.to_vec()).collect(),
            ..SamplingParams::greedy()
        };
        let params = bad(&[&[1]]);
        assert!(!params.needs_history());
        check_choice(&params, &[], None, 2);
        let params = bad(&[&[2, 1], &[3, 0, 2]]);
        assert!(params.needs_history());
        check_choice(&params, &[], Some((&[0, 1, 2], 2)), 2); // after 2: not 1
        check_choice(&params, &[], Some((&[0, 1, 2], 3)), 1); // in the prompt
        check_choice(&params, &[], Some((&[3, 0], 1)), 1);
    }

    #[test]
    fn a_pending_token_counts_as_if_it_were_known() {
        let params = SamplingParams {
            temperature: 1.0,
            presence_penalty: 1.0,
            frequency_penalty: 0.7,
            repetition_penalty: 1.2,
            ..SamplingParams::greedy()
        };
        let allowed = SamplingParams { allowed_token_ids: Arc::new([1, 2]), ..params.clone() };
        let logits = [1.0, 3.0, 2.5, -1.0];
        for (params, newest) in
            [&params, &allowed].into_iter().flat_map(|p| [1, 2, 3, 9].map(|n| (p, n)))
        {
            for index in 0..20 {
                let of = |last: TokenId| {
                    let history = History { tokens: vec![0, 1, 0, last], prompt_len: 2 };
                    SampleSpec { history: Some(history), ..spec(params, index) }
                };
                let expected = sample(&logits, &of(newest));
                let mut rows = SampleRows::new(logits.len());
                rows.push_draw(&of(PENDING_TOKEN), chosen_at(1));
                let got = Sampler::default().sample(&logits, (&rows, 0), &[7, newest]);
                assert_eq!(got, expected, "{newest}");
            }
        }
    }

    #[test]
    fn a_damaged_row_has_no_token() {
        for bad in [f32::NAN, f32::INFINITY] {
            let spec = spec(&SamplingParams::greedy(), 0);
            assert_eq!(sample(&[1.0, bad], &spec).token, TokenId::MAX);
        }
    }

    /// Draws `n` tokens and compares their shares with `expected` within four standard errors.
    fn check_shares(logits: &[f32], params: &SamplingParams, expected: &[f64]) {
        let n = 20_000;
        let mut counts = vec![0.0; logits.len()];
        for index in 0..n {
            counts[sample(logits, &spec(params, index)).token as usize] += 1.0;
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
        let base = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::greedy() };
        check_shares(&logits, &base, &[0.1, 0.4, 0.2, 0.3]);
        check_shares(&logits, &SamplingParams { top_k: 1, ..base.clone() }, &[0.0, 1.0, 0.0, 0.0]);
        for two in [
            SamplingParams { top_k: 2, ..base.clone() },
            SamplingParams { top_p: 0.6, ..base.clone() },
        ] {
            check_shares(&logits, &two, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        }
        let min_p = SamplingParams { min_p: 0.45, ..base.clone() };
        check_shares(&logits, &min_p, &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        let cold = SamplingParams { temperature: 0.5, ..base };
        check_shares(&logits, &cold, &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
    }

    /// Sorts everything, cuts, and walks: what a draw must amount to.
    fn naive(logits: &[f32], params: &SamplingParams, spec: &SampleSpec) -> TokenId {
        let mut rows = SampleRows::new(logits.len());
        rows.push_draw(spec, PENDING_TOKEN);
        let row = &rows.rows[0];
        let top = logits[argmax(logits) as usize];
        let depths = logits.iter().map(|&logit| depth(top, logit, row.scale));
        let mut all: Vec<(u32, TokenId)> = depths.zip(0..).collect();
        let min_weight = f64::from(params.min_p) * weight(0) as f64;
        all.retain(|&(depth, _)| {
            depth < MAX_DEPTH && weight(depth) as f64 >= min_weight * (1.0 - 1e-6)
        });
        all.sort_unstable();
        all.truncate(if params.top_k == 0 { usize::MAX } else { params.top_k as usize });
        let sum =
            |part: &[(u32, TokenId)]| part.iter().map(|&(depth, _)| weight(depth)).sum::<u64>();
        if params.top_p < 1.0 {
            let wanted = nucleus_weight(row.nucleus, sum(&all));
            let kept = (1..=all.len()).find(|&n| sum(&all[..n]) >= wanted);
            all.truncate(kept.unwrap_or(all.len()));
        }
        all.sort_by_key(|&(_, token)| token);
        let target = fraction(row.uniform, sum(&all));
        let at = (0..all.len()).find(|&n| sum(&all[..=n]) > target);
        all[at.unwrap_or(0)].1
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
                seed: 3,
                ..SamplingParams::greedy()
            };
            let drawn = spec(&params, at);
            if top_k != 1 {
                let expected = naive(&logits, &params, &drawn);
                proptest::prop_assert_eq!(sample(&logits, &drawn).token, expected);
            }
            let one = spec(&SamplingParams { top_k: 1, ..params }, at);
            proptest::prop_assert_eq!(sample(&logits, &one).token, argmax(&logits));
        }
    }

    #[test]
    fn extreme_temperatures_are_harmless() {
        let at = |temperature| SamplingParams { temperature, ..SamplingParams::greedy() };
        for index in 0..50 {
            assert_eq!(sample(&[1.0, 1.5, f32::MIN], &spec(&at(1e-40), index)).token, 1);
            assert!(sample(&[1.0, 1.5, 1.2], &spec(&at(f32::MAX), index)).token < 3);
            assert_eq!(sample(&[f32::NEG_INFINITY; 3], &spec(&at(1.0), index)).token, 0);
        }
    }

    #[test]
    fn ties_go_to_the_lowest_token() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0, 1.0]), 1);
    }

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let logits: Vec<f32> = [0.1f32, 0.4, 0.2, 0.3].iter().map(|p| p.ln() + 5.0).collect();
        let mut rows = SampleRows::new(4);
        rows.push_target(2, 2);
        let found = Sampler::default().sample(&logits, (&rows, 0), &[]).logprobs;
        let got: Vec<_> = found.iter().map(|l| (l.token, l.rank, l.logprob.exp())).collect();
        for ((token, rank, p), expected) in got.iter().zip([(2, 3, 0.2), (1, 1, 0.4), (3, 2, 0.3)])
        {
            assert_eq!((*token, *rank), (expected.0, expected.1));
            assert!((p - expected.2).abs() < 1e-6, "{p} for {}", expected.2);
        }
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn edits_leave_logprobs_alone() {
        let params = SamplingParams { logprobs: Some(9), ..SamplingParams::greedy() };
        let banned = SampleSpec { banned: [1].into(), ..spec(&params, 0) };
        let found = sample(&[1.0, 3.0, 2.5], &banned);
        let ranks: Vec<_> = found.logprobs.iter().map(|l| (l.token, l.rank)).collect();
        assert_eq!((found.token, &ranks[..]), (2, &[(2, 2), (1, 1), (2, 2), (0, 3)][..]));
    }
}
