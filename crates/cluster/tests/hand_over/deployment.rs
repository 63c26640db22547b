//! A deployment of mocks in virtual time.

use std::time::Duration;

use stallfree_cluster::{ClusterReplay, DispatchConfig, Role, Start, build, roles};
use stallfree_core::{BatchId, InstanceId, KvGeometry, LeaseBook, Request};
use stallfree_engine::{SeqOutput, Stages};
use stallfree_scheduler::SchedulerConfig;
use stallfree_testkit::equivalence::{Case, engine};
use stallfree_testkit::{Fault, Language, MockConfig, MockExecutor, MockNetwork};

pub(crate) const BLOCK_SIZE: usize = 4;
pub(crate) const MAX_MODEL_LEN: usize = 64;

/// A deployment.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) roles: Vec<Role>,
    pub(crate) dispatch: DispatchConfig,
    pub(crate) case: Case,
    pub(crate) fetch_ms: u64,
    /// Of how many fetches one fails, if any do.
    pub(crate) failing_fetch: Option<u64>,
    /// Which instances are lost, and at which of their batches.
    pub(crate) faults: Vec<(usize, u64)>,
}

impl Deployment {
    pub(crate) fn new(count: usize, partition: usize) -> Self {
        let limits = SchedulerConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 32,
            max_model_len: MAX_MODEL_LEN,
            ..SchedulerConfig::default()
        };
        let case = Case { policy: "sarathi", limits, num_blocks: 40, max_in_flight: 1 };
        let dispatch = DispatchConfig::default();
        Self {
            roles: roles(count, partition),
            dispatch,
            case,
            fetch_ms: 7,
            failing_fetch: None,
            faults: Vec::new(),
        }
    }

    pub(crate) fn start(&self) -> ClusterReplay {
        let network = MockNetwork::default();
        let start = |(index, &role): (usize, &Role)| {
            let fails = |&&(instance, _): &&(usize, u64)| instance == index;
            let fault = self.faults.iter().find(fails).map(|&(_, at)| Fault::Fails(BatchId(at)));
            let config = MockConfig {
                kv: KvGeometry { num_blocks: self.case.num_blocks, block_size: BLOCK_SIZE },
                max_in_flight: self.case.max_in_flight,
                fetch_time: Duration::from_millis(self.fetch_ms),
                failing_fetch: self.failing_fetch,
                fault,
                ..MockConfig::default()
            };
            let leases = LeaseBook::default();
            let instance = InstanceId(index as u32);
            let executor = MockExecutor::on(&network, instance, leases.clone(), config);
            Start { engine: engine(&self.case, Box::new(executor)), role, leases }
        };
        let instances = self.roles.iter().enumerate().map(start).collect();
        ClusterReplay::new(instances, build(&self.dispatch).expect("a policy"))
    }

    /// Checks that nothing is left of any sequence.
    pub(crate) fn check_empty(&self, replay: &ClusterReplay) {
        for (index, engine) in replay.engines().enumerate() {
            let was_lost = self.faults.iter().any(|&(instance, _)| instance == index);
            assert!(engine.dead().is_none() || was_lost, "{self:?}: {:?}", engine.dead());
            engine.check_integrity().expect("the books agree");
            let stats = engine.stats();
            let gauges = (stats.num_running, stats.num_waiting);
            assert_eq!(gauges, (0, 0), "instance {index} of {self:?}");
            if engine.dead().is_none() {
                assert_eq!(stats.num_used_blocks, 0, "instance {index} of {self:?}");
            }
        }
    }
}

/// Checks that a sequence has the tokens of an undisturbed engine, and ended.
pub(crate) fn check_answer(output: &SeqOutput, request: &Request, about: &Deployment) {
    let tokens: Vec<u32> = output.tokens.iter().map(|token| token.token).collect();
    assert_eq!(tokens, Language::answer(request, MAX_MODEL_LEN), "{about:?}");
    assert!(output.finished.is_some(), "{about:?}: {output:?}");
    let finished = output.finished.as_ref().expect("its end");
    // The stages of its life follow one another from beginning to end.
    let Stages { prefill_queue, prefill, kv_transfer, decode_queue, decode } =
        finished.times.stages().expect("it has a token");
    let life = finished.times.last_token.expect("it has a token") - finished.times.arrived;
    assert_eq!(prefill_queue + prefill + kv_transfer + decode_queue + decode, life, "{about:?}");
}
