//! Starts a worker on a CUDA GPU: loads the model, takes all memory at once, warms the kernels up.

use std::path::PathBuf;

use stallfree_comm::Part;
use stallfree_core::{Clock, KvGeometry, WallClock};
use stallfree_device::Dtype;
use stallfree_kernels::cuda::{
    ActivationBytes, CudaBackend, CudaConfig, DECODE_SCRATCH_BYTES, TIMED_ROWS,
};
use stallfree_kernels::{Backend, WeightType};
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions, Model, ModelConfig};

use crate::cpu::probe;
use crate::ranks::{on_each, run_all};
use crate::runner::HEAD_ROWS;
use crate::start::free_share;
use crate::{Error, KvSize, Parallel, Runner, ThreadExecutor, WorkerReport};

/// How to start a worker on a GPU.
#[derive(Clone, Debug)]
pub struct CudaWorkerConfig {
    /// Over how many GPUs the model is spread.
    pub parallel: Parallel,
    /// The first rank's GPU, as the driver counts them; the others' follow.
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
    /// The most sequences of a batch for which steps are recorded ahead of time, and the most tokens that one has.
    pub recorded: (usize, usize),
}

/// Loads `checkpoint` and starts a worker on a GPU. `recording` hears how many steps of how many are recorded.
///
/// # Errors
/// There is no GPU or library, the checkpoint is unsound, or memory is short.
pub fn start_cuda(
    checkpoint: &Checkpoint,
    config: &CudaWorkerConfig,
    options: &LoadOptions<'_>,
    recording: &(dyn Fn(usize, usize) + Sync),
) -> Result<(ThreadExecutor, WorkerReport), Error> {
    let clock = WallClock::start();
    let Parallel { tensor, pipeline } = config.parallel;
    checkpoint.config().check_split(tensor, pipeline)?;
    let open = |part| {
        let backend = CudaBackend::new(backend_config(checkpoint, config, options.dtype, part))?;
        Ok((part, backend))
    };
    let ranks = on_each(config.parallel.parts(), open)?;
    let opened = clock.now();
    let ranks = on_each(ranks, |(part, mut backend)| {
        // The backend converts; matrices stay as they are until then.
        let dtype = DtypeChoice::Auto;
        let progress = options.progress.filter(|_| part.rank() == 0);
        let options = LoadOptions { dtype, part, progress };
        let model = stallfree_models::load(checkpoint, &mut backend, &options)?;
        Ok((backend, model))
    })?;
    let loaded = clock.now();
    // Every rank has as many blocks as the one with the least room.
    let counts = ranks.iter().map(|(backend, model)| num_blocks(backend, &**model, config));
    let counts: Vec<usize> = counts.collect::<Result<_, Error>>()?;
    let num_blocks = counts.into_iter().min().unwrap_or(1);
    let kv = KvGeometry { num_blocks, block_size: config.block_size };
    let mut runners = on_each(ranks, |(mut backend, model)| {
        backend.allocate_kv(&model.kv_spec(kv.num_blocks, kv.block_size))?;
        Ok(Runner::new(backend, model, kv.block_size, config.max_tokens))
    })?;
    let allocated = clock.now();
    let device = runners.first().map_or(String::new(), |runner| runner.backend().device_name());
    // Compiles and loads every kernel, and times products, so that no request waits for it.
    let longest = config.max_tokens.min(kv.num_tokens());
    let ends = TIMED_ROWS.into_iter().filter(|&rows| rows < longest);
    for num_tokens in ends.chain([longest.min(TIMED_ROWS[TIMED_ROWS.len() - 1])]) {
        run_all(&mut runners, &probe(num_tokens, 0, kv.block_size))?;
    }
    connect(&mut runners, config.parallel, checkpoint.config().hidden_size)?;
    let warm = clock.now();
    let (num_seqs, context) = config.recorded;
    let (num_seqs, context) = (num_seqs.min(config.max_tokens), context.min(kv.num_tokens()));
    on_each(&mut runners, |runner| {
        let is_first = runner.part().rank() == 0;
        let progress = |done, total| {
            if is_first {
                recording(done, total);
            }
        };
        runner.prepare(num_seqs, context, &progress);
        Ok(())
    })?;
    let phases = vec![
        ("open GPU", opened.since_start()),
        ("load weights", loaded - opened),
        ("allocate KV cache", allocated - loaded),
        ("warm up", warm - allocated),
        ("record steps", clock.now() - warm),
    ];
    let sum = |bytes: fn(&CudaBackend) -> usize| {
        runners.iter().map(|runner| bytes(runner.backend()) as u64).sum()
    };
    let report = WorkerReport {
        kv,
        weight_bytes: checkpoint.config().num_parameters() * 2,
        kv_bytes: sum(CudaBackend::kv_bytes),
        activation_bytes: sum(CudaBackend::activation_bytes),
        device: config.parallel.describe(&device),
        step_tokens: None,
        phases,
    };
    Ok((ThreadExecutor::spawn(runners, kv)?, report))
}

