//! How many blocks of KV cache the GPUs have room for.

use stallfree_core::{KvGeometry, Parallel};

use crate::gpu::GIB;
use crate::shape::BYTES;
use crate::{Error, Gpu, ModelShape};

/// What activations, libraries and the context take of each GPU.
const RESERVE: f64 = 3.0 * GIB;

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
    let bytes = match room {
        KvRoom::Blocks(num_blocks) => {
            return Ok(KvGeometry { num_blocks: num_blocks.max(1), block_size });
        }
        KvRoom::Bytes(bytes) => bytes as f64,
        KvRoom::Utilization(share) => {
            share.clamp(0.0, 1.0).mul_add(gpu.memory_bytes, -RESERVE)
                - weight_bytes(shape, parallel)
        }
    };
    let num_blocks = (bytes / block_bytes(shape, parallel, block_size)) as usize;
    if num_blocks == 0 {
        let utilization = match room {
            KvRoom::Utilization(share) => share,
            KvRoom::Bytes(_) | KvRoom::Blocks(_) => 1.0,
        };
        return Err(Error::DoesNotFit {
            gpu: gpu.name.clone(),
            weight_gib: (weight_bytes(shape, parallel) + RESERVE) / GIB,
            room_gib: utilization * gpu.memory_bytes / GIB,
            utilization,
        });
    }
    Ok(KvGeometry { num_blocks, block_size })
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
    fn what_does_not_fit_is_refused_with_numbers() {
        let shape = ModelShape::built_in("llama-2-70b").unwrap();
        let gpu = Shipped::find("h100-sxm").unwrap().gpu();
        let error = geometry(&shape, Parallel::NONE, &gpu, KvRoom::Utilization(0.9), 16);
        let error = error.expect_err("128 GiB on 80").to_string();
        assert!(error.contains("--tensor-parallel-size"), "{error}");
    }
}
