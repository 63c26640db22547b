//! How many blocks of KV cache the GPUs have room for.

use stallfree_core::{KvGeometry, Parallel};

use crate::gpu::GIB;
use crate::shape::BYTES;
use crate::{Error, Gpu, ModelShape};

/// What activations, libraries and the context take of each GPU.
const RESERVE: f64 = 3.0 * GIB;

/// The most blocks, and tokens in all of them: books of both are kept in memory, some gigabytes for so many.
const MAX_BLOCKS: usize = 1 << 26;
const MAX_TOKENS: usize = 1 << 30;

/// How much KV cache to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvRoom {
    /// What the share of the GPU's memory leaves beside the weights.
    Utilization(f64),
    /// As many blocks as fit into so many bytes on each GPU.
    Bytes(u64),
    /// So many blocks.
    Blocks(usize),
}

/// Returns the bytes of weights on the fullest GPU.
pub(crate) fn weight_bytes(shape: &ModelShape, parallel: Parallel) -> f64 {
    let layers = shape.num_layers.div_ceil(parallel.pipeline) * shape.layer_parameters();
    let tables = match (parallel.pipeline, shape.tied) {
        (1, false) => 2,
        _ => 1,
    };
    let parameters = layers + tables * shape.vocab_size * shape.hidden_size;
    parameters as f64 * BYTES as f64 / parallel.tensor as f64
}

/// Returns the bytes of a block on the fullest GPU.
pub(crate) fn block_bytes(shape: &ModelShape, parallel: Parallel, block_size: usize) -> f64 {
    let layers = shape.num_layers.div_ceil(parallel.pipeline);
    // Key heads are copied where there are fewer of them than ranks.
    let ranks = parallel.tensor.min(shape.num_kv_heads);
    (layers * shape.layer_kv_bytes() * block_size) as f64 / ranks as f64
}

pub(crate) fn geometry(
    shape: &ModelShape,
    parallel: Parallel,
    gpu: &Gpu,
    room: KvRoom,
    block_size: usize,
) -> Result<KvGeometry, Error> {
    let num_blocks = match room {
        KvRoom::Blocks(num_blocks) => num_blocks.max(1),
        KvRoom::Bytes(bytes) => {
            let block = block_bytes(shape, parallel, block_size);
            blocks(bytes as f64, block, block_size, "--kv-cache-memory-bytes")?
        }
        KvRoom::Utilization(utilization) => {
            let room = utilization.clamp(0.0, 1.0) * gpu.memory_bytes;
            let taken = weight_bytes(shape, parallel) + RESERVE;
            if taken >= room {
                return Err(Error::DoesNotFit {
                    gpu: gpu.name.clone(),
                    taken_gib: taken / GIB,
                    room_gib: room / GIB,
                    utilization,
                });
            }
            let block = block_bytes(shape, parallel, block_size);
            blocks(room - taken, block, block_size, "--gpu-memory-utilization")?
        }
    };
    if num_blocks > MAX_BLOCKS || num_blocks.saturating_mul(block_size) > MAX_TOKENS {
        let (max_blocks, max_tokens) = (MAX_BLOCKS, MAX_TOKENS);
        return Err(Error::KvCacheTooLarge { num_blocks, block_size, max_blocks, max_tokens });
    }
    Ok(KvGeometry { num_blocks, block_size })
}

/// Returns how many blocks fit into `bytes`, of which `flag` decides.
fn blocks(
    bytes: f64,
    block_bytes: f64,
    block_size: usize,
    flag: &'static str,
) -> Result<usize, Error> {
    match (bytes / block_bytes) as usize {
        0 => {
            let (bytes, block_bytes) = (bytes as u64, block_bytes as u64);
            Err(Error::NoKvCache { block_size, block_bytes, bytes, flag })
        }
        num_blocks => Ok(num_blocks),
    }
}

/// Returns the memory of a GPU on which a model has room for `kv_tokens` at a utilization of 0.9.
pub(crate) fn memory_for(shape: &ModelShape, kv_tokens: usize) -> f64 {
    let kv = block_bytes(shape, Parallel::NONE, kv_tokens);
    (weight_bytes(shape, Parallel::NONE) + kv + RESERVE) / 0.9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Shipped;

    /// The Sarathi-Serve paper's deployments, at gpu_memory_utilization 0.85; tokens as its configurations allow.
    #[test]
    fn the_papers_deployments_have_their_capacity() {
        for (model, gpu, tensor, pipeline, thousands) in [
            ("mistral-7b", "a100-80g-pcie", 1, 1, 415),
            ("yi-34b", "a100-80g-pcie", 2, 1, 281),
            ("llama-2-70b", "a40-48g", 4, 2, 521),
            ("falcon-180b", "a100-80g-pcie", 4, 2, 1180),
        ] {
            let shape = ModelShape::built_in(model).unwrap();
            let gpu = Shipped::find(gpu).unwrap().gpu();
            let parallel = Parallel { tensor, pipeline };
            let kv = geometry(&shape, parallel, &gpu, KvRoom::Utilization(0.85), 16).unwrap();
            let ratio = kv.num_tokens() as f64 / (thousands * 1000) as f64;
            assert!((0.9..1.1).contains(&ratio), "{model}: {} tokens", kv.num_tokens());
        }
    }

    #[test]
    fn what_has_no_room_is_refused_with_its_reason() {
        let gpu = Shipped::find("h100-sxm").expect("it is shipped").gpu();
        let check = |model: &str, room: KvRoom, block_size: usize, words: &str| {
            let shape = ModelShape::built_in(model).expect("it is known");
            let error = geometry(&shape, Parallel::NONE, &gpu, room, block_size);
            let error = error.expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        };
        let share = KvRoom::Utilization(0.9);
        check("llama-2-70b", share, 16, "weights and activations take");
        check("llama-2-70b", share, 16, "--tensor-parallel-size");
        check("llama-3-8b", share, 1_000_000_000, "or lower --block-size");
        check("llama-3-8b", share, 1_000_000_000, "room for no block");
        check(
            "llama-3-8b",
            KvRoom::Bytes(1 << 20),
            16,
            "give it more with --kv-cache-memory-bytes",
        );
        check("llama-3-8b", KvRoom::Bytes(u64::MAX), 16, "too many to simulate");
        check("llama-3-8b", KvRoom::Blocks(1_000_000_000_000), 16, "--num-gpu-blocks-override");
        check("llama-3-8b", KvRoom::Blocks(10), 1_000_000_000, "--block-size");
    }
}
