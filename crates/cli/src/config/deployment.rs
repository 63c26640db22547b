//! Which instances there are, and what each of them is for.

use std::collections::HashSet;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use stallfree_cluster::{DispatchConfig, Role, roles};

use super::{DeviceConfig, InstanceConfig, ordering};
use crate::args::{DeploymentArgs, EngineArgs, KvTransport, Mode, Overrides, ReplicaSpec};
use crate::environment::Environment;

/// The instances of a server: at least one here, or a way for others to join.
#[derive(Clone, Debug)]
pub(crate) struct DeploymentConfig {
    /// What is the same for all: the model, and how clients see it.
    pub(crate) base: InstanceConfig,
    /// The role and the settings of each in this process.
    pub(crate) instances: Vec<(Role, InstanceConfig)>,
    /// How those in processes of their own join.
    pub(crate) gate: Option<GateArgs>,
    /// How sequences are given to them.
    pub(crate) dispatch: DispatchConfig,
}

/// How instances in processes of their own join.
#[derive(Clone, Debug)]
pub(crate) struct GateArgs {
    /// Where.
    pub(crate) listen: SocketAddr,
    /// How many of them to wait for.
    pub(crate) wait_for: usize,
    /// Whether some may prefill and others decode.
    pub(crate) separates: bool,
    /// How KV goes to them and comes from them.
    pub(crate) transport: KvTransport,
    /// Where NIXL lies, if it was downloaded.
    pub(crate) nixl: PathBuf,
}

/// Requests that the front takes beyond those that run and wait here: they are being received, or run on instances that joined.
const SPARE_REQUESTS: usize = 4096;

