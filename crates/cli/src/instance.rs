//! A running engine with its model: opens the files, starts the device, puts the engine together, starts its thread.

mod companions;
mod joining;
mod members;
mod node;
mod simulation;
mod worker;

pub(crate) use companions::{Companions, open_tokenizer};
pub(crate) use joining::run;
pub(crate) use members::{Member, in_virtual_time, members, on_threads};
pub(crate) use node::{decline, run_node};
pub(crate) use simulation::sizes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use stallfree_cluster::Role;
use stallfree_core::{Clock as _, Executor, WallClock};
use stallfree_engine::{Engine, EngineHandle, EngineInfo, StepObserver};
use stallfree_models::Checkpoint;
use stallfree_scheduler::{Planner, SchedulerConfig};
use stallfree_server::Metrics;
use stallfree_transfer::Ports;
use stallfree_worker::WorkerReport;

use crate::args::Auto;
use crate::config::{DeploymentConfig, DeviceConfig, InstanceConfig, TokenBudget, WeightsFrom};
use members::Seat;
use worker::start_worker;

/// A running engine, what belongs to its model, and what starting it found.
#[derive(Debug)]
pub(crate) struct Instance {
    /// The engine.
    pub(crate) engine: Arc<dyn EngineHandle>,
    /// What the engine's steps fill.
    pub(crate) metrics: Arc<Metrics>,
    /// What belongs to the model beside its weights.
    pub(crate) companions: Companions,
    /// What starting each of its engines in this process found.
    pub(crate) reports: Vec<StartReport>,
}

