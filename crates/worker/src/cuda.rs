//! Starts the ranks of a process on NVIDIA GPUs: loads the model, takes all memory at once, joins the ranks, records steps.

mod sizes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stallfree_comm::nccl::{Communicator, Communicators};
use stallfree_comm::{Control, NodeConfig, Part};
use stallfree_core::{Clock, KvGeometry, Parallel, WallClock};
use stallfree_kernels::Backend;
use stallfree_kernels::cuda::{CudaBackend, TIMED_ROWS};
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions, Model, ModelConfig};

pub use self::sizes::cuda_dtype;
use self::sizes::{backend_config, num_blocks};
use crate::cpu::probe;
use crate::exchange::{Exchange, GpuRanks, join};
use crate::nodes::{self, agree_on_blocks, wait_for_all};
use crate::ranks::{describe, on_each, parts_of, run_all};
use crate::{Error, KvSize, Runner, ThreadExecutor, WorkerReport};

/// How to start a worker on a GPU.
#[derive(Clone, Debug)]
pub struct CudaWorkerConfig {
    /// Over how many GPUs the model is spread.
    pub parallel: Parallel,
    /// The processes that have an equal number of them each; `None` has all in this one.
    pub nodes: Option<NodeConfig>,
    /// Whether ranks may talk through each other's memory, where they reach it.
    pub peer_memory: bool,
    /// The GPU of this process's first rank, as the driver counts them; the others' follow.
    pub first_gpu: usize,
    /// Where compiled kernels are kept.
    pub kernel_cache: PathBuf,
    /// Keeps to Ampere's instructions, whatever the GPU.
    pub ampere_path: bool,
    /// Tokens a block; a multiple of 16.
    pub block_size: usize,
    /// How much KV cache to take.
    pub kv_size: KvSize,
    /// The share of the GPU's memory that all of it may take.
    pub gpu_memory_utilization: f64,
    /// The most tokens that can ever be in use at once; the default cache is no larger.
    pub max_kv_tokens: usize,
    /// The most tokens of a pass; no sequence has a longer chunk.
    pub max_tokens: usize,
    /// The most sequences of a batch for which steps are recorded ahead of time; with 0 no step is ever recorded.
    pub max_recorded_seqs: usize,
}

impl CudaWorkerConfig {
    /// Returns which process this is.
    fn node(&self) -> usize {
        self.nodes.as_ref().map_or(0, |nodes| nodes.node)
    }

    /// Decides how the ranks talk, so many of which are in this process.
    fn exchange(&self, num_ranks: usize) -> Result<Exchange, Error> {
        Exchange::choose(&GpuRanks {
            gpus: self.first_gpu..self.first_gpu + num_ranks,
            tensor: self.parallel.tensor,
            num_nodes: self.nodes.as_ref().map_or(1, |nodes| nodes.num_nodes),
            peer_memory: self.peer_memory,
        })
    }
}

/// Hears how many steps of how many are recorded.
pub type RecordingProgress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Loads `checkpoint` and starts a worker on GPUs. `recording` hears how many steps of how many are recorded.
///
/// # Errors
/// There is no GPU or library, ranks cannot reach each other, the checkpoint is unsound, or memory is short.
pub fn start_cuda(
    checkpoint: &Checkpoint,
    config: &CudaWorkerConfig,
    options: &LoadOptions<'_>,
    recording: RecordingProgress<'_>,
) -> Result<(ThreadExecutor, WorkerReport), Error> {
    let ranks = Ranks::start(checkpoint, config, options, recording)?;
    let Ranks { runners, controls, kv, exchange, communicators, phases } = ranks;
    let device = runners.first().map_or(String::new(), |runner| runner.backend().device_name());
    let device = describe(config.parallel, &device);
    let sum = |bytes: fn(&CudaBackend) -> usize| {
        runners.iter().map(|runner| bytes(runner.backend()) as u64).sum()
    };
    let report = WorkerReport {
        kv,
        weight_bytes: checkpoint.config().num_parameters() * 2,
        kv_bytes: sum(CudaBackend::kv_bytes),
        activation_bytes: sum(CudaBackend::activation_bytes),
        device: match exchange {
            Exchange::PeerMemory => device,
            Exchange::Nccl => format!("{device}, through NCCL"),
        },
        step_tokens: None,
        phases,
    };
    let executor = ThreadExecutor::spawn_with_nodes(runners, kv, controls)?;
    Ok((executor.watched(communicators)?, report))
}

