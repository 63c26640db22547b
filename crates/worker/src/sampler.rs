//! From one row of logits to one token; what the row's settings ask for, in the order that
//! [`SamplingParams`](stallfree_core::SamplingParams) names.

use std::collections::HashMap;

use stallfree_core::{History, SampleSpec, SamplingParams, TokenId, TokenLogprob};

use crate::draw::{Candidate, argmax, draw, uniform};
use crate::logprobs::logprobs;

/// The model produced something that is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model produced a logit that is not a finite number; its weights or its number format are unsound"
)]
pub struct SamplerError;

/// Draws tokens; keeps nothing between draws but scratch memory.
#[derive(Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Draws a token from `logits`, with logprobs if the settings ask for them.
    ///
    /// If everything is banned, the most likely token is drawn all the same: a client's bans must not stop an engine.
    ///
    /// # Errors
    /// A logit is NaN or plus infinity.
    pub fn sample(
        &mut self,
        logits: &[f32],
        spec: &SampleSpec,
    ) -> Result<(TokenId, Vec<TokenLogprob>), SamplerError> {
        if !logits.iter().all(|&logit| logit < f32::INFINITY) {
            return Err(SamplerError);
        }
        let params = &*spec.params;
        let Self { adjusted, candidates } = self;
        let row = if is_plain(spec) { logits } else { adjust(adjusted, logits, spec) };
        let all_banned = row[argmax(row) as usize] == f32::NEG_INFINITY;
        let row = if all_banned { logits } else { row };
        let token = if params.temperature <= 0.0 {
            argmax(row)
        } else {
            draw(row, params, uniform(params.seed, spec.num_output_tokens), candidates)
        };
        let likely = params.logprobs.map(|n| logprobs(logits, token, n as usize));
        Ok((token, likely.unwrap_or_default()))
    }
}

fn adjust<'a>(row: &'a mut Vec<f32>, logits: &[f32], spec: &SampleSpec) -> &'a [f32] {
    row.clear();
    row.extend_from_slice(logits);
    for &(token, bias) in &spec.params.logit_bias {
        change(row, token, |logit| logit + bias);
    }
    keep_allowed(row, &spec.params.allowed_token_ids);
    for &token in spec.banned.iter() {
        change(row, token, |_| f32::NEG_INFINITY);
    }
    let output = spec
        .history
        .as_ref()
        .map_or(&[][..], |history| history.tokens.get(history.prompt_len..).unwrap_or_default());
    for token in ends_of_bad_words(&spec.params.bad_words, output) {
        change(row, token, |_| f32::NEG_INFINITY);
    }
    if let Some(history) = &spec.history {
        penalize(row, &spec.params, history);
    }
    row
}

/// Returns whether the answer is the largest raw logit and nothing else is asked for.
pub(crate) fn is_plain_greedy(spec: &SampleSpec) -> bool {
    is_plain(spec) && spec.params.temperature <= 0.0 && spec.params.logprobs.is_none()
}

/// Returns whether the raw logits are drawn from as they are.
fn is_plain(spec: &SampleSpec) -> bool {
    let SamplingParams { logit_bias, allowed_token_ids, bad_words, .. } = &*spec.params;
    let is_free = logit_bias.is_empty() && allowed_token_ids.is_empty() && bad_words.is_empty();
    is_free && spec.banned.is_empty() && spec.history.is_none()
}

/// Rules out all tokens but the allowed ones, if there are any.
fn keep_allowed(row: &mut [f32], allowed: &[TokenId]) {
    if allowed.is_empty() {
        return;
    }
    let logit = |&token: &TokenId| Some((token as usize, *row.get(token as usize)?));
    let kept: Vec<(usize, f32)> = allowed.iter().filter_map(logit).collect();
    row.fill(f32::NEG_INFINITY);
    for (token, logit) in kept {
        row[token] = logit;
    }
}

/// Returns the tokens that would complete a bad word after `output`.
fn ends_of_bad_words(words: &[Vec<TokenId>], output: &[TokenId]) -> impl Iterator<Item = TokenId> {
    words.iter().filter_map(|word| {
        let (&last, head) = word.split_last()?;
        output.ends_with(head).then_some(last)
    })
}

fn penalize(row: &mut [f32], params: &SamplingParams, history: &History) {
    let mut counts: HashMap<TokenId, f32> = HashMap::new();
    for (index, &token) in history.tokens.iter().enumerate() {
        let produced = if index < history.prompt_len { 0.0 } else { 1.0 };
        *counts.entry(token).or_default() += produced;
    }
    for (token, count) in counts {
        change(row, token, |logit| {
            let factor = params.repetition_penalty;
            let logit = if logit > 0.0 { logit / factor } else { logit * factor };
            let presence = if count > 0.0 { params.presence_penalty } else { 0.0 };
            logit - params.frequency_penalty * count - presence
        });
    }
}

