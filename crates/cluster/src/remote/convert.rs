//! Between the engine's values and the messages that carry them. A field that is added on either side has to find its place here,
//! or this does not compile.

use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{
    BlockId, FinishReason, InstanceId, KvLease, KvOffer, LeaseId, Request, SamplingParams, SeqId,
    Slo, StopRules, Time, TokenLogprob,
};
use stallfree_engine::{
    Admission, EngineStats, Finished, HandedOver, OutputSender, OutputToken, Progress, Report,
    SeqOutput, SeqTimes, StepModel, Until,
};

use super::message as wire;
use crate::Role;

/// Counts are of things in this machine's memory; a larger one is a lie that some limit refuses.
fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn time_out(time: Time) -> u64 {
    nanos(time.since_start())
}

pub(crate) const fn time_in(nanos: u64) -> Time {
    Time::from_start(Duration::from_nanos(nanos))
}

pub(crate) const fn role_out(role: Role) -> wire::Role {
    match role {
        Role::Mixed => wire::Role::Mixed,
        Role::Prefill => wire::Role::Prefill,
        Role::Decode => wire::Role::Decode,
    }
}

pub(crate) const fn role_in(role: wire::Role) -> Role {
    match role {
        wire::Role::Mixed => Role::Mixed,
        wire::Role::Prefill => Role::Prefill,
        wire::Role::Decode => Role::Decode,
    }
}

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
        stop_token_ids: stop_token_ids.clone(),
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
            stop_token_ids: request.stop_token_ids,
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
        allowed_token_ids: allowed_token_ids.clone(),
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
        allowed_token_ids: params.allowed_token_ids,
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

