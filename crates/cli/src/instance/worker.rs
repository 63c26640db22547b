//! Starts this process's ranks: what their worker is told, and what those of other processes must have in common with it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use stallfree_core::Parallel;
use stallfree_kernels::cpu::CpuConfig;
use stallfree_models::{Checkpoint, LoadOptions};
use stallfree_scheduler::{Registry, SchedulerConfig};
use stallfree_worker::{CpuWorkerConfig, CudaWorkerConfig, NodeConfig};

use super::Started;
use super::members::Seat;
use crate::args::{Auto, Kernels};
use crate::config::{DeviceConfig, GpuConfig, InstanceConfig, TokenBudget};
use crate::console;

/// How long processes wait for each other: some may have to load a model from far away first.
pub(super) const NODE_PATIENCE: Duration = Duration::from_secs(600);

/// Loads the weights and starts what computes.
pub(super) fn start_worker(
    checkpoint: &Checkpoint,
    config: &InstanceConfig,
    seat: Option<&Seat>,
) -> Result<Started> {
    let model_len = checkpoint.config().max_model_len();
    let wanted = match config.max_model_len {
        Auto::Exactly(count) if count > model_len => {
            bail!("--max-model-len {count} is more than the model's {model_len}")
        }
        Auto::Exactly(count) => count,
        Auto::Fit => model_len,
    };
    let progress = console::LoadProgress::new("Loading weights");
    let show = |done, total| progress.show(done, total);
    let options =
        LoadOptions { dtype: config.dtype, progress: Some(&show), ..LoadOptions::default() };
    let (mut executor, worker) = match &config.device {
        DeviceConfig::Sim(device) => bail!("{} computes nothing", device.gpu.name),
        DeviceConfig::Cpu(cpu) => {
            let worker = cpu_worker(checkpoint, cpu, config, wanted);
            check_node(worker.nodes.as_ref())?;
            stallfree_worker::start_cpu(checkpoint, &worker, &options)?
        }
        DeviceConfig::Cuda(gpu) => {
            let worker = cuda_worker(checkpoint, gpu, config, wanted)?;
            check_node(worker.nodes.as_ref())?;
            let progress = console::LoadProgress::new("Recording steps");
            let recording = |done: usize, total: usize| progress.show(done as u64, total as u64);
            stallfree_worker::start_cuda(checkpoint, &worker, &options, &recording)?
        }
    };
    if let Some(seat) = seat {
        let joined = executor.join(&seat.ports, seat.instance, seat.leases.clone());
        joined.context("KV can't be handed over")?;
    }
    let vocab_size = checkpoint.config().vocab_size;
    Ok(Started { executor: Box::new(executor), worker, model_len, vocab_size })
}

/// Makes sure that this is node 0, to which others come, if there are any.
fn check_node(nodes: Option<&NodeConfig>) -> Result<()> {
    match nodes {
        Some(NodeConfig { node, .. }) if *node > 0 => {
            bail!("--node-rank {node}: only `stallfree serve` joins others")
        }
        _ => Ok(()),
    }
}

/// Returns how this process meets those that share the ranks with it; all must have `limits` in common.
fn nodes(checkpoint: &Checkpoint, config: &InstanceConfig, limits: &str) -> Option<NodeConfig> {
    let Parallel { tensor, pipeline } = config.parallel;
    let nodes = config.nodes.as_ref()?;
    Some(NodeConfig {
        num_nodes: nodes.count,
        node: nodes.node,
        master: nodes.master.clone(),
        ranks_per_node: config.num_local_ranks(),
        agreement: format!(
            "{} with --tensor-parallel-size {tensor} --pipeline-parallel-size {pipeline} --nnodes {} --block-size {}{limits}",
            checkpoint.describe(),
            nodes.count,
            config.block_size
        ),
        patience: NODE_PATIENCE,
    })
}

/// Returns how to start this process's ranks on the CPU.
pub(super) fn cpu_worker(
    checkpoint: &Checkpoint,
    cpu: &CpuConfig,
    config: &InstanceConfig,
    max_model_len: usize,
) -> CpuWorkerConfig {
    CpuWorkerConfig {
        cpu: cpu.clone(),
        parallel: config.parallel,
        nodes: nodes(checkpoint, config, " --device cpu"),
        block_size: config.block_size,
        kv_size: config.kv_size,
        max_kv_tokens: config.scheduler.max_num_seqs.saturating_mul(max_model_len),
        max_model_len,
        measure_step: config.token_budget == TokenBudget::Measured,
    }
}

/// Returns how to start this process's ranks on GPUs.
pub(super) fn cuda_worker(
    checkpoint: &Checkpoint,
    gpu: &GpuConfig,
    config: &InstanceConfig,
    max_model_len: usize,
) -> Result<CudaWorkerConfig> {
    let (max_tokens, max_num_seqs) =
        (longest_step(config, max_model_len)?, config.scheduler.max_num_seqs);
    // Ranks that cut a batch in other passes would wait for each other's without end.
    let dtype = format!("{:?}", config.dtype).to_lowercase();
    let limits = format!(
        " --device cuda --dtype {dtype} --max-num-batched-tokens {max_tokens} --max-num-seqs {max_num_seqs} --max-model-len {max_model_len}"
    );
    Ok(CudaWorkerConfig {
        parallel: config.parallel,
        nodes: nodes(checkpoint, config, &limits),
        peer_memory: gpu.peer_memory,
        first_gpu: config.first_gpu,
        kernel_cache: gpu.kernel_cache.clone(),
        ampere_path: gpu.kernels == Kernels::Sm80,
        block_size: config.block_size,
        kv_size: config.kv_size,
        gpu_memory_utilization: gpu.memory_utilization,
        max_kv_tokens: max_num_seqs.saturating_mul(max_model_len),
        max_tokens,
        max_recorded_seqs: if gpu.records { max_num_seqs } else { 0 },
    })
}

/// Returns the most tokens of a step, or, for a policy that has no such bound, of a chunk.
fn longest_step(config: &InstanceConfig, max_model_len: usize) -> Result<usize> {
    let mut limits = SchedulerConfig { max_model_len, ..config.scheduler.clone() };
    if let TokenBudget::Exactly(count) = config.token_budget {
        limits.max_num_batched_tokens = count;
    }
    let declared = Registry::default().build(&config.policy, &limits)?.declares();
    Ok(declared.token_bound.unwrap_or(max_model_len))
}
