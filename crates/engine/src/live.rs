//! What the engine keeps about a sequence beside the planner: how it samples, when it stops, who reads it.

use std::sync::Arc;

use stallfree_core::{SampledToken, SamplingParams, StopRules, Time, TokenId, TokenLogprob};
use stallfree_scheduler::Sequence;

use crate::engine::finish_reason;
use crate::{Admission, Finished, OutputSender, OutputToken, SeqTimes};

#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) sampling: Arc<SamplingParams>,
    pub(crate) stop: StopRules,
    /// The stop tokens, shared with every batch in which they are banned.
    pub(crate) banned: Arc<[TokenId]>,
    pub(crate) output: OutputSender,
    arrived: Time,
    first_token: Option<Time>,
    /// Prompt tokens whose logprobs were handed out; the first has none.
    num_prompt_logprobs: usize,
}

impl Live {
    pub(crate) fn new(
        sampling: Arc<SamplingParams>,
        stop: StopRules,
        arrived: Time,
        output: OutputSender,
    ) -> Self {
        let banned = stop.stop_token_ids.as_slice().into();
        Self { sampling, stop, banned, output, arrived, first_token: None, num_prompt_logprobs: 0 }
    }

    /// Hands out logprobs of the prompt tokens from position `start + 1` on; those of a recomputed chunk were handed out before.
    pub(crate) fn emit_prompt_logprobs(
        &mut self,
        seq: &Sequence,
        start: usize,
        logprobs: Vec<Vec<TokenLogprob>>,
    ) {
        let known = self.num_prompt_logprobs.saturating_sub(start);
        let fresh: Vec<_> = logprobs.into_iter().skip(known).collect();
        let first = self.num_prompt_logprobs == 0;
        self.num_prompt_logprobs += fresh.len();
        self.output.update(|output| {
            if first {
                output.admission = admission(seq);
            }
            output.prompt_logprobs.extend(fresh);
        });
    }

    /// Hands out a token, already the sequence's last one; returns whether it ends the sequence.
    pub(crate) fn emit_token(&mut self, seq: &Sequence, sampled: SampledToken, now: Time) -> bool {
        let token = sampled.token;
        let stops =
            seq.output().len() > self.stop.min_tokens && self.stop.stop_token_ids.contains(&token);
        let first = self.first_token.is_none();
        let first_token = *self.first_token.get_or_insert(now);
        let finished = finish_reason(seq, stops).map(|reason| Finished {
            reason,
            stop_token: stops.then_some(token),
            times: SeqTimes {
                arrived: self.arrived,
                scheduled: seq.scheduled,
                first_token: Some(first_token),
                last_token: Some(now),
                finished: now,
            },
            num_cached_tokens: seq.num_cached_tokens,
            num_preemptions: seq.num_preemptions,
        });
        let ended = finished.is_some();
        self.output.update(|output| {
            if first && self.num_prompt_logprobs == 0 {
                output.admission = admission(seq);
            }
            output.tokens.push(OutputToken { token, logprobs: sampled.logprobs, at: now });
            output.finished = finished;
        });
        ended
    }
}

fn admission(seq: &Sequence) -> Option<Admission> {
    seq.scheduled.map(|at| Admission { at, num_cached_tokens: seq.num_cached_tokens })
}