fn times_out(times: &SeqTimes) -> wire::Times {
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

fn times_in(times: &wire::Times) -> SeqTimes {
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

pub(crate) fn output_out(seq: SeqId, output: SeqOutput) -> wire::Output {
    let SeqOutput { admission, tokens, prompt_logprobs, finished, error, retry_after } = output;
    let admission_out = |Admission { at, num_cached_tokens }| wire::Admission {
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
    let admission_in = |admission: wire::Admission| Admission {
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

/// What else is known of an instance beside its engine's figures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// How many sequences it has been given, ever.
    pub(crate) num_taken: u64,
    /// For how long its step has been late.
    pub(crate) late: Option<Duration>,
    /// How long its queue takes to become empty.
    pub(crate) retry_after: Duration,
}

pub(crate) fn report_out(stats: &EngineStats, load: Load) -> wire::Report {
    let EngineStats {
        num_running,
        num_waiting,
        num_used_blocks,
        num_blocks,
        prompt_tokens,
        generation_tokens,
        prefix_cache_queries,
        prefix_cache_hits,
        num_preemptions,
        num_steps,
    } = stats;
    wire::Report {
        num_taken: load.num_taken,
        num_running: *num_running as u64,
        num_waiting: *num_waiting as u64,
        num_used_blocks: *num_used_blocks as u64,
        num_blocks: *num_blocks as u64,
        prompt_tokens: *prompt_tokens,
        generation_tokens: *generation_tokens,
        prefix_cache_queries: *prefix_cache_queries,
        prefix_cache_hits: *prefix_cache_hits,
        num_preemptions: *num_preemptions,
        num_steps: *num_steps,
        late: load.late.map(nanos),
        retry_after: nanos(load.retry_after),
    }
}

pub(crate) fn report_in(report: &wire::Report) -> (EngineStats, Load) {
    let stats = EngineStats {
        num_running: count(report.num_running),
        num_waiting: count(report.num_waiting),
        num_used_blocks: count(report.num_used_blocks),
        num_blocks: count(report.num_blocks),
        prompt_tokens: report.prompt_tokens,
        generation_tokens: report.generation_tokens,
        prefix_cache_queries: report.prefix_cache_queries,
        prefix_cache_hits: report.prefix_cache_hits,
        num_preemptions: report.num_preemptions,
        num_steps: report.num_steps,
    };
    let load = Load {
        num_taken: report.num_taken,
        late: report.late.map(Duration::from_nanos),
        retry_after: Duration::from_nanos(report.retry_after),
    };
    (stats, load)
}

pub(crate) fn account_out(report: &Report) -> wire::Account {
    let Report { at, num_decodes, decode_tokens, slack_until, first_tokens, steps } = report;
    let StepModel { prefill, decode, max_chunk } = steps;
    wire::Account {
        at: time_out(*at),
        num_decodes: *num_decodes as u64,
        decode_tokens: *decode_tokens as u64,
        slack_until: slack_until.map(time_out),
        first_tokens: first_tokens.iter().map(|seq| seq.0).collect(),
        steps: prefill.iter().chain(decode).copied().collect(),
        max_chunk: *max_chunk as u64,
    }
}

pub(crate) fn account_in(account: &wire::Account) -> Report {
    let step = |index: usize| account.steps.get(index).copied().unwrap_or_default();
    Report {
        at: time_in(account.at),
        num_decodes: count(account.num_decodes),
        decode_tokens: count(account.decode_tokens),
        slack_until: account.slack_until.map(time_in),
        first_tokens: account.first_tokens.iter().map(|&seq| SeqId(seq)).collect(),
        steps: StepModel {
            prefill: [step(0), step(1), step(2)],
            decode: [step(3), step(4), step(5)],
            max_chunk: count(account.max_chunk),
        },
    }
}

#[cfg(test)]
mod tests {
    use stallfree_engine::output_stream;

    use super::*;

    const fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    fn times() -> SeqTimes {
        SeqTimes {
            arrived: at(1),
            scheduled: Some(at(2)),
            first_token: Some(at(3)),
            kv_transfer_started: Some(at(4)),
            kv_transfer_ended: None,
            decode_started: Some(at(4)),
            last_token: None,
            finished: at(5),
        }
    }

    fn progress() -> Progress {
        Progress {
            times: times(),
            num_cached_tokens: 16,
            num_prompt_logprobs: 3,
            num_preemptions: 1,
        }
    }

    /// Sends a message through bytes.
    fn through<M: prost::Message + Default>(message: &M) -> M {
        M::decode(message.encode_to_vec().as_slice()).expect("its own bytes")
    }

    #[test]
    fn a_sequence_arrives_as_it_left() {
        let sampling = SamplingParams {
            temperature: 0.7,
            top_k: 20,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: -0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(3, -1.5), (4, 2.0)],
            allowed_token_ids: vec![1, 2, 3],
            bad_words: vec![vec![7], vec![8, 9]],
            seed: u64::MAX,
            logprobs: Some(0),
            prompt_logprobs: Some(5),
        };
        let stop =
            StopRules { max_tokens: 9, min_tokens: 2, stop_token_ids: vec![0, 4_000_000_000] };
        let slo = Slo { ttft: Some(Duration::from_millis(250)), tpot: None };
        let (prompt, sampling) = (vec![1, 2, 3], Arc::new(sampling));
        let request = Request { prompt, sampling, stop, priority: -4, slo };
        let blocks = vec![BlockId(5), BlockId(0)];
        let id = LeaseId { seq: SeqId(7), generation: 1 << 40 };
        let kv = KvLease { instance: InstanceId(2), id, num_tokens: 30, blocks };
        for (kv, until) in [(None, Until::End), (Some(Arc::new(kv)), Until::NextToken)] {
            let seq = HandedOver {
                id: SeqId(7),
                request: request.clone(),
                arrived: at(1),
                output_tokens: vec![11, 12],
                kv,
                output: output_stream(SeqId(7), || ()).0,
                progress: progress(),
            };
            let run = through(&run_out(&seq, until));
            let (found, found_until) = run_in(run, output_stream(SeqId(7), || ()).0);
            let words = |seq: &HandedOver| {
                let HandedOver { id, request, arrived, output_tokens, kv, progress, .. } = seq;
                format!("{id} {request:?} {arrived} {output_tokens:?} {kv:?} {progress:?}")
            };
            assert_eq!((words(&found), found_until), (words(&seq), until));
        }
    }

    #[test]
    fn an_offer_arrives_as_it_left() {
        for reads_prefix_cache in [false, true] {
            let id = LeaseId { seq: SeqId(7), generation: 3 };
            let blocks = vec![BlockId(9), BlockId(2)];
            let kv = KvLease { instance: InstanceId(1), id, num_tokens: 32, blocks };
            let tokens = vec![5, 0, 4_000_000_000].into();
            let offer = KvOffer { kv: Arc::new(kv), tokens, max_total_len: 90, reads_prefix_cache };
            assert_eq!(offer_in(through(&offer_out(&offer))), offer);
        }
    }

    #[test]
    fn an_output_arrives_as_it_left() {
        let logprob = |token| TokenLogprob { token, logprob: -0.5, rank: 1 };
        let token = OutputToken { token: 4, logprobs: vec![logprob(4), logprob(6)], at: at(9) };
        let finished = |reason, stop_token| Finished {
            reason,
            stop_token,
            times: times(),
            num_cached_tokens: 8,
            num_preemptions: 2,
        };
        for output in [
            SeqOutput::default(),
            SeqOutput {
                admission: Some(Admission { at: at(2), num_cached_tokens: 8 }),
                tokens: vec![token],
                prompt_logprobs: vec![vec![], vec![logprob(1)]],
                finished: Some(finished(FinishReason::Stop, Some(0))),
                ..SeqOutput::default()
            },
            SeqOutput {
                finished: Some(finished(FinishReason::Length, None)),
                ..SeqOutput::default()
            },
            SeqOutput {
                finished: Some(finished(FinishReason::Abort, None)),
                ..SeqOutput::default()
            },
            SeqOutput {
                error: Some("nobody took it".to_owned()),
                retry_after: Some(Duration::from_secs(3)),
                ..SeqOutput::default()
            },
        ] {
            let expected = format!("{output:?}");
            let found = output_in(through(&output_out(SeqId(1), output)));
            assert_eq!(format!("{found:?}"), expected);
        }
    }

    #[test]
    fn a_report_arrives_as_it_left() {
        let stats = EngineStats {
            num_running: 1,
            num_waiting: 2,
            num_used_blocks: 3,
            num_blocks: 4,
            prompt_tokens: 5,
            generation_tokens: 6,
            prefix_cache_queries: 7,
            prefix_cache_hits: 8,
            num_preemptions: 9,
            num_steps: 10,
        };
        let late = Some(Duration::from_secs(11));
        let load = Load { num_taken: 12, late, retry_after: Duration::from_millis(1300) };
        let (found, found_load) = report_in(&through(&report_out(&stats, load)));
        assert_eq!((found, format!("{found_load:?}")), (stats, format!("{load:?}")));
        let account = Report {
            at: at(1),
            num_decodes: 2,
            decode_tokens: 3,
            slack_until: Some(at(4)),
            first_tokens: vec![SeqId(5), SeqId(6)],
            steps: StepModel { prefill: [0.5, 1.5, 2.5], decode: [3.5, 4.5, 5.5], max_chunk: 7 },
        };
        assert_eq!(account_in(&through(&account_out(&account))), account);
        for role in [Role::Mixed, Role::Prefill, Role::Decode] {
            assert_eq!(role_in(role_out(role)), role);
        }
    }
}