/// What starting an engine found.
#[derive(Clone, Debug)]
pub(crate) struct StartReport {
    /// What it is for.
    pub(crate) role: Role,
    /// The worker's part.
    pub(crate) worker: WorkerReport,
    /// The policy.
    pub(crate) policy: String,
    /// The planner's limits.
    pub(crate) scheduler: SchedulerConfig,
    /// What the model would take if there were memory for it.
    pub(crate) model_len: usize,
    /// How long each phase took.
    pub(crate) phases: Vec<(&'static str, Duration)>,
}

/// An engine that nothing drives yet.
#[derive(Debug)]
pub(crate) struct Built {
    /// The engine.
    pub(crate) engine: Engine,
    /// The worker's part of the report.
    pub(crate) worker: WorkerReport,
    /// The planner's limits.
    pub(crate) scheduler: SchedulerConfig,
    /// How many tokens the model knows.
    pub(crate) vocab_size: usize,
}

/// Starts the engines of a deployment for the model at `path`; `name` labels their metrics.
///
/// # Errors
/// The model can't be read or is not supported, or the machine is too small for it.
pub(crate) fn start(path: &Path, name: &str, config: &DeploymentConfig) -> Result<Instance> {
    let clock = WallClock::start();
    let mut metrics: Option<Arc<Metrics>> = None;
    let mut observe = |_, scheduler: &SchedulerConfig| {
        metrics.get_or_insert_with(|| Metrics::new(name, scheduler.max_model_len)).observer()
    };
    let checkpoint = open(path, config.base.weights)?;
    tracing::info!("Model {name}: {}", checkpoint.describe());
    let (opened, ports) = (clock.now(), Ports::default());
    // An address that is taken shows now, not after minutes of loading; who comes early waits.
    let gate = config.gate.as_ref();
    let gate = gate.map(|args| joining::gate(args, &ports, (&checkpoint, &config.base)));
    let gate = gate.transpose()?;
    // The two don't need each other, and the tokenizer keeps one core busy for as long as a small model's weights do.
    let (companions, built) = std::thread::scope(|scope| {
        let companions = scope.spawn(|| {
            let started = clock.now();
            Companions::read(&checkpoint, &config.base)
                .map(|companions| (companions, clock.now() - started))
        });
        let built = members::members_of(Some(&checkpoint), path, config, &ports, &mut observe);
        (companions.join(), built)
    });
    let (companions, tokenizer_time) =
        companions.map_err(|_| anyhow::anyhow!("reading the tokenizer panicked"))??;
    let members = built?;
    let (texts, vocab_size) = (companions.tokenizer.vocab_size(), checkpoint.config().vocab_size);
    if texts > vocab_size {
        bail!(
            "the tokenizer has {texts} tokens, but the model only {vocab_size}: they don't belong together"
        );
    }
    let model_len = checkpoint.config().max_model_len();
    let mut before = vec![
        ("open model", opened.since_start()),
        ("read tokenizer (beside the next)", tokenizer_time),
    ];
    let mut reports = Vec::new();
    for (Member { role, built, .. }, (_, config)) in members.iter().zip(&config.instances) {
        let (worker, scheduler) = (built.worker.clone(), built.scheduler.clone());
        let mut phases = std::mem::take(&mut before);
        phases.extend(worker.phases.iter().copied());
        let policy = config.policy.clone();
        reports.push(StartReport { role: *role, worker, policy, scheduler, model_len, phases });
    }
    let engine = on_threads(members, gate, config, config.base.max_num_waiting)?;
    let metrics = metrics.unwrap_or_else(|| Metrics::new(name, engine.info().max_model_len));
    Ok(Instance { engine, metrics, companions, reports })
}

/// Builds an engine for the model at `path` that `observer` watches, without what only text needs.
///
/// # Errors
/// As [`start`].
pub(crate) fn engine(
    path: &Path,
    config: &InstanceConfig,
    observer: Box<dyn StepObserver>,
) -> Result<Built> {
    build(start_device(None, path, config, None)?, config, |_| Some(observer))
}

/// A device with a model in its memory.
struct Started {
    executor: Box<dyn Executor>,
    worker: WorkerReport,
    /// The longest context that the model is made for.
    model_len: usize,
    vocab_size: usize,
}

fn build(
    started: Started,
    config: &InstanceConfig,
    observer: impl FnOnce(&SchedulerConfig) -> Option<Box<dyn StepObserver>>,
) -> Result<Built> {
    let Started { executor, worker, model_len, vocab_size } = started;
    let scheduler = SchedulerConfig {
        max_in_flight: executor.max_in_flight(),
        ..scheduler_config(config, &worker, model_len)
    };
    let info = EngineInfo {
        scheduler: config.policy.clone(),
        max_model_len: scheduler.max_model_len,
        kv: worker.kv,
        enable_prefix_caching: scheduler.enable_prefix_caching,
    };
    let planner = Planner::new(scheduler.clone(), worker.kv, &config.policy)?;
    let observer = observer(&scheduler);
    let engine = Engine::new(planner, executor, observer, info);
    Ok(Built { engine, worker, scheduler, vocab_size })
}

/// Opens the model at `path`.
///
/// # Errors
/// It can't be read or is not supported.
pub(crate) fn open(path: &Path, weights: WeightsFrom) -> Result<Checkpoint> {
    let built_in = || stallfree_sim::built_in_config(path.to_str()?);
    let checkpoint = match weights {
        // Its sizes and its tokenizer are in the file.
        WeightsFrom::Chance if is_gguf(path) => Checkpoint::open(path),
        WeightsFrom::Chance => match built_in().filter(|_| !path.exists()) {
            Some(config) => Checkpoint::dummy_of(&config),
            None => Checkpoint::dummy(path),
        },
        WeightsFrom::Files => Checkpoint::open(path),
    };
    checkpoint.with_context(|| format!("the model at {} can't be opened", path.display()))
}

fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// Starts what computes, or what predicts how long that would take.
fn start_device(
    checkpoint: Option<&Checkpoint>,
    path: &Path,
    config: &InstanceConfig,
    seat: Option<&Seat>,
) -> Result<Started> {
    match (&config.device, checkpoint) {
        // More models can be simulated than computed.
        (DeviceConfig::Sim(device), _) => simulation::start(path, device, config, seat),
        (_, Some(checkpoint)) => start_worker(checkpoint, config, seat),
        (_, None) => start_worker(&open(path, config.weights)?, config, seat),
    }
}

/// Completes the planner's limits with what the model and the device say.
fn scheduler_config(
    config: &InstanceConfig,
    worker: &WorkerReport,
    model_len: usize,
) -> SchedulerConfig {
    let given = config.scheduler.clone();
    SchedulerConfig {
        max_num_batched_tokens: match config.token_budget {
            TokenBudget::Exactly(count) => count,
            TokenBudget::Measured => worker.step_tokens.unwrap_or(given.max_num_batched_tokens),
        },
        max_model_len: match config.max_model_len {
            Auto::Exactly(count) => count,
            Auto::Fit => model_len.min(worker.kv.num_tokens()),
        },
        // Batches in different stages hold different sequences.
        decode_pending: config.parallel.pipeline == 1,
        ..given
    }
}
