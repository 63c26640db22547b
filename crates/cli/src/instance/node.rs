//! A process whose ranks compute for the one that answers.

use std::time::Duration;

use anyhow::{Result, bail};
use stallfree_models::{Checkpoint, LoadOptions};

use super::worker::{cpu_worker, cuda_worker};
use crate::args::Auto;
use crate::config::{DeviceConfig, InstanceConfig, Nodes};
use crate::console;

/// How long a node that does not start waits for node 0 to tell it, which may be opening the model.
const DECLINE_PATIENCE: Duration = Duration::from_secs(10);

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
