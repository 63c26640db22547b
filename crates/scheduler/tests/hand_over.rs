//! Sequences whose KV comes from elsewhere: whatever ends when, all blocks come back.

use std::sync::Arc;

use stallfree_core::{BlockId, InstanceId, KvGeometry, KvLease, KvOffer, LeaseId, SeqId, Time};
use stallfree_scheduler::{Planner, SchedulerConfig, Sequence};

const ID: SeqId = SeqId(3);

/// What happens to a sequence of which something was offered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// It comes.
    Comes,
    /// What there is room for is fetched.
    Starts,
    /// A fetch ends.
    Arrives,
    /// Its reader leaves.
    Leaves,
    /// It does not come.
    Retracted,
}
use Event::{Arrives, Comes, Leaves, Retracted, Starts};

fn check(events: &[Event]) {
    let limits = SchedulerConfig { max_model_len: 64, ..SchedulerConfig::default() };
    let kv = KvGeometry { num_blocks: 32, block_size: 4 };
    let mut planner = Planner::new(limits, kv, "sarathi").expect("limits that work");
    let prompt: Vec<u32> = (0..16).collect();
    let lease = |num_blocks: u32| {
        let blocks = (0..num_blocks).map(BlockId).collect();
        let id = LeaseId { seq: ID, generation: 1 };
        Arc::new(KvLease {
            instance: InstanceId(0),
            id,
            num_tokens: 4 * num_blocks as usize,
            blocks,
        })
    };
    let offer = KvOffer {
        kv: lease(2),
        tokens: prompt.as_slice().into(),
        max_total_len: 40,
        reads_prefix_cache: true,
    };
    assert!(planner.expect(&offer, Time::ZERO).is_some());
    for event in events {
        match event {
            Comes => {
                let mut seq = Sequence::new(ID, prompt.clone(), 40, 0, Time::ZERO);
                seq.tokens.push(7);
                seq.kv = Some(lease(4));
                planner.add(seq).expect("it fits");
            }
            Starts => assert_eq!(planner.start_fetches(Time::ZERO).len(), 1, "{events:?}"),
            Arrives => drop(planner.end_fetch(ID, true)),
            Leaves => drop(planner.finish(ID)),
            Retracted => planner.retract(ID),
        }
    }
    planner.check_integrity().expect("the books agree");
    assert_eq!(planner.load().num_used_blocks, 0, "{events:?}");
    assert!(!planner.awaits_others(), "{events:?}");
}

#[test]
fn blocks_come_back_whatever_ends_first() {
    check(&[Retracted, Arrives]);
    check(&[Arrives, Retracted]);
    check(&[Comes, Leaves, Arrives]);
    check(&[Arrives, Comes, Leaves]);
    check(&[Comes, Starts, Leaves, Arrives, Arrives]);
    check(&[Comes, Starts, Arrives, Leaves, Arrives]);
    check(&[Arrives, Comes, Starts, Arrives, Leaves]);
}