/// Changes one logit and keeps it below infinity and a number: extreme settings are a client's to choose, and must not look
/// like a damaged model. Tokens outside the vocabulary are ignored.
fn change(row: &mut [f32], token: TokenId, to: impl Fn(f32) -> f32) {
    if let Some(logit) = row.get_mut(token as usize) {
        let changed = to(*logit);
        *logit = if changed.is_nan() { f32::NEG_INFINITY } else { changed.min(f32::MAX) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stallfree_core::{History, SampleSpec, SamplingParams};

    use super::{Sampler, SamplerError};

    fn check(logits: &[f32], spec: &SampleSpec, expected: Result<u32, SamplerError>) {
        let got = Sampler::default().sample(logits, spec).map(|(token, _)| token);
        assert_eq!(got, expected, "{spec:?}");
    }

    fn spec(
        params: SamplingParams,
        banned: &[u32],
        history: Option<(&[u32], usize)>,
    ) -> SampleSpec {
        let history =
            history.map(|(tokens, prompt_len)| History { tokens: tokens.to_vec(), prompt_len });
        SampleSpec {
            params: Arc::new(params),
            num_output_tokens: 0,
            banned: banned.into(),
            history,
        }
    }

    #[test]
    fn settings_move_the_choice() {
        let logits = [1.0, 3.0, 2.5, -1.0];
        let greedy = SamplingParams::greedy;
        check(&logits, &spec(greedy(), &[], None), Ok(1));
        check(&logits, &spec(greedy(), &[1], None), Ok(2));
        check(&[1.0, f32::NAN], &spec(greedy(), &[], None), Err(SamplerError));
        let bias = SamplingParams { logit_bias: vec![(3, 10.0), (99, 1.0)], ..greedy() };
        check(&logits, &spec(bias, &[], None), Ok(3));
        let presence = SamplingParams { presence_penalty: 1.0, ..greedy() };
        check(&logits, &spec(presence.clone(), &[], Some((&[1], 1))), Ok(1)); // in the prompt: free
        check(&logits, &spec(presence, &[], Some((&[0, 1], 1))), Ok(2));
        let frequency = SamplingParams { frequency_penalty: 0.2, ..greedy() };
        check(&logits, &spec(frequency.clone(), &[], Some((&[0, 1, 1], 1))), Ok(1));
        check(&logits, &spec(frequency, &[], Some((&[0, 1, 1, 1], 1))), Ok(2));
        check(&[1.0, f32::INFINITY], &spec(greedy(), &[], None), Err(SamplerError));
        check(&logits, &spec(greedy(), &[0, 1, 2, 3], None), Ok(1));
        let extreme = SamplingParams { repetition_penalty: 1e-40, ..greedy() };
        check(&logits, &spec(extreme, &[], Some((&[2], 1))), Ok(2));
        let repetition = SamplingParams { repetition_penalty: 1.5, ..greedy() };
        check(&logits, &spec(repetition, &[], Some((&[1], 1))), Ok(2));
    }

    #[test]
    fn allowed_tokens_and_bad_words() {
        let logits = [1.0, 3.0, 2.5, -1.0];
        let allow = |tokens: &[u32]| SamplingParams {
            allowed_token_ids: tokens.to_vec(),
            ..SamplingParams::greedy()
        };
        check(&logits, &spec(allow(&[0, 3]), &[], None), Ok(0));
        check(&logits, &spec(allow(&[3, 99]), &[], None), Ok(3));
        check(&logits, &spec(allow(&[0, 3]), &[0], None), Ok(3));
        check(&logits, &spec(allow(&[0]), &[0], None), Ok(1)); // nothing is left
        let bad = |words: &[&[u32]]| SamplingParams {
            bad_words: words.iter().map(|word| word.to_vec()).collect(),
            ..SamplingParams::greedy()
        };
        let params = bad(&[&[1]]);
        assert!(!params.needs_history());
        check(&logits, &spec(params, &[], None), Ok(2));
        let params = bad(&[&[2, 1], &[3, 0, 2]]);
        assert!(params.needs_history());
        check(&logits, &spec(params.clone(), &[], Some((&[0, 1, 2], 2))), Ok(2)); // after 2: not 1
        check(&logits, &spec(params.clone(), &[], Some((&[0, 1, 2], 3))), Ok(1)); // in the prompt
        check(&logits, &spec(params, &[], Some((&[3, 0], 1))), Ok(1));
    }
}
