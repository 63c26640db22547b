//! A running engine with its model: opens the files, reads tokenizer and template, loads the weights, starts the thread.

mod joining;
mod members;
mod simulation;

pub(crate) use joining::run;
pub(crate) use members::{Member, in_virtual_time, members, on_threads};
pub(crate) use simulation::sizes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use stallfree_cluster::Role;
use stallfree_core::{Clock as _, Executor, Parallel, WallClock};
use stallfree_engine::{Engine, EngineHandle, EngineInfo, StepObserver};
use stallfree_kernels::cpu::CpuConfig;
use stallfree_models::{
    Checkpoint, GenerationDefaults, GgufTokenizer, LoadOptions, SpecialTokens, TokenizerSource,
};
use stallfree_scheduler::{Planner, Registry, SchedulerConfig};
use stallfree_server::Metrics;
use stallfree_tokenizer::{ChatTemplate, GgufVocab, Tokenizer};
use stallfree_transfer::Ports;
use stallfree_worker::{CpuWorkerConfig, CudaWorkerConfig, NodeConfig, WorkerReport};

use crate::args::{Auto, Kernels};
use crate::config::{
    DeploymentConfig, DeviceConfig, GenerationFrom, GpuConfig, InstanceConfig, Nodes, TemplateFrom,
    TokenBudget, TokenizerFrom, WeightsFrom,
};
use crate::console;
use members::Seat;

/// How long processes wait for each other: some may have to load a model from far away first.
const NODE_PATIENCE: Duration = Duration::from_secs(600);

/// How long a node that does not start waits for node 0 to tell it, which may be opening the model.
const DECLINE_PATIENCE: Duration = Duration::from_secs(10);

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

