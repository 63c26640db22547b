//! Engines on GPUs, of which some prefill and others decode.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stallfree_cluster::{Cluster, ClusterConfig, DispatchConfig, GateConfig, Role, Start};
use stallfree_core::{
    BlockId, Clock, Executor as _, InstanceId, KvFetch, KvGeometry, KvLease, LeaseBook, LeaseId,
    Parallel, Request, SamplingParams, Slo, StopRules, Time, TokenId, WallClock, lock,
};
use stallfree_engine::{Engine, EngineInfo, StepObserver, StepRecord};
use stallfree_models::{Checkpoint, LoadOptions};
use stallfree_scheduler::{Planner, SchedulerConfig};
use stallfree_transfer::{Deliver, KvPort, Ports};
use stallfree_worker::{CudaWorkerConfig, KvSize, ThreadExecutor, start_cuda};

use crate::Outcome;

pub(crate) const BLOCK_SIZE: usize = 16;

/// An instance to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) role: Role,
    pub(crate) first_gpu: usize,
    pub(crate) parallel: Parallel,
    /// The most tokens of a step.
    pub(crate) max_num_batched_tokens: usize,
}

/// What all instances have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) num_blocks: usize,
    pub(crate) max_num_seqs: usize,
    pub(crate) max_model_len: usize,
    /// Whether KV is to go through the host's memory.
    pub(crate) through_host: bool,
}

/// The steps that an instance has completed.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepLog(Arc<Mutex<Vec<StepRecord>>>);

impl StepLog {
    pub(crate) fn take(&self) -> Vec<StepRecord> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl StepObserver for StepLog {
    fn on_step(&mut self, step: &StepRecord) {
        lock(&self.0).push(step.clone());
    }
}

/// A port that keeps to itself where the memory is.
#[derive(Debug)]
struct ThroughHost(Arc<dyn KvPort>);

impl KvPort for ThroughHost {
    fn read(&self, lease: LeaseId, blocks: &[BlockId], deliver: Deliver) {
        self.0.read(lease, blocks, deliver);
    }
}

pub(crate) fn kernel_cache() -> PathBuf {
    std::env::temp_dir().join("stallfree-kernels")
}

pub(crate) fn executor(
    checkpoint: &Checkpoint,
    member: &Member,
    settings: &Settings,
) -> Outcome<ThreadExecutor> {
    let config = CudaWorkerConfig {
        parallel: member.parallel,
        nodes: None,
        peer_memory: true,
        first_gpu: member.first_gpu,
        kernel_cache: kernel_cache(),
        ampere_path: false,
        block_size: BLOCK_SIZE,
        kv_size: KvSize::Blocks(settings.num_blocks),
        gpu_memory_utilization: 0.9,
        max_kv_tokens: settings.num_blocks * BLOCK_SIZE,
        max_tokens: member.max_num_batched_tokens.max(settings.max_num_seqs),
        max_recorded_seqs: settings.max_num_seqs,
    };
    Ok(start_cuda(checkpoint, &config, &LoadOptions::default(), &|_, _| ())?.0)
}

/// Executors that can fetch from each other.
pub(crate) struct Executors {
    pub(crate) ports: Ports,
    pub(crate) all: Vec<(ThreadExecutor, LeaseBook)>,
}

impl Executors {
    pub(crate) fn start(
        checkpoint: &Checkpoint,
        members: &[Member],
        settings: &Settings,
    ) -> Outcome<Self> {
        let mut this = Self { ports: Ports::default(), all: Vec::new() };
        for (index, member) in (0..).zip(members) {
            let (leases, instance) = (LeaseBook::default(), InstanceId(index));
            let mut executor = executor(checkpoint, member, settings)?;
            executor.join(&this.ports, instance, leases.clone())?;
            if let Some(port) = this.ports.get(instance).filter(|_| settings.through_host) {
                this.ports.open(instance, Arc::new(ThroughHost(port)));
            }
            this.all.push((executor, leases));
        }
        Ok(this)
    }

