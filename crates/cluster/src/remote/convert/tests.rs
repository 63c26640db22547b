use std::sync::Arc;
use std::time::Duration;

use stallfree_core::{
    BlockId, FinishReason, InstanceId, KvLease, KvOffer, LeaseId, Request, SamplingParams, SeqId,
    Slo, StopRules, Time, TokenLogprob,
};
use stallfree_engine::{
    Admitted, EngineStats, Finished, HandedOver, OutputToken, Progress, Report, SeqOutput,
    SeqTimes, StepModel, Until, output_stream,
};

use super::*;
use crate::Role;

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
    Progress { times: times(), num_cached_tokens: 16, num_prompt_logprobs: 3, num_preemptions: 1 }
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
        logit_bias: Arc::new([(3, -1.5), (4, 2.0)]),
        allowed_token_ids: Arc::new([1, 2, 3]),
        bad_words: Arc::new([vec![7], vec![8, 9]]),
        seed: u64::MAX,
        logprobs: Some(0),
        prompt_logprobs: Some(5),
    };
    let stop =
        StopRules { max_tokens: 9, min_tokens: 2, stop_token_ids: Arc::new([0, 4_000_000_000]) };
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
            admission: Some(Admitted { at: at(2), num_cached_tokens: 8 }),
            tokens: vec![token].into(),
            prompt_logprobs: vec![vec![], vec![logprob(1)]],
            finished: Some(finished(FinishReason::Stop, Some(0))),
            ..SeqOutput::default()
        },
        SeqOutput { finished: Some(finished(FinishReason::Length, None)), ..SeqOutput::default() },
        SeqOutput { finished: Some(finished(FinishReason::Abort, None)), ..SeqOutput::default() },
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
