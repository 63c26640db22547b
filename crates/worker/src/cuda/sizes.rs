//! How much memory of a GPU a rank takes, and for what.

use stallfree_comm::Part;
use stallfree_device::Dtype;
use stallfree_kernels::WeightType;
use stallfree_kernels::cuda::{
    ActivationBytes, CudaBackend, CudaConfig, DECODE_SCRATCH_BYTES, STEP_MULTIPLE,
};
use stallfree_models::{DtypeChoice, Model, ModelConfig};

use super::CudaWorkerConfig;
use crate::Error;
use crate::runner::HEAD_ROWS;
use crate::start::free_share;

/// Returns how many blocks a rank has room for.
pub(super) fn num_blocks(
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

/// Returns how to open GPU `ordinal` for a part of a model.
pub(super) fn backend_config(
    model: &ModelConfig,
    config: &CudaWorkerConfig,
    dtype: DtypeChoice,
    (ordinal, part): (usize, Part),
) -> CudaConfig {
    let dtype = cuda_dtype(model, dtype);
    // Batches of single tokens are filled up to numbers for which steps are recorded.
    let max_tokens = config.max_tokens.next_multiple_of(STEP_MULTIPLE);
    CudaConfig {
        ordinal,
        dtype,
        kernel_cache: config.kernel_cache.clone(),
        ampere_path: config.ampere_path,
        weight_bytes: weight_bytes(model, part, max_tokens),
        max_tokens,
        activation_bytes: activation_bytes(model, part, max_tokens),
        records: config.max_recorded_seqs > 0,
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
