//! What a sequence has produced.

use std::time::Duration;

use stallfree_core::{FinishReason, SeqId, TokenLogprob};
use stallfree_engine::{Admitted, Finished, OutputToken, SeqOutput};

use super::sequence::{times_in, times_out};
use super::{count, nanos, time_in, time_out, wire};

pub(crate) fn output_out(seq: SeqId, output: SeqOutput) -> wire::Output {
    let SeqOutput { admission, tokens, prompt_logprobs, finished, error, retry_after } = output;
    let admission_out = |Admitted { at, num_cached_tokens }| wire::Admission {
        at: time_out(at),
        num_cached_tokens: num_cached_tokens as u64,
    };
    let token_out = |OutputToken { token, logprobs, at }: OutputToken| wire::Token {
        token,
        at: time_out(at),
        logprobs: logprobs_out(&logprobs),
    };
    let list_out = |list: Vec<TokenLogprob>| wire::Logprobs { list: logprobs_out(&list) };
    wire::Output {
        seq: seq.0,
        admission: admission.map(admission_out),
        tokens: tokens.into_iter().map(token_out).collect(),
        prompt_logprobs: prompt_logprobs.into_iter().map(list_out).collect(),
        finished: finished.map(|finished| finished_out(&finished)),
        error,
        retry_after: retry_after.map(nanos),
    }
}

pub(crate) fn output_in(output: wire::Output) -> SeqOutput {
    let admission_in = |admission: wire::Admission| Admitted {
        at: time_in(admission.at),
        num_cached_tokens: count(admission.num_cached_tokens),
    };
    let token_in = |token: wire::Token| OutputToken {
        token: token.token,
        logprobs: logprobs_in(&token.logprobs),
        at: time_in(token.at),
    };
    SeqOutput {
        admission: output.admission.map(admission_in),
        tokens: output.tokens.into_iter().map(token_in).collect(),
        prompt_logprobs: output
            .prompt_logprobs
            .iter()
            .map(|list| logprobs_in(&list.list))
            .collect(),
        finished: output.finished.map(|finished| finished_in(&finished)),
        error: output.error,
        retry_after: output.retry_after.map(Duration::from_nanos),
    }
}

fn logprobs_out(list: &[TokenLogprob]) -> Vec<wire::Logprob> {
    let out = |&TokenLogprob { token, logprob, rank }| wire::Logprob { token, logprob, rank };
    list.iter().map(out).collect()
}

fn logprobs_in(list: &[wire::Logprob]) -> Vec<TokenLogprob> {
    let read = |&wire::Logprob { token, logprob, rank }| TokenLogprob { token, logprob, rank };
    list.iter().map(read).collect()
}

fn finished_out(finished: &Finished) -> wire::Finished {
    let Finished { reason, stop_token, times, num_cached_tokens, num_preemptions } = finished;
    let reason = match reason {
        FinishReason::Stop => wire::FinishReason::Stop,
        FinishReason::Length => wire::FinishReason::Length,
        FinishReason::Abort => wire::FinishReason::Abort,
    };
    wire::Finished {
        reason: reason.into(),
        stop_token: *stop_token,
        times: times_out(times),
        num_cached_tokens: *num_cached_tokens as u64,
        num_preemptions: *num_preemptions as u64,
    }
}

fn finished_in(finished: &wire::Finished) -> Finished {
    Finished {
        reason: match finished.reason() {
            wire::FinishReason::Stop => FinishReason::Stop,
            wire::FinishReason::Length => FinishReason::Length,
            wire::FinishReason::Abort => FinishReason::Abort,
        },
        stop_token: finished.stop_token,
        times: times_in(&finished.times),
        num_cached_tokens: count(finished.num_cached_tokens),
        num_preemptions: count(finished.num_preemptions),
    }
}