/// What belongs to a model beside its weights.
#[derive(Debug)]
pub(crate) struct Companions {
    /// The tokenizer.
    pub(crate) tokenizer: Tokenizer,
    /// The chat template, if there is one.
    pub(crate) chat_template: Option<ChatTemplate>,
    /// What its makers suggest for sampling.
    pub(crate) generation: GenerationDefaults,
    /// How special tokens are written.
    pub(crate) special: SpecialTokens,
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
            companions(&checkpoint, &config.base)
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

/// Reads the tokenizer of the model at `path` alone.
///
/// # Errors
/// The model has none, or it can't be read.
pub(crate) fn open_tokenizer(path: &Path, config: &InstanceConfig) -> Result<Tokenizer> {
    tokenizer(&open(path, config.weights)?, config)
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

/// Loads the weights and starts what computes.
fn start_worker(
    checkpoint: &Checkpoint,
    config: &InstanceConfig,
    seat: Option<&Seat>,
) -> Result<Started> {
    let model_len = checkpoint.config().max_model_len();
    let wanted = match config.max_model_len {
        Auto::Exactly(count) if count > model_len => {
            bail!("--max-model-len {count} is more than the model's {model_len}")
        }
        Auto::Exactly(count) => count,
        Auto::Fit => model_len,
    };
    let progress = console::LoadProgress::new("Loading weights");
    let show = |done, total| progress.show(done, total);
    let options =
        LoadOptions { dtype: config.dtype, progress: Some(&show), ..LoadOptions::default() };
    let (mut executor, worker) = match &config.device {
        DeviceConfig::Sim(device) => bail!("{} computes nothing", device.gpu.name),
        DeviceConfig::Cpu(cpu) => {
            let worker = cpu_worker(checkpoint, cpu, config, wanted);
            check_node(worker.nodes.as_ref())?;
            stallfree_worker::start_cpu(checkpoint, &worker, &options)?
        }
        DeviceConfig::Cuda(gpu) => {
            let worker = cuda_worker(checkpoint, gpu, config, wanted)?;
            check_node(worker.nodes.as_ref())?;
            let progress = console::LoadProgress::new("Recording steps");
            let recording = |done: usize, total: usize| progress.show(done as u64, total as u64);
            stallfree_worker::start_cuda(checkpoint, &worker, &options, &recording)?
        }
    };
    if let Some(seat) = seat {
        let joined = executor.join(&seat.ports, seat.instance, seat.leases.clone());
        joined.context("KV can't be handed over")?;
    }
    let vocab_size = checkpoint.config().vocab_size;
    Ok(Started { executor: Box::new(executor), worker, model_len, vocab_size })
}

/// Makes sure that this is node 0, to which others come, if there are any.
fn check_node(nodes: Option<&NodeConfig>) -> Result<()> {
    match nodes {
        Some(NodeConfig { node, .. }) if *node > 0 => {
            bail!("--node-rank {node}: only `stallfree serve` joins others")
        }
        _ => Ok(()),
    }
}

/// Returns how this process meets those that share the ranks with it; all must have `limits` in common.
fn nodes(checkpoint: &Checkpoint, config: &InstanceConfig, limits: &str) -> Option<NodeConfig> {
    let Parallel { tensor, pipeline } = config.parallel;
    let nodes = config.nodes.as_ref()?;
    Some(NodeConfig {
        num_nodes: nodes.count,
        node: nodes.node,
        master: nodes.master.clone(),
        ranks_per_node: config.num_local_ranks(),
        agreement: format!(
            "{} with --tensor-parallel-size {tensor} --pipeline-parallel-size {pipeline} --nnodes {} --block-size {}{limits}",
            checkpoint.describe(),
            nodes.count,
            config.block_size
        ),
        patience: NODE_PATIENCE,
    })
}

/// Returns how to start this process's ranks on the CPU.
fn cpu_worker(
    checkpoint: &Checkpoint,
    cpu: &CpuConfig,
    config: &InstanceConfig,
    max_model_len: usize,
) -> CpuWorkerConfig {
    CpuWorkerConfig {
        cpu: cpu.clone(),
        parallel: config.parallel,
        nodes: nodes(checkpoint, config, " --device cpu"),
        block_size: config.block_size,
        kv_size: config.kv_size,
        max_kv_tokens: config.scheduler.max_num_seqs.saturating_mul(max_model_len),
        max_model_len,
        measure_step: config.token_budget == TokenBudget::Measured,
    }
}

/// Returns how to start this process's ranks on GPUs.
fn cuda_worker(
    checkpoint: &Checkpoint,
    gpu: &GpuConfig,
    config: &InstanceConfig,
    max_model_len: usize,
) -> Result<CudaWorkerConfig> {
    let (max_tokens, max_num_seqs) =
        (longest_step(config, max_model_len)?, config.scheduler.max_num_seqs);
    // Ranks that cut a batch in other passes would wait for each other's without end.
    let dtype = format!("{:?}", config.dtype).to_lowercase();
    let limits = format!(
        " --device cuda --dtype {dtype} --max-num-batched-tokens {max_tokens} --max-num-seqs {max_num_seqs} --max-model-len {max_model_len}"
    );
    Ok(CudaWorkerConfig {
        parallel: config.parallel,
        nodes: nodes(checkpoint, config, &limits),
        peer_memory: gpu.peer_memory,
        first_gpu: config.first_gpu,
        kernel_cache: gpu.kernel_cache.clone(),
        ampere_path: gpu.kernels == Kernels::Sm80,
        block_size: config.block_size,
        kv_size: config.kv_size,
        gpu_memory_utilization: gpu.memory_utilization,
        max_kv_tokens: max_num_seqs.saturating_mul(max_model_len),
        max_tokens,
        max_recorded_seqs: if gpu.records { max_num_seqs } else { 0 },
    })
}

/// Tells node 0 why this node does not come.
pub(crate) fn decline(nodes: &Nodes, error: &anyhow::Error) {
    let Nodes { count, node, master } = nodes;
    tracing::warn!("Telling node 0 at {master} that this node does not start: {error:#}");
    stallfree_worker::decline(master, (*node, *count), &format!("{error:#}"), DECLINE_PATIENCE);
}

/// Runs the ranks of a process other than the one that answers, until that one ends.
///
/// # Errors
/// The processes don't meet, a rank fails, or another process is lost.
pub(crate) fn run_node(checkpoint: &Checkpoint, config: &InstanceConfig) -> Result<()> {
    let progress = console::LoadProgress::new("Loading weights");
    let show = |done, total| progress.show(done, total);
    let options =
        LoadOptions { dtype: config.dtype, progress: Some(&show), ..LoadOptions::default() };
    let max_model_len = match config.max_model_len {
        Auto::Exactly(count) => count,
        Auto::Fit => checkpoint.config().max_model_len(),
    };
    let joining = config.nodes.as_ref().map_or("", |nodes| &nodes.master);
    tracing::info!("Joining node 0 at {joining}");
    let started = || tracing::info!("Computing for node 0");
    match &config.device {
        DeviceConfig::Cpu(cpu) => {
            let worker = cpu_worker(checkpoint, cpu, config, max_model_len);
            stallfree_worker::run_cpu_node(checkpoint, &worker, &options, started)?;
        }
        DeviceConfig::Cuda(gpu) => {
            let worker = cuda_worker(checkpoint, gpu, config, max_model_len)?;
            let progress = console::LoadProgress::new("Recording steps");
            let recording = |done: usize, total: usize| progress.show(done as u64, total as u64);
            stallfree_worker::run_cuda_node(checkpoint, &worker, &options, &recording, started)?;
        }
        DeviceConfig::Sim(_) => bail!("a simulation needs no nodes"),
    }
    tracing::info!("Node 0 has ended");
    Ok(())
}

/// Returns the most tokens of a step, or, for a policy that has no such bound, of a chunk.
fn longest_step(config: &InstanceConfig, max_model_len: usize) -> Result<usize> {
    let mut limits = SchedulerConfig { max_model_len, ..config.scheduler.clone() };
    if let TokenBudget::Exactly(count) = config.token_budget {
        limits.max_num_batched_tokens = count;
    }
    let declared = Registry::default().build(&config.policy, &limits)?.declares();
    Ok(declared.token_bound.unwrap_or(max_model_len))
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

/// Reads what belongs to the model beside its weights.
fn companions(checkpoint: &Checkpoint, config: &InstanceConfig) -> Result<Companions> {
    let tokenizer = tokenizer(checkpoint, config)?;
    let template = match &config.chat_template {
        TemplateFrom::Text(text) => Some(text.clone()),
        TemplateFrom::Model => checkpoint.chat_template()?,
    };
    let generation = match &config.generation {
        GenerationFrom::Model => checkpoint.generation_config()?,
        GenerationFrom::Neutral => GenerationDefaults {
            eos_token_ids: checkpoint.generation_config()?.eos_token_ids,
            ..GenerationDefaults::default()
        },
        GenerationFrom::Json(json) => GenerationDefaults::new(Some(json), checkpoint.config()),
    };
    Ok(Companions {
        tokenizer,
        chat_template: template.as_deref().map(ChatTemplate::new).transpose()?,
        generation,
        special: checkpoint.special_tokens()?,
    })
}

fn tokenizer(checkpoint: &Checkpoint, config: &InstanceConfig) -> Result<Tokenizer> {
    Ok(match &config.tokenizer {
        TokenizerFrom::File(path) => Tokenizer::from_file(path),
        TokenizerFrom::Model => match checkpoint.tokenizer_source()? {
            TokenizerSource::File(path) => Tokenizer::from_file(path),
            TokenizerSource::Gguf(vocab) => Tokenizer::from_gguf(vocab_of(*vocab)),
        },
    }?)
}

fn vocab_of(gguf: GgufTokenizer) -> GgufVocab {
    GgufVocab {
        model: gguf.model,
        pre: Some(gguf.pre).filter(|pre| !pre.is_empty()),
        tokens: gguf.tokens,
        token_types: gguf.token_types,
        merges: gguf.merges,
        scores: gguf.scores,
        bos: gguf.bos_token_id,
        eos: gguf.eos_token_id,
        unk: gguf.unknown_token_id,
        pad: gguf.padding_token_id,
        add_bos: gguf.add_bos_token,
        add_space_prefix: gguf.add_space_prefix,
    }
}
