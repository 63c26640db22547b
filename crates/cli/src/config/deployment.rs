//! Which instances there are, and what each of them is for.

use anyhow::{Result, bail};
use stallfree_cluster::{Role, roles};

use super::{DeviceConfig, InstanceConfig};
use crate::args::{DeploymentArgs, EngineArgs, Mode, Overrides, ReplicaSpec};
use crate::environment::Environment;

/// The instances of a server, at least one.
#[derive(Clone, Debug)]
pub(crate) struct DeploymentConfig {
    /// Each one's role and settings.
    pub(crate) instances: Vec<(Role, InstanceConfig)>,
    /// The dispatch policy's name.
    pub(crate) dispatch: String,
}

impl DeploymentConfig {
    /// Resolves the flags of all instances.
    ///
    /// # Errors
    /// A flag's value can't work; the message names the flag.
    pub(crate) fn resolve(
        engine: &EngineArgs,
        args: &DeploymentArgs,
        environment: &Environment,
    ) -> Result<Self> {
        stallfree_cluster::build(&args.dispatch_policy)?;
        let own = ReplicaSpec {
            tensor: engine.cache.tensor_parallel_size,
            pipeline: engine.cache.pipeline_parallel_size,
        };
        let specs = match (&args.replica_spec[..], args.mode) {
            ([], Mode::Simple) => vec![own],
            ([], Mode::Distserve) => vec![own; 2],
            (specs, _) => specs.to_vec(),
        };
        let partition = match (args.mode, args.partition_id) {
            (Mode::Simple, None) => specs.len(),
            (Mode::Simple, Some(_)) => bail!("--partition-id is for --mode distserve"),
            (Mode::Distserve, given) => given.unwrap_or(specs.len() / 2),
        };
        if partition == 0 || partition > specs.len() {
            bail!(
                "--partition-id {partition}: with {} instances it is from 1 to {}",
                specs.len(),
                specs.len()
            );
        }
        if specs.len() > 1 && engine.cache.nnodes > 1 {
            bail!("--nnodes: ranks in several processes make one instance, not {}", specs.len());
        }
        let mut instances = Vec::new();
        let mut next_gpu = 0;
        for (spec, role) in specs.iter().zip(roles(specs.len(), partition)) {
            let overrides = match role {
                Role::Prefill => args.prefill.overrides(),
                Role::Decode => args.decode.overrides(),
                Role::Mixed => Overrides::default(),
            };
            let mut config =
                InstanceConfig::resolve(&apply(engine, *spec, &overrides), environment)?;
            config.first_gpu = next_gpu;
            next_gpu += spec.tensor * spec.pipeline;
            instances.push((role, config));
        }
        share_gpus(&mut instances, stallfree_device::probe().gpus.len())?;
        Ok(Self { instances, dispatch: args.dispatch_policy.clone() })
    }
}

fn apply(engine: &EngineArgs, spec: ReplicaSpec, overrides: &Overrides) -> EngineArgs {
    let mut engine = engine.clone();
    engine.cache.tensor_parallel_size = spec.tensor;
    engine.cache.pipeline_parallel_size = spec.pipeline;
    let Overrides { scheduler, max_num_seqs, max_num_batched_tokens, gpu_memory_utilization } =
        overrides.clone();
    let given = engine.scheduler;
    engine.scheduler = crate::args::SchedulerArgs {
        scheduler: scheduler.unwrap_or(given.scheduler),
        max_num_seqs: max_num_seqs.unwrap_or(given.max_num_seqs),
        max_num_batched_tokens: max_num_batched_tokens.or(given.max_num_batched_tokens),
        ..given
    };
    if let Some(share) = gpu_memory_utilization {
        engine.cache.gpu_memory_utilization = share;
    }
    engine
}

/// Where there are fewer GPUs than ranks, instances share them: each takes its share of the memory beside those before it.
fn share_gpus(instances: &mut [(Role, InstanceConfig)], num_gpus: usize) -> Result<()> {
    let mut taken = vec![0.0; num_gpus];
    for (index, (_, config)) in instances.iter_mut().enumerate() {
        let DeviceConfig::Cuda(gpu) = &mut config.device else { continue };
        let size = config.parallel.world_size();
        if config.first_gpu + size > num_gpus {
            config.first_gpu %= num_gpus.max(1);
            if config.first_gpu + size > num_gpus {
                config.first_gpu = 0;
            }
        }
        let range = config.first_gpu..config.first_gpu + size;
        let most = taken[range.clone()].iter().fold(0.0, |most: f64, &share| most.max(share));
        let until = most + gpu.memory_utilization;
        if until > 1.0 {
            bail!(
                "instance {index} shares a GPU whose memory is taken to {:.0} % already; lower --gpu-memory-utilization",
                most * 100.0
            );
        }
        taken[range].fill(until);
        gpu.memory_utilization = until;
    }
    Ok(())
}