/// Runs the ranks of a process other than node 0 until node 0 ends. `started` hears when all is ready.
///
/// # Errors
/// As [`start_cuda`], or a rank fails, or another process is lost.
pub fn run_cuda_node(
    checkpoint: &Checkpoint,
    config: &CudaWorkerConfig,
    options: &LoadOptions<'_>,
    recording: RecordingProgress<'_>,
    started: impl FnOnce(),
) -> Result<(), Error> {
    let ranks = Ranks::start(checkpoint, config, options, recording)?;
    let Ranks { runners, mut controls, kv, communicators, .. } = ranks;
    let executor = ThreadExecutor::spawn(runners, kv)?.watched(communicators)?;
    started();
    controls.pop().map_or(Ok(()), |control| executor.obey(control))
}

/// The ranks of this process, ready.
struct Ranks {
    runners: Vec<Runner<CudaBackend>>,
    /// To other processes.
    controls: Vec<Control>,
    kv: KvGeometry,
    exchange: Exchange,
    communicators: Vec<Arc<Communicator>>,
    phases: Vec<(&'static str, Duration)>,
}

/// A rank's GPU with its part of the model.
type LoadedRank = (CudaBackend, Box<dyn Model<CudaBackend>>);

impl Ranks {
    fn start(
        checkpoint: &Checkpoint,
        config: &CudaWorkerConfig,
        options: &LoadOptions<'_>,
        recording: RecordingProgress<'_>,
    ) -> Result<Self, Error> {
        let clock = WallClock::start();
        let mut phases = Vec::new();
        let mut last = clock.now();
        let mut done = |phase| {
            let now = clock.now();
            phases.push((phase, now - std::mem::replace(&mut last, now)));
        };
        let (model, parallel) = (checkpoint.config(), config.parallel);
        model.check_split(parallel.tensor, parallel.pipeline)?;
        let parts = parts_of(parallel, config.nodes.as_ref());
        let exchange = config.exchange(parts.len())?;
        let mut controls = Vec::new();
        if let Some(nodes) = &config.nodes {
            controls = stallfree_comm::meet(nodes)?;
            done("meet other nodes");
        }
        let node = config.node();
        let (runners, kv, communicators) = nodes::start(node, &mut controls, |controls| {
            let ranks = on_each((config.first_gpu..).zip(parts), |rank| {
                let config = backend_config(model, config, options.dtype, rank);
                Ok((rank.1, CudaBackend::new(config)?))
            })?;
            done("open GPU");
            let ranks = load(checkpoint, ranks, options)?;
            done("load weights");
            let mut joined = None;
            if exchange == Exchange::Nccl {
                // Before the cache takes what memory is left.
                let gpus = ranks.iter().map(|(backend, model)| (model.part(), backend.device()));
                joined = Some(join(gpus, parallel, (node, controls))?);
                done("join ranks");
            }
            let (mut runners, kv) = allocate(ranks, config, (node, controls))?;
            done("allocate KV cache");
            warm_up(&mut runners, kv, config.max_tokens)?;
            let communicators =
                joined.iter().flatten().flat_map(Communicators::all).cloned().collect();
            connect(&mut runners, parallel, joined, model)?;
            done("warm up");
            record(&mut runners, config, recording)?;
            // A step waits for all of its ranks, and should not wait for those that still compile.
            wait_for_all(node, controls)?;
            done("record steps");
            Ok((runners, kv, communicators))
        })?;
        Ok(Self { runners, controls, kv, exchange, communicators, phases })
    }
}

/// Loads every rank's part.
fn load(
    checkpoint: &Checkpoint,
    ranks: Vec<(Part, CudaBackend)>,
    options: &LoadOptions<'_>,
) -> Result<Vec<LoadedRank>, Error> {
    on_each(ranks.into_iter().enumerate(), |(place, (part, mut backend))| {
        // The backend converts; matrices stay as they are until then.
        let dtype = DtypeChoice::Auto;
        let progress = options.progress.filter(|_| place == 0);
        let options = LoadOptions { dtype, part, progress };
        let model = stallfree_models::load(checkpoint, &mut backend, &options)?;
        Ok((backend, model))
    })
}

/// Takes the memory of all ranks' caches.
fn allocate(
    ranks: Vec<LoadedRank>,
    config: &CudaWorkerConfig,
    (node, controls): (usize, &mut [Control]),
) -> Result<(Vec<Runner<CudaBackend>>, KvGeometry), Error> {
    // Every rank has as many blocks as the one with the least room.
    let counts = ranks.iter().map(|(backend, model)| num_blocks(backend, &**model, config));
    let counts: Vec<usize> = counts.collect::<Result<_, Error>>()?;
    let least = counts.into_iter().min().unwrap_or(1);
    let num_blocks = agree_on_blocks(node, controls, least)?;
    let kv = KvGeometry { num_blocks, block_size: config.block_size };
    let runners = on_each(ranks, |(mut backend, model)| {
        backend.allocate_kv(&model.kv_spec(kv.num_blocks, kv.block_size))?;
        Ok(Runner::new(backend, model, kv.block_size, config.max_tokens))
    })?;
    Ok((runners, kv))
}

/// Compiles and loads every kernel, and times products, so that no request waits for it.
fn warm_up(
    runners: &mut [Runner<CudaBackend>],
    kv: KvGeometry,
    max_tokens: usize,
) -> Result<(), Error> {
    let longest = max_tokens.min(kv.num_tokens());
    let ends = TIMED_ROWS.into_iter().filter(|&rows| rows < longest);
    // Steps are filled up to the next timed number, for which there is memory.
    let last = TIMED_ROWS.into_iter().find(|&rows| rows >= longest);
    let last = last.filter(|&rows| rows <= kv.num_tokens());
    let last = last.unwrap_or(longest.min(TIMED_ROWS[TIMED_ROWS.len() - 1]));
    for num_tokens in ends.chain([last]) {
        run_all(runners, &probe(num_tokens, 0, kv.block_size))?;
    }
    Ok(())
}

/// Joins the ranks: by their communicators, or else by each other's memory.
fn connect(
    runners: &mut [Runner<CudaBackend>],
    parallel: Parallel,
    communicators: Option<Vec<Communicators>>,
    model: &ModelConfig,
) -> Result<(), Error> {
    match communicators {
        None if parallel == Parallel::NONE => Ok(()),
        None => connect_by_memory(runners, parallel, model.hidden_size),
        Some(communicators) => {
            let sizes = (model.hidden_size, model.vocab_size);
            connect_through_nccl(runners, communicators, sizes)
        }
    }
}

/// Joins the ranks of each stage, and the stages, by each other's memory.
fn connect_by_memory(
    runners: &mut [Runner<CudaBackend>],
    parallel: Parallel,
    hidden_size: usize,
) -> Result<(), Error> {
    for stage in runners.chunks_mut(parallel.tensor) {
        let mut ranks: Vec<_> = stage.iter_mut().map(Runner::backend_mut).collect();
        CudaBackend::connect(&mut ranks, hidden_size)?;
    }
    for share in (0..parallel.tensor).filter(|_| parallel.pipeline > 1) {
        let ranks = runners.iter_mut().skip(share).step_by(parallel.tensor);
        let mut ranks: Vec<_> = ranks.map(Runner::backend_mut).collect();
        CudaBackend::connect_stages(&mut ranks, hidden_size)?;
    }
    Ok(())
}

/// Joins each rank to the others by its communicators.
fn connect_through_nccl(
    runners: &mut [Runner<CudaBackend>],
    communicators: Vec<Communicators>,
    (hidden_size, vocab_size): (usize, usize),
) -> Result<(), Error> {
    on_each(runners.iter_mut().zip(communicators), |(runner, communicators)| {
        let backend = runner.backend_mut();
        Ok(backend.connect_through_nccl(communicators, hidden_size, vocab_size)?)
    })
    .map(|_| ())
}

/// Records steps of single tokens ahead of time, on all ranks at once.
fn record(
    runners: &mut [Runner<CudaBackend>],
    config: &CudaWorkerConfig,
    recording: RecordingProgress<'_>,
) -> Result<(), Error> {
    let num_seqs = config.max_recorded_seqs.min(config.max_tokens);
    on_each(runners.iter_mut().enumerate(), |(place, runner)| {
        let progress = |done, total| {
            if place == 0 {
                recording(done, total);
            }
        };
        runner.prepare(num_seqs, &progress);
        Ok(())
    })
    .map(|_| ())
}