    /// Makes the instances; `logs` get their steps.
    pub(crate) fn into_instances(
        self,
        members: &[Member],
        settings: &Settings,
        logs: &[StepLog],
    ) -> Outcome<Vec<Start>> {
        let mut starts = Vec::new();
        for (((executor, leases), member), log) in self.all.into_iter().zip(members).zip(logs) {
            let engine = engine(executor, member, settings, log)?;
            starts.push(Start { engine, role: member.role, leases });
        }
        Ok(starts)
    }

    /// Lets instance 1 fetch from instance 0, and waits for it; what went wrong is the inner error.
    pub(crate) fn fetch(
        &mut self,
        lease: LeaseId,
        blocks: &[(BlockId, BlockId)],
    ) -> Outcome<Result<(), String>> {
        self.start_fetch(lease, blocks)?;
        let clock = WallClock::start();
        while clock.now().since_start() < Duration::from_secs(10) {
            if let Some((_, result)) = self.all[1].0.fetched(Time::ZERO).pop() {
                return Ok(result);
            }
        }
        Err("a fetch does not come to an end".into())
    }

    pub(crate) fn start_fetch(
        &mut self,
        id: LeaseId,
        blocks: &[(BlockId, BlockId)],
    ) -> Outcome<()> {
        let (from, to): (Vec<_>, Vec<_>) = blocks.iter().copied().unzip();
        let num_tokens = from.len() * BLOCK_SIZE;
        let lease = KvLease { instance: InstanceId(0), id, num_tokens, blocks: from };
        let fetch = KvFetch { seq: id.seq, lease: lease.into(), first: 0, blocks: to };
        Ok(self.all[1].0.fetch(fetch, Time::ZERO)?)
    }
}

pub(crate) fn engine(
    executor: ThreadExecutor,
    member: &Member,
    settings: &Settings,
    log: &StepLog,
) -> Outcome<Engine> {
    let config = SchedulerConfig {
        max_in_flight: executor.max_in_flight(),
        decode_pending: member.parallel.pipeline == 1,
        max_num_seqs: settings.max_num_seqs,
        max_num_batched_tokens: member.max_num_batched_tokens,
        max_model_len: settings.max_model_len,
        enable_prefix_caching: false,
        ..SchedulerConfig::default()
    };
    let kv = KvGeometry { num_blocks: settings.num_blocks, block_size: BLOCK_SIZE };
    let info = EngineInfo {
        scheduler: "sarathi".to_owned(),
        max_model_len: settings.max_model_len,
        kv,
        enable_prefix_caching: false,
    };
    let planner = Planner::new(config, kv, "sarathi")?;
    Ok(Engine::new(planner, Box::new(executor), Some(Box::new(log.clone())), info))
}

/// Lets instances serve, each on a thread, with others that join at the gate, if there is one.
pub(crate) fn spawn(
    instances: Vec<Start>,
    clock: Arc<dyn Clock>,
    gate: Option<GateConfig>,
) -> Outcome<Cluster> {
    let dispatch = stallfree_cluster::build(&DispatchConfig::default())?;
    let config = ClusterConfig { dispatch, clock, max_waiting: 1024, gate };
    Ok(Cluster::spawn(instances, config)?)
}

/// Asks for `max_tokens` tokens, drawn from all: they differ as soon as logits do.
pub(crate) fn request(prompt: Vec<TokenId>, max_tokens: usize) -> Request {
    let stop = StopRules { max_tokens, min_tokens: max_tokens, stop_token_ids: Arc::default() };
    let sampling = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::greedy() };
    let sampling = Arc::new(sampling);
    Request { prompt, sampling, stop, priority: 0, slo: Slo::default() }
}

/// Draws a prompt; `number` makes it different from others.
pub(crate) fn prompt(number: usize, len: usize, vocab_size: usize) -> Vec<TokenId> {
    let token = |i: usize| {
        let mixed = (number * 1_000_003 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed >> 33) % vocab_size) as TokenId
    };
    (0..len).map(token).collect()
}
