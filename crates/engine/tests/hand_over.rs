//! What an engine leaves to others.

use std::sync::{Arc, Mutex};

use stallfree_core::{InstanceId, KvGeometry, KvLease, KvOffer, LeaseBook, SeqId, Time};
use stallfree_engine::{
    Command, HandedOver, Membership, Peers, Report, Until, Wake, output_stream,
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
        Command::Resume { seq: Box::new(seq), until }
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