/// Returns how many blocks a rank has room for.
fn num_blocks(
    backend: &CudaBackend,
    model: &dyn Model<CudaBackend>,
    config: &CudaWorkerConfig,
) -> Result<usize, Error> {
    let spec = model.kv_spec(1, config.block_size);
    let elements = spec.num_layers * spec.block_size * spec.num_kv_heads * spec.head_dim * 2;
    let block_bytes = elements as u64 * 2;
    let memory = backend.memory()?;
    let enough = config.max_kv_tokens.div_ceil(config.block_size);
    let num_blocks = config
        .kv_size
        .num_blocks(block_bytes, enough, || free_share(memory, config.gpu_memory_utilization))?;
    let (bytes, free) = (block_bytes.saturating_mul(num_blocks as u64), memory.0 as u64);
    if bytes > free {
        return Err(Error::KvCacheTooLarge { bytes, free });
    }
    Ok(num_blocks)
}

/// Joins the ranks of each stage, and the stages.
fn connect(
    runners: &mut [Runner<CudaBackend>],
    parallel: Parallel,
    hidden_size: usize,
) -> Result<(), Error> {
    if parallel == Parallel::NONE {
        return Ok(());
    }
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

/// Returns the type of a model's activations and keys and values on a GPU.
#[must_use]
pub const fn cuda_dtype(model: &ModelConfig, choice: DtypeChoice) -> Dtype {
    match (choice, model.dtype) {
        (DtypeChoice::F16, _) => Dtype::F16,
        (DtypeChoice::BF16, _) => Dtype::Bf16,
        // Quantized weights have half-precision scales.
        (DtypeChoice::Auto | DtypeChoice::F32, Some(WeightType::BF16 | WeightType::F32)) => {
            Dtype::Bf16
        }
        (DtypeChoice::Auto | DtypeChoice::F32, _) => Dtype::F16,
    }
}

fn backend_config(
    checkpoint: &Checkpoint,
    config: &CudaWorkerConfig,
    dtype: DtypeChoice,
    part: Part,
) -> CudaConfig {
    let model = checkpoint.config();
    let dtype = cuda_dtype(model, dtype);
    // Batches of single tokens are filled up to numbers for which steps are recorded.
    let max_tokens = config.max_tokens.next_multiple_of(32);
    CudaConfig {
        ordinal: config.first_gpu + part.rank(),
        dtype,
        kernel_cache: config.kernel_cache.clone(),
        ampere_path: config.ampere_path,
        weight_bytes: weight_bytes(model, part, max_tokens),
        max_tokens,
        activation_bytes: activation_bytes(model, part, max_tokens),
    }
}

/// Returns the bytes of a rank's 16-bit weights, norms, biases and rotary angles, each padded to 256 bytes.
fn weight_bytes(model: &ModelConfig, part: Part, max_tokens: usize) -> usize {
    let (num_layers, parameters) = model.held_by(part);
    let matrices = usize::try_from(parameters).unwrap_or(usize::MAX / 4) * 2;
    let heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
    let vectors = (4 * model.hidden_size + heads + 4 * model.head_dim) * 2;
    let padding = 16 * 256;
    matrices + (num_layers + 1) * (vectors + padding) + max_tokens * model.head_dim * 4 + (1 << 20)
}

fn activation_bytes(model: &ModelConfig, part: Part, max_tokens: usize) -> ActivationBytes {
    let spec = model.attention_spec(0, part.tensor);
    let query = spec.num_heads * spec.head_dim;
    let qkv = query + 2 * spec.num_kv_heads * spec.head_dim;
    let intermediate = part.tensor.range(model.intermediate_size).len();
    let row = 5 * model.hidden_size + qkv + 2 * query + 3 * intermediate;
    // What the embedding holds of each row, and its sum; logits likewise.
    let (embedded, logits) = match part.tensor.of {
        1 => (1, model.vocab_size),
        ranks => (2, model.vocab_size + model.vocab_size.div_ceil(ranks) + 8),
    };
    ActivationBytes {
        base: embedded * max_tokens * model.hidden_size * 2 + (1 << 20),
        layer: max_tokens * row * 2 + DECODE_SCRATCH_BYTES + (1 << 20),
        logits: HEAD_ROWS.min(max_tokens) * logits * 4 + 512,
    }
}