/// Why a simulated instance is in its server's process.
pub(crate) const SIMULATED_ALONE: &str = "instances on simulated GPUs can't hand sequences over to other processes; simulate all of them in one, with --replica-spec";

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
        let own = ReplicaSpec {
            tensor: engine.cache.tensor_parallel_size,
            pipeline: engine.cache.pipeline_parallel_size,
        };
        let gate = gate(args, environment)?;
        let specs = match (&args.replica_spec[..], args.mode) {
            ([], _) if gate.is_some() => Vec::new(),
            ([], Mode::Simple) => vec![own],
            ([], Mode::Distserve) => vec![own; 2],
            (specs, _) => specs.to_vec(),
        };
        let roles = roles_of(&specs, args, gate.is_some())?;
        if specs.len() > 1 && engine.cache.nnodes > 1 {
            bail!("--nnodes: ranks in several processes make one instance, not {}", specs.len());
        }
        let mut instances = Vec::new();
        let mut next_gpu = 0;
        for (spec, role) in specs.iter().zip(roles) {
            let overrides = match role {
                Role::Prefill => args.prefill.overrides(),
                Role::Decode => args.decode.overrides(),
                Role::Mixed => Overrides::default(),
            };
            let mut engine = apply(engine, *spec, &overrides);
            if let Some(order) = args.prefill_scheduling_policy.filter(|_| role == Role::Prefill) {
                engine.scheduler.scheduling_policy = order;
            }
            let mut config = InstanceConfig::resolve(&engine, environment)?;
            config.first_gpu = next_gpu;
            next_gpu += spec.tensor * spec.pipeline;
            instances.push((role, config));
        }
        share_gpus(&mut instances, stallfree_device::probe().gpus.len())?;
        let base = match instances.first() {
            Some((_, first)) => first.clone(),
            None => InstanceConfig::resolve(engine, environment)?,
        };
        if base.nodes.is_some() && gate.is_some() {
            bail!("--nnodes: ranks in several processes make one instance, which no others join");
        }
        if gate.is_some() && matches!(base.device, DeviceConfig::Sim(_)) {
            bail!("--instances-listen: {SIMULATED_ALONE}");
        }
        let dispatch = dispatch(args, &base);
        stallfree_cluster::build(&dispatch)?;
        let config = Self { base, instances, gate, dispatch };
        config.check_effects(args)?;
        Ok(config)
    }

    /// Refuses flags that change nothing in this deployment.
    fn check_effects(&self, args: &DeploymentArgs) -> Result<()> {
        let several = self.instances.len() > 1 || self.gate.is_some();
        let separates =
            self.is_disaggregated() || self.gate.as_ref().is_some_and(|gate| gate.separates);
        let check = |flag: &str, given: bool, works: bool, needs: &str| {
            if given && !works {
                bail!("{flag} changes nothing here: it needs {needs}");
            }
            Ok(())
        };
        let more = "several instances: --replica-spec, --mode distserve or --instances-listen";
        check("--dispatch-policy", args.dispatch_policy.is_some(), several, more)?;
        for (flag, given) in [
            ("--max-multiplexing-length", args.max_multiplexing_length.is_some()),
            (
                "--multiplexing-decode-batched-tokens-watermark",
                args.multiplexing_decode_batched_tokens_watermark.is_some(),
            ),
            (
                "--multiplexing-decode-batch-latency-watermark",
                args.multiplexing_decode_batch_latency_watermark.is_some(),
            ),
            ("--dispatch-timeout", args.dispatch_timeout.is_some()),
        ] {
            let multiplexes = self.dispatch.policy == "multiplexing";
            check(flag, given, multiplexes, "--dispatch-policy multiplexing")?;
        }
        let apart = "--mode distserve, and instances that prefill for others";
        let order = args.prefill_scheduling_policy.is_some();
        check("--prefill-scheduling-policy", order, separates, apart)?;
        for (side, role, overrides) in [
            ("prefill", Role::Prefill, args.prefill.overrides()),
            ("decode", Role::Decode, args.decode.overrides()),
        ] {
            let has = self.with_role(role).next().is_some();
            for (name, _) in overrides.typed() {
                let needs = format!(
                    "an instance of this process that only {side}s; those that join have flags of their own"
                );
                check(&format!("--{side}-{name}"), true, has, &needs)?;
            }
        }
        Ok(())
    }

    /// Returns how many GPUs the instances take; on the CPU, where all share the cores, 1.
    pub(crate) fn num_gpus(&self) -> usize {
        let gpus = |(_, config): &(Role, InstanceConfig)| match config.device {
            DeviceConfig::Cpu(_) => 0..1,
            DeviceConfig::Cuda(_) | DeviceConfig::Sim(_) => {
                config.first_gpu..config.first_gpu + config.parallel.world_size()
            }
        };
        self.instances.iter().flat_map(gpus).collect::<HashSet<usize>>().len()
    }

    /// Returns how many requests the front takes at once: more than run and wait here, so that the engine, which knows how long
    /// its queue takes, is the first to refuse one.
    pub(crate) fn max_concurrent_requests(&self) -> usize {
        let seats = self.instances.iter().map(|(_, config)| config.scheduler.max_num_seqs);
        seats.fold(self.base.max_num_waiting.saturating_add(SPARE_REQUESTS), usize::saturating_add)
    }

    /// Returns the instances with a role.
    pub(crate) fn with_role(&self, role: Role) -> impl Iterator<Item = &InstanceConfig> {
        let has = move |(of, _): &&(Role, InstanceConfig)| *of == role;
        self.instances.iter().filter(has).map(|(_, config)| config)
    }

    /// Returns whether some instances prefill for others.
    pub(crate) fn is_disaggregated(&self) -> bool {
        self.with_role(Role::Prefill).next().is_some()
    }
}

/// Reads how sequences are given to instances; those that wait for one do in the order in which it would take them.
fn dispatch(args: &DeploymentArgs, base: &InstanceConfig) -> DispatchConfig {
    let default = DispatchConfig::default();
    let tokens = args.multiplexing_decode_batched_tokens_watermark;
    let step = args.multiplexing_decode_batch_latency_watermark;
    let timeout = args.dispatch_timeout.map(|seconds| Duration::from_secs(seconds as u64));
    DispatchConfig {
        policy: args.dispatch_policy.clone().unwrap_or(default.policy),
        prefill_order: args.prefill_scheduling_policy.map_or(base.scheduler.ordering, ordering),
        max_multiplexing_length: args
            .max_multiplexing_length
            .unwrap_or(default.max_multiplexing_length),
        decode_tokens_watermark: tokens.unwrap_or(default.decode_tokens_watermark),
        decode_step_watermark: step.unwrap_or(default.decode_step_watermark),
        timeout: timeout.unwrap_or(default.timeout),
        early_rejection: args.early_rejection,
    }
}

