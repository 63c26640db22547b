//! Starts a device that isn't there.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use stallfree_core::{Executor as _, Parallel};
use stallfree_models::ModelConfig;
use stallfree_sim::{KvRoom, ModelShape, SimConfig, SimExecutor};
use stallfree_worker::{KvSize, WorkerReport};

use super::members::Seat;
use super::{Started, is_gguf};
use crate::config::{InstanceConfig, SimDevice, WeightsFrom};

/// Simulates `device` with the model at `path`, of which only the sizes are read, with the others of its deployment beside it.
///
/// # Errors
/// They can't be read, or the model doesn't fit.
pub(super) fn start(
    path: &Path,
    device: &SimDevice,
    config: &InstanceConfig,
    seat: Option<&Seat>,
) -> Result<Started> {
    let sim = SimConfig {
        gpu: device.gpu.clone(),
        factors: device.factors,
        shape: ModelShape::from_config(&sizes(path)?)?,
        parallel: config.parallel,
        block_size: config.block_size,
        kv: match config.kv_size {
            KvSize::Auto => KvRoom::Utilization(device.memory_utilization),
            KvSize::Bytes(bytes) => KvRoom::Bytes(bytes),
            KvSize::Blocks(num_blocks) => KvRoom::Blocks(num_blocks),
        },
    };
    let mut executor = SimExecutor::new(&sim)?;
    if let Some(seat) = seat {
        executor.join(&seat.network, seat.instance, config.first_gpu);
    }
    let worker = WorkerReport {
        kv: executor.kv_geometry(),
        weight_bytes: executor.weight_bytes(),
        kv_bytes: executor.kv_bytes(),
        activation_bytes: 0,
        device: describe(&sim.gpu.name, sim.parallel),
        step_tokens: None,
        phases: Vec::new(),
    };
    let ModelShape { max_model_len, vocab_size, .. } = sim.shape;
    Ok(Started { executor: Box::new(executor), worker, model_len: max_model_len, vocab_size })
}

/// Names the device: `simulated 4 x a100-80g-sxm, 2 stages`. Bytes in its report are those of the fullest GPU.
fn describe(gpu: &str, parallel: Parallel) -> String {
    let count = match parallel.world_size() {
        1 => String::new(),
        count => format!("{count} x "),
    };
    let stages = match parallel.pipeline {
        1 => String::new(),
        stages => format!(", {stages} stages"),
    };
    format!("simulated {count}{gpu}{stages}")
}

/// Returns a model's sizes as a config.json has them: the model's own, that of a model known by name, or one made from a GGUF file.
///
/// # Errors
/// There is none, or it can't be read.
pub(crate) fn sizes(path: &Path) -> Result<Value> {
    let name = path.to_str().filter(|_| !path.exists());
    if let Some(config) = name.and_then(stallfree_sim::built_in_config) {
        return Ok(config);
    }
    if is_gguf(path) {
        return Ok(of_config(super::open(path, WeightsFrom::Files)?.config()));
    }
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let what = || format!("the model's configuration {} can't be read", file.display());
    let text = std::fs::read_to_string(&file).with_context(what)?;
    serde_json::from_str(&text).with_context(what)
}

fn of_config(config: &ModelConfig) -> Value {
    json!({
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_model_len(),
        "sliding_window": config.sliding_window.map(|window| window.size),
    })
}
