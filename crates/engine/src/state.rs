//! What the engine keeps about a sequence, beside what the planner keeps.
//!
//! The planner knows tokens and blocks; here is what only the client cares about: how tokens are drawn, when to stop, who
//! reads the output, and the moments of the sequence's life.

use std::sync::Arc;

use stallfree_core::{
    FinishReason, PromptLogprobs, SamplingParams, StopRules, Time, TokenId, TokenLogprob,
};
use stallfree_scheduler::{PlannedChunk, Sequence};

use crate::{Admission, Finished, OutputSender, OutputToken, SeqTimes};

/// A sequence as its client sees it.
#[derive(Debug)]
pub(crate) struct SeqState {
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) stop: StopRules,
    /// The stop tokens, in the form in which batches carry them.
    banned: Arc<[TokenId]>,
    pub(crate) output: OutputSender,
    times: SeqTimes,
    /// Whether the reader was told how the sequence was admitted.
    told_admission: bool,
    /// How many of the prompt's tokens have had the logprobs of the token that follows them returned.
    num_prompt_logprobs: usize,
}

/// What one step has for one reader.
#[derive(Debug, Default)]
pub(crate) struct News {
    admission: Option<Admission>,
    token: Option<OutputToken>,
    prompt_logprobs: Vec<Vec<TokenLogprob>>,
    pub(crate) finished: Option<Finished>,
}

impl SeqState {
    pub(crate) fn new(
        params: Arc<SamplingParams>,
        stop: StopRules,
        output: OutputSender,
        arrived: Time,
    ) -> Self {
        let banned = match stop.min_tokens {
            0 => Arc::default(),
            _ => stop.stop_token_ids.as_slice().into(),
        };
        let times = SeqTimes { arrived, ..SeqTimes::default() };
        Self { params, stop, banned, output, times, told_admission: false, num_prompt_logprobs: 0 }
    }

    /// Takes a token, which is the sequence's last one already; returns why the sequence ends with it, if it does.
    pub(crate) fn take_token(
        &mut self,
        seq: &Sequence,
        token: OutputToken,
    ) -> (News, Option<FinishReason>) {
        self.times.first_token.get_or_insert(token.at);
        self.times.last_token = Some(token.at);
        let ended = if self.stop.stop_token_ids.contains(&token.token) {
            Some(FinishReason::Stop)
        } else if seq.tokens.len() >= seq.max_total_len {
            Some(FinishReason::Length)
        } else {
            None
        };
        (News { token: Some(token), ..self.news(seq) }, ended)
    }

    /// Ends the sequence.
    pub(crate) fn finish(&mut self, seq: &Sequence, reason: FinishReason, at: Time) -> News {
        self.times.scheduled = seq.scheduled;
        self.times.finished = at;
        let finished = Finished {
            reason,
            stop_token: seq.output().last().copied().filter(|_| reason == FinishReason::Stop),
            times: self.times,
            num_cached_tokens: seq.num_cached_tokens,
            num_preemptions: seq.num_preemptions,
        };
        News { finished: Some(finished), ..self.news(seq) }
    }

    fn news(&mut self, seq: &Sequence) -> News {
        let admission = seq.scheduled.filter(|_| !self.told_admission).map(|at| {
            self.told_admission = true;
            Admission { at, num_cached_tokens: seq.num_cached_tokens }
        });
        News { admission, ..News::default() }
    }

    /// Returns the tokens that must not be drawn after `num_output_tokens` of output.
    pub(crate) fn banned(&self, num_output_tokens: usize) -> Arc<[TokenId]> {
        if num_output_tokens < self.stop.min_tokens {
            Arc::clone(&self.banned)
        } else {
            Arc::default()
        }
    }

    /// Returns which prompt logprobs a chunk is to return; `None` if it has none that were not returned before.
    pub(crate) fn prompt_logprobs(
        &self,
        seq: &Sequence,
        chunk: &PlannedChunk,
    ) -> Option<PromptLogprobs> {
        let num_top = self.params.prompt_logprobs?;
        let end = (chunk.start + chunk.num_tokens + 1).min(seq.prompt_len);
        if end <= self.num_prompt_logprobs + 1 || end <= chunk.start + 1 {
            return None;
        }
        Some(PromptLogprobs { num_top, targets: seq.tokens[chunk.start + 1..end].to_vec() })
    }

    /// Takes the prompt logprobs of a chunk that began at `start` and returns those that are new: a preempted sequence
    /// computes parts of its prompt again.
    pub(crate) fn take_prompt_logprobs(
        &mut self,
        seq: &Sequence,
        start: usize,
        mut lists: Vec<Vec<TokenLogprob>>,
    ) -> News {
        let known = self.num_prompt_logprobs.saturating_sub(start).min(lists.len());
        lists.drain(..known);
        self.num_prompt_logprobs += lists.len();
        News { prompt_logprobs: lists, ..self.news(seq) }
    }

    /// Passes news to the reader.
    pub(crate) fn emit(&self, news: News) {
        self.output.update(|output| {
            output.admission = output.admission.or(news.admission);
            output.tokens.extend(news.token);
            output.prompt_logprobs.extend(news.prompt_logprobs);
            output.finished = news.finished;
        });
    }
}
