//! How often a policy is asked about what waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stallfree_core::{Clock as _, InstanceId, Request, SeqId, Slo, Time};
use stallfree_engine::{
    Command, HandedOver, OutputStream, Peers as _, Report, Role, StepModel, output_stream,
};
use stallfree_testkit::{ManualClock, greedy};

use super::{Lines, Link, RETRY, Switchboard};
use crate::{Choice, Directory, Dispatch, DispatchConfig, Member, SeqView, build};

const NUM_WAITING: usize = 1000;

/// Counts questions.
#[derive(Debug)]
struct Counting(Box<dyn Dispatch>, Arc<AtomicUsize>);

impl Dispatch for Counting {
    fn pick(&mut self, seq: &SeqView, candidates: &[&Member], now: Time) -> Choice {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.pick(seq, candidates, now)
    }

    fn may_take(&self, member: &Member, least: &SeqView, now: Time) -> bool {
        self.0.may_take(member, least, now)
    }

    fn multiplexes(&self) -> bool {
        self.0.multiplexes()
    }
}

/// Instances that take everything.
struct Obedient;

impl Lines for Obedient {
    fn send(&self, _: InstanceId, _: Command) -> Result<(), Command> {
        Ok(())
    }
}

#[test]
fn what_waits_is_tried_when_there_may_be_room() {
    let config =
        DispatchConfig { max_multiplexing_length: 8, ..DispatchConfig::named("multiplexing") };
    let (clock, asked) = (Arc::new(ManualClock::default()), Arc::new(AtomicUsize::new(0)));
    let mut dispatcher = build(&config).expect("a policy");
    dispatcher.policy = Box::new(Counting(dispatcher.policy, Arc::clone(&asked)));
    let directory = Directory::new(&[Role::Prefill, Role::Decode], dispatcher);
    let switchboard = Switchboard::new(directory, Box::new(Obedient), Arc::clone(&clock) as _);
    let mut streams: Vec<OutputStream> = Vec::new();
    let mut submit = |len: u32| {
        let id = SeqId(streams.len() as u64);
        let (output, stream) = output_stream(id, || ());
        streams.push(stream);
        let slo = Slo { ttft: Some(Duration::from_millis(1)), tpot: None };
        let request = Request { slo, ..greedy((0..len).collect(), 5) };
        switchboard.route(HandedOver::new(id, request, clock.now(), output), None);
    };
    let report = |instance: u32, first_tokens: Vec<SeqId>| {
        let steps = StepModel { prefill: [0.0, 1e-3, 0.0], ..StepModel::default() };
        let report = Report { at: clock.now(), first_tokens, steps, ..Report::default() };
        let switchboard = Arc::downgrade(&switchboard);
        Link { instance: InstanceId(instance), switchboard }.report(report);
    };
    let count = || asked.swap(0, Ordering::Relaxed);
    report(0, Vec::new());
    report(1, Vec::new());
    (0..=NUM_WAITING).for_each(|_| submit(20));
    assert_eq!(switchboard.num_waiting(), NUM_WAITING, "the first one is computed");
    assert_eq!(count(), NUM_WAITING + 1, "each is asked about as it comes");
    (0..100).for_each(|_| report(1, Vec::new()));
    assert_eq!(count(), 0, "none fits where decodes are, which the shortest shows");
    report(0, Vec::new());
    assert_eq!(count(), 0, "the first one is still being computed");
    report(0, vec![SeqId(0)]);
    assert!((NUM_WAITING..=NUM_WAITING + 1).contains(&count()), "now there is room for one");
    assert_eq!(switchboard.num_waiting(), NUM_WAITING - 1);
    submit(7);
    assert_eq!((count(), switchboard.num_waiting()), (1, NUM_WAITING - 1), "it is short enough");
    clock.advance(RETRY);
    report(1, Vec::new());
    assert_eq!(count(), NUM_WAITING - 1, "what is predicted becomes certain");
}
