//! A sequence and its KV.

use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{
    BlockId, InstanceId, KvLease, KvOffer, LeaseId, Request, SamplingParams, SeqId, Slo, StopRules,
};
use stallfree_engine::{HandedOver, OutputSender, Progress, SeqTimes, Until};

use super::{count, nanos, time_in, time_out, wire};

pub(crate) fn run_out(seq: &HandedOver, until: Until) -> wire::Run {
    let HandedOver { id, request, arrived, output_tokens, kv, output: _, progress } = seq;
    wire::Run {
        seq: id.0,
        request: request_out(request),
        arrived: time_out(*arrived),
        output_tokens: output_tokens.clone(),
        kv: kv.as_deref().map(lease_out),
        progress: progress_out(progress),
        until_next_token: until == Until::NextToken,
    }
}

/// Makes it a sequence whose output goes to `output`.
pub(crate) fn run_in(run: wire::Run, output: OutputSender) -> (HandedOver, Until) {
    let until = if run.until_next_token { Until::NextToken } else { Until::End };
    let seq = HandedOver {
        id: SeqId(run.seq),
        request: request_in(run.request),
        arrived: time_in(run.arrived),
        output_tokens: run.output_tokens,
        kv: run.kv.map(|lease| Arc::new(lease_in(lease))),
        output,
        progress: progress_in(&run.progress),
    };
    (seq, until)
}

fn request_out(request: &Request) -> wire::Request {
    let Request { prompt, sampling, stop, priority, slo } = request;
    let StopRules { max_tokens, min_tokens, stop_token_ids } = stop;
    wire::Request {
        prompt: prompt.clone(),
        sampling: sampling_out(sampling),
        max_tokens: *max_tokens as u64,
        min_tokens: *min_tokens as u64,
        stop_token_ids: stop_token_ids.to_vec(),
        priority: *priority,
        ttft_slo: slo.ttft.map(nanos),
        tpot_slo: slo.tpot.map(nanos),
    }
}

fn request_in(request: wire::Request) -> Request {
    Request {
        prompt: request.prompt,
        sampling: Arc::new(sampling_in(request.sampling)),
        stop: StopRules {
            max_tokens: count(request.max_tokens),
            min_tokens: count(request.min_tokens),
            stop_token_ids: request.stop_token_ids.into(),
        },
        priority: request.priority,
        slo: Slo {
            ttft: request.ttft_slo.map(Duration::from_nanos),
            tpot: request.tpot_slo.map(Duration::from_nanos),
        },
    }
}

fn sampling_out(params: &SamplingParams) -> wire::Sampling {
    let SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
        allowed_token_ids,
        bad_words,
        seed,
        logprobs,
        prompt_logprobs,
    } = params;
    let bias = |&(token, bias): &(u32, f32)| wire::Bias { token, bias };
    wire::Sampling {
        temperature: *temperature,
        top_k: *top_k,
        top_p: *top_p,
        min_p: *min_p,
        repetition_penalty: *repetition_penalty,
        presence_penalty: *presence_penalty,
        frequency_penalty: *frequency_penalty,
        logit_bias: logit_bias.iter().map(bias).collect(),
        allowed_token_ids: allowed_token_ids.to_vec(),
        bad_words: bad_words.iter().map(|word| wire::Tokens { tokens: word.clone() }).collect(),
        seed: *seed,
        logprobs: *logprobs,
        prompt_logprobs: *prompt_logprobs,
    }
}

fn sampling_in(params: wire::Sampling) -> SamplingParams {
    SamplingParams {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        logit_bias: params.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
        allowed_token_ids: params.allowed_token_ids.into(),
        bad_words: params.bad_words.into_iter().map(|word| word.tokens).collect(),
        seed: params.seed,
        logprobs: params.logprobs,
        prompt_logprobs: params.prompt_logprobs,
    }
}

pub(crate) fn lease_out(lease: &KvLease) -> wire::Lease {
    let KvLease { instance, id: LeaseId { seq, generation }, num_tokens, blocks } = lease;
    wire::Lease {
        instance: instance.0,
        seq: seq.0,
        generation: *generation,
        num_tokens: *num_tokens as u64,
        blocks: blocks.iter().map(|block| block.0).collect(),
    }
}

pub(crate) fn lease_in(lease: wire::Lease) -> KvLease {
    KvLease {
        instance: InstanceId(lease.instance),
        id: LeaseId { seq: SeqId(lease.seq), generation: lease.generation },
        num_tokens: count(lease.num_tokens),
        blocks: lease.blocks.into_iter().map(BlockId).collect(),
    }
}

pub(crate) fn offer_out(offer: &KvOffer) -> wire::Offer {
    let KvOffer { kv, tokens, max_total_len, reads_prefix_cache } = offer;
    wire::Offer {
        kv: lease_out(kv),
        tokens: tokens.to_vec(),
        max_total_len: *max_total_len as u64,
        reads_prefix_cache: *reads_prefix_cache,
    }
}

pub(crate) fn offer_in(offer: wire::Offer) -> KvOffer {
    KvOffer {
        kv: Arc::new(lease_in(offer.kv)),
        tokens: offer.tokens.into(),
        max_total_len: count(offer.max_total_len),
        reads_prefix_cache: offer.reads_prefix_cache,
    }
}

pub(crate) fn progress_out(progress: &Progress) -> wire::Progress {
    let Progress { times, num_cached_tokens, num_prompt_logprobs, num_preemptions } = progress;
    wire::Progress {
        times: times_out(times),
        num_cached_tokens: *num_cached_tokens as u64,
        num_prompt_logprobs: *num_prompt_logprobs as u64,
        num_preemptions: *num_preemptions as u64,
    }
}

pub(crate) fn progress_in(progress: &wire::Progress) -> Progress {
    Progress {
        times: times_in(&progress.times),
        num_cached_tokens: count(progress.num_cached_tokens),
        num_prompt_logprobs: count(progress.num_prompt_logprobs),
        num_preemptions: count(progress.num_preemptions),
    }
}

pub(super) fn times_out(times: &SeqTimes) -> wire::Times {
    let SeqTimes {
        arrived,
        scheduled,
        first_token,
        kv_transfer_started,
        kv_transfer_ended,
        decode_started,
        last_token,
        finished,
    } = times;
    wire::Times {
        arrived: time_out(*arrived),
        scheduled: scheduled.map(time_out),
        first_token: first_token.map(time_out),
        kv_transfer_started: kv_transfer_started.map(time_out),
        kv_transfer_ended: kv_transfer_ended.map(time_out),
        decode_started: decode_started.map(time_out),
        last_token: last_token.map(time_out),
        finished: time_out(*finished),
    }
}

pub(super) fn times_in(times: &wire::Times) -> SeqTimes {
    SeqTimes {
        arrived: time_in(times.arrived),
        scheduled: times.scheduled.map(time_in),
        first_token: times.first_token.map(time_in),
        kv_transfer_started: times.kv_transfer_started.map(time_in),
        kv_transfer_ended: times.kv_transfer_ended.map(time_in),
        decode_started: times.decode_started.map(time_in),
        last_token: times.last_token.map(time_in),
        finished: time_in(times.finished),
    }
}
