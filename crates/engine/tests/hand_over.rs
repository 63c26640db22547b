//! What an engine leaves to others.

use std::sync::{Arc, Mutex};

use stallfree_core::{
    BlockId, InstanceId, KvGeometry, KvLease, KvOffer, LeaseBook, LeaseId, SeqId, Time,
};
use stallfree_engine::{
    Command, Engine, HandedOver, Membership, Peers, Report, Until, Wake, output_stream,
};
use stallfree_scheduler::SchedulerConfig;
use stallfree_testkit::equivalence::{Case, engine};
use stallfree_testkit::{MockConfig, MockExecutor, greedy};

/// Others that take note of what they are given.
#[derive(Clone, Default)]
struct Others(Arc<Mutex<Vec<HandedOver>>>);

impl Peers for Others {
    fn take(&mut self, seq: HandedOver, lost: Option<&str>) {
        assert_eq!(lost, None);
        self.0.lock().expect("no panic").push(seq);
    }

    fn release(&mut self, _: &KvLease) {}

    fn ended(&mut self, _: SeqId) {}

    fn report(&mut self, _: Report) {}

    fn offer(&mut self, _: KvOffer) {}

    fn take_back(&mut self, _: SeqId) {}
}

fn roomy(max_in_flight: usize) -> Engine {
    let kv = KvGeometry { num_blocks: 64, block_size: 4 };
    let executor = MockExecutor::boxed(MockConfig { kv, max_in_flight, ..MockConfig::default() });
    let limits = SchedulerConfig { max_model_len: 64, ..SchedulerConfig::default() };
    let case = Case { policy: "sarathi", limits, num_blocks: 64, max_in_flight };
    engine(&case, executor)
}

/// Nothing may be left that waits for a batch of which nobody is any more.
#[test]
fn a_batch_whose_only_sequence_came_back_still_ends() {
    let mut engine = roomy(1);
    let mut streams = Vec::new();
    let mut run = || {
        let (output, stream) = output_stream(SeqId(0), || ());
        streams.push(stream);
        Command::run(SeqId(0), greedy(vec![1, 2, 3], 5), Time::ZERO, output)
    };
    engine.step(Time::ZERO, [run()]);
    engine.step(Time::ZERO, [Command::Cancel(SeqId(0))]);
    let mut wake = engine.step(Time::ZERO, [run()]);
    while let Wake::At(at) = wake {
        wake = engine.step(at, []);
    }
    assert_eq!(engine.dead(), None);
    let last = streams.pop().and_then(|mut stream| stream.blocking_next()).expect("an output");
    assert_eq!(last.tokens.len(), 5);
}

/// What another process says of KV may be anything: then the sequence is computed anew.
#[test]
fn kv_that_is_none_of_the_sequence_is_not_waited_for() {
    let lease = |seq: u64, num_tokens: usize| KvLease {
        instance: InstanceId(1),
        id: LeaseId { seq: SeqId(seq), generation: 0 },
        num_tokens,
        blocks: (0..num_tokens.div_ceil(4) as u32).map(BlockId).collect(),
    };
    // All of its tokens, of which none would be left to compute; more; another sequence's.
    for kv in [lease(0, 8), lease(0, 9), lease(1, 7)] {
        let mut engine = roomy(2);
        let (instance, leases) = (InstanceId(0), LeaseBook::default());
        engine.join(Membership { instance, peers: Box::new(Others::default()), leases });
        let (output, mut stream) = output_stream(SeqId(0), || ());
        let request = greedy((0..8).collect(), 5);
        let mut seq = HandedOver::new(SeqId(0), request, Time::ZERO, output);
        seq.kv = Some(Arc::new(kv.clone()));
        let mut wake =
            engine.step(Time::ZERO, [Command::Run { seq: Box::new(seq), until: Until::End }]);
        while let Wake::At(at) = wake {
            wake = engine.step(at, []);
        }
        assert_eq!(engine.dead(), None, "{kv:?}");
        assert_eq!(stream.blocking_next().map(|output| output.tokens.len()), Some(5), "{kv:?}");
    }
}

/// A sequence whose blocks are taken while its last token here is in flight has no KV that anybody could fetch.
#[test]
fn what_lost_its_blocks_leaves_without_kv() {
    let kv = KvGeometry { num_blocks: 4, block_size: 4 };
    let executor =
        MockExecutor::boxed(MockConfig { kv, max_in_flight: 2, ..MockConfig::default() });
    let limits = SchedulerConfig {
        max_model_len: 16,
        max_num_batched_tokens: 64,
        watermark: 0.0,
        ..SchedulerConfig::default()
    };
    let case = Case { policy: "vllm", limits, num_blocks: 4, max_in_flight: 2 };
    let mut engine = engine(&case, executor);
    let others = Others::default();
    let (instance, leases) = (InstanceId(0), LeaseBook::default());
    engine.join(Membership { instance, peers: Box::new(others.clone()), leases });
    // Two blocks each; the first one's next token needs a third.
    let mut streams = Vec::new();
    let sequence = |(id, until): (u64, Until)| {
        let (output, stream) = output_stream(SeqId(id), || ());
        streams.push(stream);
        let request = greedy((0..8).map(|i| i + 10 * id as u32).collect(), 6);
        let seq = HandedOver::new(SeqId(id), request, Time::ZERO, output);
        Command::Run { seq: Box::new(seq), until }
    };
    let mut inbox: Vec<Command> =
        [(0, Until::End), (1, Until::NextToken)].into_iter().map(sequence).collect();
    let mut now = Time::ZERO;
    while let Wake::At(at) = engine.step(now, inbox.drain(..)) {
        now = at;
    }
    assert_eq!(engine.dead(), None);
    let taken = others.0.lock().expect("no panic");
    let left: Vec<_> = taken.iter().map(|s| (s.id, s.output_tokens.len(), s.kv.clone())).collect();
    assert_eq!(left, [(SeqId(1), 1, None)]);
    assert_eq!(engine.stats().num_used_blocks, 0);
    engine.check_integrity().expect("the books agree");
}
