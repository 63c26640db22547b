//! What each policy says, with prompts that take a millisecond a token.

use std::time::Duration;

use stallfree_core::{InstanceId, SeqId, Slo, Time};
use stallfree_engine::{Ordering, Report, Role, StepModel};

use super::{Choice, DispatchConfig, build};
use crate::{Member, SeqView};

const NOW: u64 = 1000;

fn at(ms: u64) -> Time {
    Time::from_start(Duration::from_millis(ms))
}

/// A prompt of `num_tokens` whose first token is due at a moment.
fn prompt(num_tokens: usize, deadline: Option<u64>) -> SeqView {
    let ttft = deadline.map(|deadline| at(deadline) - at(NOW - 100));
    SeqView {
        num_tokens,
        num_uncomputed: num_tokens,
        arrived: at(NOW - 100),
        slo: Slo { ttft, tpot: None },
        ..SeqView::default()
    }
}

/// A sequence that comes with its KV.
fn decode(num_tokens: usize) -> SeqView {
    let first_token = Some(at(NOW));
    SeqView { num_tokens, num_uncomputed: 1, num_output: 1, first_token, ..SeqView::default() }
}

/// An instance: its role, its prompts (tokens, deadline), until when its decodes have slack, and how many tokens these have.
type Instance<'a> = (Role, &'a [(usize, Option<u64>)], Option<u64>, usize);

fn member(index: u32, (role, prompts, slack, decode_tokens): Instance<'_>) -> Member {
    let mut member = Member::new(InstanceId(index), role);
    member.is_lost = false;
    let [ms, step] = [1e-3, 0.02];
    let steps = StepModel { prefill: [0.0, ms, 0.0], decode: [0.0, 0.0, step], max_chunk: 0 };
    member.report = Report {
        num_decodes: usize::from(decode_tokens > 0),
        decode_tokens,
        slack_until: slack.map(at),
        steps,
        ..Report::default()
    };
    for (seq, &(num_tokens, deadline)) in (0..).zip(prompts) {
        let view = prompt(num_tokens, deadline);
        member.give(SeqId(seq), &view, Ordering::Fcfs, at(NOW));
    }
    member
}

fn check(config: &DispatchConfig, instances: &[Instance<'_>], seq: SeqView, expected: Choice) {
    let members: Vec<Member> =
        (0..).zip(instances).map(|(index, &instance)| member(index, instance)).collect();
    let candidates: Vec<&Member> = members.iter().collect();
    let mut dispatcher = build(config).expect("a policy");
    let choice = dispatcher.policy.pick(&seq, &candidates, at(NOW));
    assert_eq!(choice, expected, "{} of {instances:?} for {seq:?}", config.policy);
}

#[test]
fn slack_is_left_where_there_is_most() {
    let config = DispatchConfig::named("slack");
    let busy: &[_] = &[(400, Some(2000))];
    let tight: &[_] = &[(100, Some(1200))];
    use Role::{Decode, Prefill};
    for (instances, seq, expected) in [
        // Nothing promised: whoever is done first.
        ([(Prefill, busy, None, 0), (Prefill, tight, None, 0)], prompt(50, None), 0),
        ([(Prefill, busy, None, 0), (Prefill, &[], None, 0)], prompt(50, None), 1),
        // 450 ms late leave 550; the other has 100 left for the first and 1850 for the new one.
        ([(Prefill, busy, None, 0), (Prefill, tight, None, 0)], prompt(50, Some(3000)), 0),
        ([(Prefill, busy, None, 0), (Prefill, &[], None, 0)], prompt(50, Some(3000)), 1),
        ([(Decode, &[], Some(1100), 10), (Decode, &[], Some(1300), 900)], decode(9), 1),
        ([(Decode, &[], Some(1100), 10), (Decode, &[], None, 900)], decode(9), 1),
    ] {
        check(&config, &instances, seq, Choice::Candidate(expected));
    }
}

#[test]
fn multiplexing_is_tropicals_rule() {
    let config = DispatchConfig {
        max_multiplexing_length: 300,
        decode_tokens_watermark: 1000,
        decode_step_watermark: Duration::from_millis(25),
        ..DispatchConfig::named("multiplexing")
    };
    let free: &[_] = &[];
    let busy: &[_] = &[(400, Some(1500))];
    use Role::{Decode, Mixed, Prefill};
    let to = Choice::Candidate;
    for (instances, seq, expected) in [
        // An idle instance takes everything, also what is late.
        ([(Prefill, free, None, 0), (Decode, free, None, 0)], prompt(200, Some(1100)), to(0)),
        // 400 + 90 ms, and 2 % more, are in time for both; 400 + 110 are not for the first in the queue of equals.
        ([(Prefill, busy, None, 0), (Decode, free, None, 0)], prompt(90, Some(1600)), to(0)),
        ([(Prefill, busy, None, 0), (Decode, free, None, 0)], prompt(90, Some(1490)), to(1)),
        // Decodes with slack for 200 ms and 2 % more.
        (
            [(Prefill, busy, None, 0), (Decode, free, Some(1204), 50)],
            prompt(200, Some(1300)),
            to(1),
        ),
        (
            [(Prefill, busy, None, 0), (Decode, free, Some(1203), 50)],
            prompt(200, Some(1300)),
            Choice::Wait,
        ),
        // A prompt that was given to it before takes its share of the slack.
        (
            [(Prefill, busy, None, 0), (Decode, &[(10, None)], Some(1204), 50)],
            prompt(200, Some(1300)),
            Choice::Wait,
        ),
        // Too long; too many tokens.
        (
            [(Prefill, busy, None, 0), (Decode, free, None, 0)],
            prompt(300, Some(1400)),
            Choice::Wait,
        ),
        (
            [(Prefill, busy, None, 0), (Decode, free, None, 801)],
            prompt(200, Some(1300)),
            Choice::Wait,
        ),
        // The fewest tokens, for decodes and where nobody prefills.
        ([(Decode, free, None, 9), (Decode, free, None, 8)], decode(9), to(1)),
        ([(Decode, free, Some(1000), 9), (Decode, free, Some(1000), 8)], prompt(900, None), to(1)),
        // Mixed instances prefill, as long as their decodes have slack for it.
        ([(Mixed, busy, None, 0), (Mixed, free, None, 0)], prompt(90, Some(1490)), to(1)),
        (
            [(Mixed, free, Some(1100), 9), (Mixed, free, Some(1204), 9)],
            prompt(200, Some(1300)),
            to(1),
        ),
        ([(Prefill, busy, None, 0), (Mixed, free, Some(1408), 9)], prompt(400, Some(1410)), to(1)),
        (
            [(Prefill, busy, None, 0), (Mixed, free, Some(1407), 9)],
            prompt(400, Some(1410)),
            Choice::Wait,
        ),
        // Where nobody only prefills, nobody is waited for: whoever is done first.
        ([(Mixed, busy, None, 0), (Mixed, free, Some(1000), 9)], prompt(400, Some(1410)), to(1)),
        ([(Mixed, busy, None, 0), (Decode, free, Some(1000), 9)], prompt(90, Some(1490)), to(0)),
    ] {
        check(&config, &instances, seq, expected);
    }
    let slow = DispatchConfig { decode_step_watermark: Duration::from_millis(19), ..config };
    let instances = [(Prefill, busy, None, 0), (Decode, free, None, 9)];
    check(&slow, &instances, prompt(200, Some(1300)), Choice::Wait);
}
