//! Starts a worker on a CUDA GPU: loads the model, takes all memory at once, warms the kernels up.

use std::path::PathBuf;

use stallfree_core::{Clock, KvGeometry, WallClock};
use stallfree_device::Dtype;
use stallfree_kernels::cuda::{ActivationBytes, CudaBackend, CudaConfig, DECODE_SCRATCH_BYTES};
use stallfree_kernels::{Backend, WeightType};
use stallfree_models::{Checkpoint, DtypeChoice, LoadOptions, ModelConfig};

use crate::cpu::probe;
use crate::runner::HEAD_ROWS;
use crate::start::free_share;
use crate::{Error, KvSize, Runner, ThreadExecutor, WorkerReport};

/// How to start a worker on a GPU.
#[derive(Clone, Debug)]
pub struct CudaWorkerConfig {
    /// Which GPU.
    pub ordinal: usize,
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
    recording: &dyn Fn(usize, usize),
) -> Result<(ThreadExecutor, WorkerReport), Error> {
    let clock = WallClock::start();
    let mut backend = CudaBackend::new(backend_config(checkpoint, config, options.dtype))?;
    let opened = clock.now();
    // The backend converts; matrices stay as they are until then.
    let as_stored = LoadOptions { dtype: DtypeChoice::Auto, ..*options };
    let model = stallfree_models::load(checkpoint, &mut backend, &as_stored)?;
    let loaded = clock.now();
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
    let kv = KvGeometry { num_blocks, block_size: config.block_size };
    backend.allocate_kv(&model.kv_spec(kv.num_blocks, kv.block_size))?;
    let allocated = clock.now();
    let device = backend.device_name();
    let mut runner = Runner::new(backend, model, config.block_size, config.max_tokens);
    // Compiles and loads every kernel, so that the first request does not wait for it.
    for num_tokens in [1, 32.min(kv.num_tokens())] {
        runner.run(&probe(num_tokens, 0, kv.block_size))?;
    }
    let warm = clock.now();
    let (num_seqs, context) = config.recorded;
    runner.prepare(num_seqs.min(config.max_tokens), context.min(kv.num_tokens()), recording);
    let phases = vec![
        ("open GPU", opened.since_start()),
        ("load weights", loaded - opened),
        ("allocate KV cache", allocated - loaded),
        ("warm up", warm - allocated),
        ("record steps", clock.now() - warm),
    ];
    let report = WorkerReport {
        kv,
        weight_bytes: weight_bytes(checkpoint.config(), config.max_tokens) as u64,
        kv_bytes: runner.backend().kv_bytes() as u64,
        activation_bytes: runner.backend().activation_bytes() as u64,
        device,
        step_tokens: None,
        phases,
    };
    Ok((ThreadExecutor::spawn(runner, kv)?, report))
}

fn backend_config(
    checkpoint: &Checkpoint,
    config: &CudaWorkerConfig,
    dtype: DtypeChoice,
) -> CudaConfig {
    let model = checkpoint.config();
    let dtype = match (dtype, model.dtype) {
        (DtypeChoice::F16, _) => Dtype::F16,
        (DtypeChoice::BF16, _) => Dtype::Bf16,
        // Quantized weights have half-precision scales.
        (DtypeChoice::Auto | DtypeChoice::F32, Some(WeightType::BF16 | WeightType::F32)) => {
            Dtype::Bf16
        }
        (DtypeChoice::Auto | DtypeChoice::F32, _) => Dtype::F16,
    };
    // Batches of single tokens are filled up to numbers for which steps are recorded.
    let max_tokens = config.max_tokens.next_multiple_of(32);
    CudaConfig {
        ordinal: config.ordinal,
        dtype,
        kernel_cache: config.kernel_cache.clone(),
        ampere_path: config.ampere_path,
        weight_bytes: weight_bytes(model, max_tokens),
        max_tokens,
        activation_bytes: activation_bytes(model, max_tokens),
    }
}

/// Returns the bytes of 16-bit weights, norms, biases and rotary angles, each padded to 256 bytes.
fn weight_bytes(model: &ModelConfig, max_tokens: usize) -> usize {
    let matrices = usize::try_from(model.num_parameters()).unwrap_or(usize::MAX / 4) * 2;
    let heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
    let vectors = (4 * model.hidden_size + heads + 4 * model.head_dim) * 2;
    let padding = 16 * 256;
    matrices
        + (model.num_layers + 1) * (vectors + padding)
        + max_tokens * model.head_dim * 4
        + (1 << 20)
}

fn activation_bytes(model: &ModelConfig, max_tokens: usize) -> ActivationBytes {
    let query = model.num_heads * model.head_dim;
    let qkv = query + 2 * model.num_kv_heads * model.head_dim;
    let row = 5 * model.hidden_size + qkv + 2 * query + 3 * model.intermediate_size;
    ActivationBytes {
        base: max_tokens * model.hidden_size * 2 + (1 << 20),
        layer: max_tokens * row * 2 + DECODE_SCRATCH_BYTES + (1 << 20),
        logits: HEAD_ROWS.min(max_tokens) * model.vocab_size * 4,
    }
}
