//! What the engine keeps about a sequence, beside what the planner keeps.
//!
//! The planner knows tokens and blocks; here is what only the client cares about: how tokens are drawn, when to stop, who
//! reads the output, and the moments of the sequence's life.

use std::sync::Arc;

use stallfree_core::{
    FinishReason, KvLease, LeaseId, PromptLogprobs, Request, SamplingParams, Slo, StopRules, Time,
    TokenId, TokenLogprob,
};
use stallfree_scheduler::{PlannedChunk, Sequence};

use crate::bell::Bell;
use crate::{Admitted, Finished, HandedOver, OutputSender, OutputToken, Progress, SeqTimes, Until};

/// A sequence as its client sees it.
#[derive(Debug)]
pub(crate) struct SeqState {
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) stop: StopRules,
    pub(crate) slo: Slo,
    /// The stop tokens, in the form in which batches carry them.
    banned: Arc<[TokenId]>,
    pub(crate) output: OutputSender,
    pub(crate) times: SeqTimes,
    /// How the sequence was admitted, until the reader is told.
    admission: Option<Admitted>,
    /// How many of the prompt's tokens have had the logprobs of the token that follows them returned.
    num_prompt_logprobs: usize,
    /// What was counted on other engines.
    before: Before,
    /// How far this engine runs it.
    pub(crate) until: Until,
    /// Whether its next token is the first from here.
    pub(crate) awaits_token: bool,
    /// What others may fetch of it before it goes to one of them.
    pub(crate) early: Early,
}

/// Whether others may fetch KV that an engine is still computing.
#[derive(Clone, Debug)]
pub(crate) enum Early {
    /// None was offered yet.
    NotYet,
    /// Under this lease; the tokens that are to be computed.
    Offered(LeaseId, Arc<[TokenId]>),
    /// No more: it was preempted, and blocks that it had are in other hands.
    Never,
}

#[derive(Clone, Copy, Debug)]
struct Before {
    num_cached_tokens: usize,
    num_preemptions: usize,
}

/// What a step has for a reader.
#[derive(Debug)]
pub(crate) enum News {
    Token(OutputToken),
    /// The last token that this engine produces; others go on.
    HandOver(OutputToken, Box<Departure>),
    PromptLogprobs(Vec<Vec<TokenLogprob>>),
    /// The last token and the end reach the reader as one, so that no answer ends with an empty piece. Boxed, because it is rare
    /// and large.
    Last(Option<OutputToken>, Box<Finished>),
}

/// What goes on elsewhere: the sequence, and its KV, which stays here until it is fetched; none if it has lost it.
#[derive(Debug)]
pub(crate) struct Departure {
    pub(crate) seq: Sequence,
    pub(crate) kv: Option<KvLease>,
}

/// What becomes of a sequence after its news.
#[derive(Debug)]
pub(crate) enum After {
    GoesOn,
    Leaves(Box<Departure>),
    Ended,
}

impl SeqState {
    pub(crate) fn new(
        params: Arc<SamplingParams>,
        (mut stop, slo): (StopRules, Slo),
        output: OutputSender,
        (progress, until): (Progress, Until),
    ) -> Self {
        if !stop.stop_token_ids.is_sorted() {
            let mut sorted = stop.stop_token_ids.to_vec();
            sorted.sort_unstable();
            stop.stop_token_ids = sorted.into();
        }
        let banned = match stop.min_tokens {
            0 => Arc::default(),
            _ => Arc::clone(&stop.stop_token_ids),
        };
        let Progress { times, num_cached_tokens, num_prompt_logprobs, num_preemptions } = progress;
        let before = Before { num_cached_tokens, num_preemptions };
        Self {
            params,
            stop,
            slo,
            banned,
            output,
            times,
            admission: None,
            num_prompt_logprobs,
            before,
            until,
            early: Early::NotYet,
            awaits_token: true,
        }
    }

