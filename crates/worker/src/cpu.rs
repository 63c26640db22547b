//! Starts a worker on the CPU: loads the model, takes the KV cache's memory, measures a step.

use std::time::Duration;

use stallfree_comm::{Control, Joined, Mesh, NodeConfig, Part, Peers};
use stallfree_core::{
    Batch, BatchId, BlockId, Chunk, Clock, KvGeometry, Parallel, SeqId, Time, WallClock,
};
use stallfree_kernels::Backend;
use stallfree_kernels::cpu::{CpuBackend, CpuConfig, KvType};
use stallfree_models::{Checkpoint, LoadOptions, Model, ModelConfig};

use crate::nodes::{self, agree_on_blocks};
use crate::ranks::{describe, on_each, parts_of, run_all};
use crate::step_times::StepTimes;
use crate::{Error, KvSize, Runner, ThreadExecutor, WorkerReport};

/// A step that decodes wait for should take no longer than this.
const STEP_TARGET: Duration = Duration::from_millis(500);

/// Larger batches run in several passes: beyond this, more rows are no faster, and activations take memory for each.
const MAX_TOKENS: usize = 4096;

/// The default KV cache takes at most this much.
const DEFAULT_KV_BYTES: u64 = 4 << 30;

/// How to start a worker on the CPU.
#[derive(Clone, Debug)]
pub struct CpuWorkerConfig {
    /// Threads of all ranks together, instructions, the KV cache's type.
    pub cpu: CpuConfig,
    /// Over how many ranks the model is spread.
    pub parallel: Parallel,
    /// The processes that have an equal number of them each; `None` has all in this one.
    pub nodes: Option<NodeConfig>,
    /// Tokens a block.
    pub block_size: usize,
    /// How much KV cache to take.
    pub kv_size: KvSize,
    /// The most tokens that can ever be in use at once; the default cache is no larger.
    pub max_kv_tokens: usize,
    /// The longest context, at which a step's tokens are measured.
    pub max_model_len: usize,
    /// Whether to measure how many tokens a step can take.
    pub measure_step: bool,
}

/// Loads `checkpoint` and starts a worker on the CPU.
///
/// # Errors
/// The checkpoint is unsound, or memory is short.
pub fn start_cpu(
    checkpoint: &Checkpoint,
    config: &CpuWorkerConfig,
    options: &LoadOptions<'_>,
) -> Result<(ThreadExecutor, WorkerReport), Error> {
    let clock = WallClock::start();
    let Ranks { runners, controls, kv, loaded } = Ranks::start(checkpoint, config, options, clock)?;
    let allocated = clock.now();
    let mut probing =
        Probing { runners, block_size: kv.block_size, clock, times: StepTimes::default() };
    let context = config.max_model_len.min(kv.num_tokens()).max(1);
    // Even where nobody asks, one step is timed, for the heartbeat to know what to expect of the first. Other processes hear of
    // steps only from the engine.
    let step_tokens = match config.measure_step {
        _ if !controls.is_empty() => None,
        true => Some(probing.measure(context)?),
        false => probing.seconds_each(context.min(16), 0).map(|_| None)?,
    };
    let Probing { runners, times, .. } = probing;
    let phases = vec![
        ("load weights", loaded.since_start()),
        ("allocate KV cache", allocated - loaded),
        ("measure a step", clock.now() - allocated),
    ];
    let sum = |bytes: fn(&CpuBackend) -> usize| {
        runners.iter().map(|runner| bytes(runner.backend()) as u64).sum()
    };
    let report = WorkerReport {
        kv,
        weight_bytes: checkpoint.num_bytes(),
        kv_bytes: sum(CpuBackend::kv_bytes),
        activation_bytes: sum(CpuBackend::activation_bytes),
        device: describe(config.parallel, &config.cpu.to_string()),
        step_tokens,
        phases,
    };
    let executor = ThreadExecutor::spawn_with_nodes(runners, kv, controls)?;
    Ok((executor.expecting(times), report))
}

/// Runs the ranks of a process other than node 0 until node 0 ends. `started` hears what there is, once all is loaded.
///
/// # Errors
/// As [`start_cpu`], or a rank fails.
pub fn run_cpu_node(
    checkpoint: &Checkpoint,
    config: &CpuWorkerConfig,
    options: &LoadOptions<'_>,
    started: impl FnOnce(),
) -> Result<(), Error> {
    let ranks = Ranks::start(checkpoint, config, options, WallClock::start())?;
    let Ranks { runners, mut controls, kv, .. } = ranks;
    let executor = ThreadExecutor::spawn(runners, kv)?;
    started();
    controls.pop().map_or(Ok(()), |control| executor.obey(control))
}

/// The ranks of this process, loaded.
struct Ranks {
    runners: Vec<Runner<CpuBackend>>,
    /// To other processes.
    controls: Vec<Control>,
    kv: KvGeometry,
    loaded: Time,
}