/// Finds out what each instance of this process is for. Where others may join, all of them may prefill, or all decode.
fn roles_of(specs: &[ReplicaSpec], args: &DeploymentArgs, joined: bool) -> Result<Vec<Role>> {
    let count = specs.len();
    let partition = match (args.mode, args.partition_id) {
        (Mode::Simple, None) => return Ok(vec![Role::Mixed; count]),
        (Mode::Simple, Some(_)) => bail!("--partition-id is for --mode distserve"),
        (Mode::Distserve, given) => given.unwrap_or(count / 2),
    };
    let least = usize::from(!joined);
    if partition < least || partition > count {
        bail!("--partition-id {partition}: with {count} instances it is from {least} to {count}");
    }
    if joined {
        let role = |index| if index < partition { Role::Prefill } else { Role::Decode };
        return Ok((0..count).map(role).collect());
    }
    Ok(roles(count, partition))
}

fn gate(args: &DeploymentArgs, environment: &Environment) -> Result<Option<GateArgs>> {
    let Some(listen) = &args.instances_listen else { return Ok(None) };
    let mut found = listen.to_socket_addrs().with_context(|| {
        format!(
            "--instances-listen {listen} is not an address of this machine, such as 0.0.0.0:7000"
        )
    })?;
    let listen =
        found.next().with_context(|| format!("--instances-listen {listen}: no such host"))?;
    Ok(Some(GateArgs {
        listen,
        wait_for: args.wait_for_instances.unwrap_or(usize::from(args.replica_spec.is_empty())),
        separates: args.mode == Mode::Distserve,
        transport: args.kv_transport.unwrap_or(KvTransport::Auto),
        nixl: environment.nixl(),
    }))
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

/// Where there are fewer GPUs than ranks, instances share them: each takes its share of the memory beside those before it. Ranks of one
/// instance wait for each other on their GPUs, so two such instances on the same GPUs could each wait for what the other one holds up.
fn share_gpus(instances: &mut [(Role, InstanceConfig)], num_gpus: usize) -> Result<()> {
    let mut taken = vec![0.0; num_gpus];
    let mut waits = vec![false; num_gpus];
    for (index, (_, config)) in instances.iter_mut().enumerate() {
        let size = config.num_local_ranks();
        let DeviceConfig::Cuda(gpu) = &mut config.device else { continue };
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
        if size > 1 && waits[range.clone()].contains(&true) {
            bail!(
                "instance {index} would share GPUs with another one that has several ranks; {num_gpus} GPUs are too few for both"
            );
        }
        if size > 1 {
            waits[range.clone()].fill(true);
        }
        taken[range].fill(until);
        gpu.memory_utilization = until;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use stallfree_cluster::Role;
    use stallfree_core::Parallel;

    use super::{DeploymentConfig, InstanceConfig, share_gpus};
    use crate::args::{Kernels, serve_args};
    use crate::config::{DeviceConfig, FrontConfig, GpuConfig};
    use crate::environment::Environment;

    /// Places instances of so many tensor-parallel ranks, which take two fifths of a GPU's memory each.
    fn check(ranks: &[usize], num_gpus: usize, expected: Result<&[usize], &str>) {
        let args = serve_args(&["stallfree", "serve", "--device", "cpu"]).expect("flags");
        let config = InstanceConfig::resolve(&args.engine, &Environment::read()).expect("a config");
        let mut next = 0;
        let mut instances = Vec::new();
        for &tensor in ranks {
            let gpu = GpuConfig {
                kernel_cache: PathBuf::new(),
                kernels: Kernels::Auto,
                peer_memory: true,
                records: true,
                memory_utilization: 0.4,
            };
            let parallel = Parallel { tensor, pipeline: 1 };
            let device = DeviceConfig::Cuda(gpu);
            let config = InstanceConfig { parallel, device, first_gpu: next, ..config.clone() };
            instances.push((Role::Mixed, config));
            next += tensor;
        }
        match (share_gpus(&mut instances, num_gpus), expected) {
            (Ok(()), Ok(first)) => {
                let found: Vec<usize> =
                    instances.iter().map(|(_, config)| config.first_gpu).collect();
                assert_eq!(found, first, "{ranks:?} on {num_gpus}");
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (found, _) => panic!("{ranks:?} on {num_gpus}: {found:?}"),
        }
    }

    #[test]
    fn what_changes_nothing_is_refused() {
        let check = |flags: &str, words: &str| {
            let line = format!("stallfree serve --device cpu {flags}");
            let args = serve_args(&line.split_whitespace().collect::<Vec<_>>());
            let resolved = args.map_err(|error| error.to_string()).and_then(|args| {
                let environment = Environment::read();
                let config =
                    DeploymentConfig::resolve(&args.engine, &args.deployment, &environment);
                config.map_err(|error| format!("{error:#}"))
            });
            match (resolved, words) {
                (Ok(_), "") => {}
                (Err(error), words) if !words.is_empty() && error.contains(words) => {}
                (found, _) => panic!("{flags}: {found:?}"),
            }
        };
        let multiplexing = "--mode distserve --dispatch-policy multiplexing";
        let joined = "--mode distserve --instances-listen 127.0.0.1:0";
        for (flags, words) in [
            ("--kv-transport tcp", "--instances-listen"),
            ("--instances-listen 127.0.0.1:0 --kv-transport tcp", ""),
            ("--dispatch-policy slack", "--dispatch-policy changes nothing here"),
            ("--dispatch-policy slak", "there is no dispatch policy"),
            ("--replica-spec 1,1 --dispatch-policy slack", "several instances"),
            ("--replica-spec 1,1 1,1 --dispatch-policy slack", ""),
            ("--instances-listen 127.0.0.1:0 --dispatch-policy slack", ""),
            ("--mode distserve --max-multiplexing-length 9", "--dispatch-policy multiplexing"),
            ("--mode distserve --dispatch-timeout 9", "--dispatch-policy multiplexing"),
            (&format!("{multiplexing} --max-multiplexing-length 9 --dispatch-timeout 9"), ""),
            (&format!("{multiplexing} --multiplexing-decode-batch-latency-watermark 9"), ""),
            ("--early-rejection", ""),
            ("--prefill-max-num-seqs 9", "--prefill-max-num-seqs changes nothing here"),
            (
                "--replica-spec 1,1 1,1 --decode-scheduler orca",
                "--decode-scheduler changes nothing",
            ),
            ("--mode distserve --prefill-max-num-seqs 9 --decode-scheduler orca", ""),
            ("--mode distserve --partition-id 2 --prefill-max-num-seqs 9", "that only prefills"),
            (&format!("{joined} --prefill-max-num-seqs 9"), "have flags of their own"),
            (&format!("{joined} --schedule-policy edf"), ""),
            ("--replica-spec 1,1 1,1 --schedule-policy edf", "--mode distserve"),
        ] {
            check(flags, words);
        }
    }

    #[test]
    fn the_engine_is_the_first_to_refuse() {
        for (flags, least) in [
            ("", 4096 + 256),
            ("--max-num-waiting 20000", 20_000 + 256),
            ("--max-num-seqs 9000", 4096 + 9000),
            ("--mode distserve --prefill-max-num-seqs 8000", 4096 + 8000 + 256),
            ("--instances-listen 127.0.0.1:0 --max-num-waiting 1", 1 + 8 * 256),
            ("--max-num-waiting 18446744073709551615", usize::MAX),
        ] {
            let line = format!("stallfree serve --device cpu {flags}");
            let line: Vec<_> = line.split_whitespace().collect();
            let args = serve_args(&line).expect("flags");
            let environment = Environment::read();
            let deployment =
                DeploymentConfig::resolve(&args.engine, &args.deployment, &environment);
            let deployment = deployment.expect("a deployment");
            let front = FrontConfig::resolve(&args.server, &deployment, &environment);
            let limit = front.expect("a front").limits.max_concurrent_requests;
            assert!(limit > least || limit == usize::MAX, "{flags}: {limit}, not over {least}");
        }
    }

    #[test]
    fn instances_share_gpus_as_far_as_they_can() {
        check(&[1, 1], 2, Ok(&[0, 1]));
        check(&[1, 1], 1, Ok(&[0, 0]));
        check(&[1, 1, 1], 1, Err("lower --gpu-memory-utilization"));
        check(&[2, 1], 2, Ok(&[0, 0]));
        check(&[2, 1, 1], 2, Ok(&[0, 0, 1]));
        check(&[2, 2], 4, Ok(&[0, 2]));
        check(&[2, 2], 2, Err("several ranks"));
    }
}