    /// Returns until when it needs no step, see [`Report::slack_until`](crate::Report::slack_until).
    pub(crate) fn slack_until(&self, num_output_tokens: usize) -> Option<Time> {
        let produced = u32::try_from(num_output_tokens).unwrap_or(u32::MAX);
        Some(self.times.first_token? + self.slo.tpot? * produced.saturating_sub(1))
    }

    /// Takes a token of a step that `began` then, which is the sequence's last one already; returns why the sequence ends with it, if it does.
    pub(crate) fn take_token(
        &mut self,
        seq: &Sequence,
        token: &OutputToken,
        began: Time,
    ) -> Option<FinishReason> {
        match self.times.first_token {
            None => {
                self.note_admission(seq);
                self.times.first_token = Some(token.at);
            }
            // A step may have been submitted before the one before it had ended.
            Some(first) => {
                self.times.decode_started.get_or_insert(began.max(first));
            }
        }
        self.times.last_token = Some(token.at);
        if self.stop.stop_token_ids.binary_search(&token.token).is_ok() {
            Some(FinishReason::Stop)
        } else if seq.tokens.len() >= seq.max_total_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Ends the sequence.
    pub(crate) fn finish(
        &mut self,
        seq: &Sequence,
        reason: FinishReason,
        at: Time,
    ) -> Box<Finished> {
        self.note_admission(seq);
        self.times.finished = at;
        Box::new(Finished {
            reason,
            stop_token: seq.output().last().copied().filter(|_| reason == FinishReason::Stop),
            times: self.times,
            num_cached_tokens: self.before.num_cached_tokens + seq.num_cached_tokens,
            num_preemptions: self.before.num_preemptions + seq.num_preemptions,
        })
    }

    /// Leaves a sequence, of which the planner kept `seq` and perhaps its KV, to another engine.
    pub(crate) fn hand_over(mut self, mut seq: Sequence, kv: Option<Arc<KvLease>>) -> HandedOver {
        self.note_admission(&seq);
        let output_tokens = seq.tokens.split_off(seq.prompt_len);
        let progress = Progress {
            times: self.times,
            num_cached_tokens: self.before.num_cached_tokens + seq.num_cached_tokens,
            num_prompt_logprobs: self.num_prompt_logprobs,
            num_preemptions: self.before.num_preemptions + seq.num_preemptions,
        };
        let Sequence { id, tokens: prompt, priority, arrived, .. } = seq;
        let (sampling, stop, slo) = (self.params, self.stop, self.slo);
        let request = Request { prompt, sampling, stop, priority, slo };
        HandedOver { id, request, arrived, output_tokens, kv, output: self.output, progress }
    }

    /// Before a sequence's first news.
    fn note_admission(&mut self, seq: &Sequence) {
        if self.times.scheduled.is_none() {
            self.times.scheduled = seq.scheduled;
            let num_cached_tokens = seq.num_cached_tokens;
            self.admission = seq.scheduled.map(|at| Admitted { at, num_cached_tokens });
        }
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
        self.note_admission(seq);
        News::PromptLogprobs(lists)
    }

    /// Passes news to the reader, whom `bell` is to wake.
    pub(crate) fn emit(&mut self, news: News, bell: &mut Bell) -> After {
        let mut after = After::GoesOn;
        let reader = match (news, self.admission.take()) {
            (News::Token(token), None) => self.output.push(token),
            (news, admission) => self.output.add(|output| {
                output.admission = output.admission.or(admission);
                match news {
                    News::Token(token) => output.tokens.push(token),
                    News::HandOver(token, departure) => {
                        output.tokens.push(token);
                        after = After::Leaves(departure);
                    }
                    News::PromptLogprobs(lists) => output.prompt_logprobs.extend(lists),
                    News::Last(token, finished) => {
                        output.tokens.extend(token);
                        output.finished = Some(*finished);
                        after = After::Ended;
                    }
                }
            }),
        };
        if let Some(reader) = reader {
            bell.add(reader);
        }
        after
    }
}
