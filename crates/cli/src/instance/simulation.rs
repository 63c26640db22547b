//! Starts a device that isn't there.

use std::path::Path;

use anyhow::{Context as _, Result};
use stallfree_core::Executor as _;
use stallfree_sim::{KvRoom, ModelShape, SimConfig, SimExecutor};
use stallfree_worker::{KvSize, WorkerReport};

use super::Started;
use crate::config::{InstanceConfig, SimDevice};

/// Simulates `device` with the model at `path`, of which only the config.json is read.
///
/// # Errors
/// There is no config.json, or the model doesn't fit.
pub(super) fn start(path: &Path, device: &SimDevice, config: &InstanceConfig) -> Result<Started> {
    let sim = SimConfig {
        gpu: device.gpu.clone(),
        factors: device.factors,
        shape: shape(path)?,
        parallel: device.parallel,
        block_size: config.block_size,
        kv: match config.kv_size {
            KvSize::Auto => KvRoom::Utilization(device.memory_utilization),
            KvSize::Bytes(bytes) => KvRoom::Bytes(bytes),
            KvSize::Blocks(num_blocks) => KvRoom::Blocks(num_blocks),
        },
    };
    let executor = SimExecutor::new(&sim)?;
    let worker = WorkerReport {
        kv: executor.kv_geometry(),
        weight_bytes: executor.weight_bytes(),
        kv_bytes: executor.kv_bytes(),
        activation_bytes: 0,
        device: format!(
            "simulated {}, {} GPUs a layer, {} stages; bytes are those of the fullest GPU",
            sim.gpu.name, sim.parallel.tensor, sim.parallel.pipeline
        ),
        step_tokens: None,
        phases: Vec::new(),
    };
    let ModelShape { max_model_len, vocab_size, .. } = sim.shape;
    Ok(Started { executor: Box::new(executor), worker, model_len: max_model_len, vocab_size })
}

/// Reads a model's shape out of its config.json, or takes it by name.
fn shape(path: &Path) -> Result<ModelShape> {
    let built_in = path.to_str().filter(|_| !path.exists()).and_then(ModelShape::built_in);
    if let Some(shape) = built_in {
        return Ok(shape);
    }
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let what = || format!("the model's configuration {} can't be read", file.display());
    let text = std::fs::read_to_string(&file).with_context(what)?;
    let config = serde_json::from_str(&text).with_context(what)?;
    Ok(ModelShape::from_config(&config)?)
}