impl Ranks {
    fn start(
        checkpoint: &Checkpoint,
        config: &CpuWorkerConfig,
        options: &LoadOptions<'_>,
        clock: WallClock,
    ) -> Result<Self, Error> {
        let Parallel { tensor, pipeline } = config.parallel;
        checkpoint.config().check_split(tensor, pipeline)?;
        let parts = parts_of(config.parallel, config.nodes.as_ref());
        let (ends, mut controls) = match &config.nodes {
            None => (Mesh::threads(parts.len()), Vec::new()),
            Some(nodes) => {
                let Joined { ranks, controls } = stallfree_comm::join(nodes)?;
                (ranks, controls)
            }
        };
        let node = config.nodes.as_ref().map_or(0, |nodes| nodes.node);
        let (runners, kv, loaded) = nodes::start(node, &mut controls, |controls| {
            let room = num_blocks(checkpoint.config(), &parts, config)?;
            let loaded_ranks = load(checkpoint, config, options, parts.into_iter().zip(ends))?;
            let loaded = clock.now();
            let num_blocks = agree_on_blocks(node, controls, room)?;
            let kv = KvGeometry { num_blocks, block_size: config.block_size };
            let runners = on_each(loaded_ranks, |(mut backend, model)| {
                backend.allocate_kv(&model.kv_spec(kv.num_blocks, kv.block_size))?;
                Ok(Runner::new(backend, model, kv.block_size, MAX_TOKENS))
            })?;
            Ok((runners, kv, loaded))
        })?;
        Ok(Self { runners, controls, kv, loaded })
    }
}

/// A rank's device with its part of the model.
type LoadedRank = (CpuBackend, Box<dyn Model<CpuBackend>>);

/// Loads every rank's part, on as many threads as it will compute with.
fn load(
    checkpoint: &Checkpoint,
    config: &CpuWorkerConfig,
    options: &LoadOptions<'_>,
    ranks: impl ExactSizeIterator<Item = (Part, Mesh)>,
) -> Result<Vec<LoadedRank>, Error> {
    let num_threads = (config.cpu.num_threads / ranks.len().max(1)).max(1);
    let cpu = CpuConfig { num_threads, ..config.cpu.clone() };
    on_each(ranks, |(part, world)| {
        let mut backend = CpuBackend::with_peers(cpu.clone(), Peers::new(world, part))?;
        // One of them says how far it is.
        let progress = options.progress.filter(|_| part.tensor.is_first());
        let options = LoadOptions { part, progress, ..*options };
        let model = stallfree_models::load(checkpoint, &mut backend, &options)?;
        Ok((backend, model))
    })
}

/// Returns how many blocks the caches of all ranks have, which share the machine's memory.
fn num_blocks(
    model: &ModelConfig,
    parts: &[Part],
    config: &CpuWorkerConfig,
) -> Result<usize, Error> {
    let elements: usize = parts
        .iter()
        .map(|&part| {
            let spec = model.kv_spec(part, 1, config.block_size);
            // The cache pads a key block's positions and a value's elements to whole vectors.
            let keys = spec.block_size.next_multiple_of(16) * spec.head_dim;
            let values = spec.block_size * spec.head_dim.next_multiple_of(16);
            spec.num_layers * spec.num_kv_heads * (keys + values)
        })
        .sum();
    let element_bytes = match config.cpu.kv_type {
        KvType::F16 => 2,
        KvType::F32 => 4,
    };
    let block_bytes = (elements * element_bytes) as u64;
    let free = || DEFAULT_KV_BYTES.min(free_memory() / 4);
    let enough = config.max_kv_tokens.div_ceil(config.block_size);
    config.kv_size.num_blocks(block_bytes, enough, free)
}

/// Returns the bytes of memory that are free, for the system and for the control group; 8 GiB where neither says.
fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let number = |path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // Without a limit the file says "max", which is no number.
    let limit = number("/sys/fs/cgroup/memory.max");
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    let group = limit.map(|limit| limit.saturating_sub(used));
    [kib.map(|kib| kib * 1024), group].into_iter().flatten().min().unwrap_or(8 << 30)
}

/// Runners whose steps are timed before they serve.
struct Probing {
    runners: Vec<Runner<CpuBackend>>,
    block_size: usize,
    clock: WallClock,
    times: StepTimes,
}

impl Probing {
    /// Returns how many prompt tokens a step computes in [`STEP_TARGET`] at the end of a prompt of `context` tokens, where attention
    /// takes longest: a multiple of 64 from 64 to 2,048.
    ///
    /// A token's time is its share of a long chunk without context, and what the context adds to a short one.
    fn measure(&mut self, context: usize) -> Result<usize, Error> {
        let few = context.min(16);
        let in_few = self.seconds_each(few, 0)?;
        let in_many = if in_few < 5e-3 { self.seconds_each(context.min(128), 0)? } else { in_few };
        let for_context = (self.seconds_each(few, context - few)? - in_few).max(0.0);
        let fits = STEP_TARGET.as_secs_f64() / (in_many.min(in_few) + for_context).max(1e-9);
        Ok((fits as usize / 64 * 64).clamp(64, 2048))
    }

    /// Returns the seconds a token of a chunk that begins at position `start`.
    fn seconds_each(&mut self, num_tokens: usize, start: usize) -> Result<f64, Error> {
        // The faster of two: other processes can only make a step longer, and the first one also fills caches.
        let mut time = Duration::MAX;
        for _ in 0..2 {
            let started = self.clock.now();
            run_all(&mut self.runners, &probe(num_tokens, start, self.block_size))?;
            time = time.min(self.clock.now() - started);
        }
        self.times.record(num_tokens, time);
        Ok(time.as_secs_f64() / num_tokens as f64)
    }
}

/// Returns a batch of one chunk that begins at position `start`, in the first blocks, which hold nothing yet.
pub(crate) fn probe(num_tokens: usize, start: usize, block_size: usize) -> Batch {
    let num_blocks = (start + num_tokens).div_ceil(block_size);
    let block_ids: Vec<_> = (0..num_blocks as u32).map(BlockId).collect();
    let chunk = Chunk {
        seq: SeqId(0),
        num_computed_tokens: start,
        tokens: 0..num_tokens,
        blocks: 0..block_ids.len(),
        sample: None,
        prompt_logprobs: None,
    };
    Batch { id: BatchId(0), chunks: vec![chunk], token_ids: vec![1; num_tokens], block_ids }
}
