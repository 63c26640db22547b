//! What the user meant: flags resolved and checked, as far as that is possible before the model is there.
//!
//! Nothing behind this module sees a flag.

mod deployment;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use stallfree_core::{Parallel, Slo};
use stallfree_device::{gpu_is_usable, num_gpus};
use stallfree_kernels::cpu::{CpuConfig, KvType};
use stallfree_models::DtypeChoice;
use stallfree_scheduler::{Ordering, Registry, SchedulerConfig};
use stallfree_server::{CorsConfig, Limits, ReportConfig};
use stallfree_sim::{Calibration, Factors, Gpu};
use stallfree_worker::{Exchange, GpuRanks, KvSize};

use crate::args::{
    Auto, CacheArgs, DeviceKind, Dtype, EngineArgs, Kernels, LoadFormat, ModelArgs, SchedulerArgs,
    SchedulingPolicy, ServerArgs,
};
use crate::environment::Environment;

/// More threads than any machine has cores; the system runs out of memory maps at some ten thousand.
const MAX_THREADS: usize = 4096;

pub(crate) use deployment::{DeploymentConfig, GateArgs, SIMULATED_ALONE};

/// How to start an engine.
#[derive(Clone, Debug)]
pub(crate) struct InstanceConfig {
    /// Where weights come from.
    pub(crate) weights: WeightsFrom,
    /// Where the tokenizer comes from.
    pub(crate) tokenizer: TokenizerFrom,
    /// Where the chat template comes from.
    pub(crate) chat_template: TemplateFrom,
    /// Where sampling defaults come from.
    pub(crate) generation: GenerationFrom,
    /// What weights are kept in.
    pub(crate) dtype: DtypeChoice,
    /// The most tokens of a sequence.
    pub(crate) max_model_len: Auto,
    /// Where to compute.
    pub(crate) device: DeviceConfig,
    /// Over how many ranks the model is spread.
    pub(crate) parallel: Parallel,
    /// The first rank's GPU, as the driver counts them; the others' follow.
    pub(crate) first_gpu: usize,
    /// The processes that share the ranks, if there are several.
    pub(crate) nodes: Option<Nodes>,
    /// Tokens a block.
    pub(crate) block_size: usize,
    /// How much KV cache to take.
    pub(crate) kv_size: KvSize,
    /// The most tokens a step.
    pub(crate) token_budget: TokenBudget,
    /// The policy's name in the registry.
    pub(crate) policy: String,
    /// The planner's limits; the model's length and the token budget are still to come.
    pub(crate) scheduler: SchedulerConfig,
    /// The most requests that wait.
    pub(crate) max_num_waiting: usize,
}

/// The processes that share the ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    /// How many there are.
    pub(crate) count: usize,
    /// Which one this is.
    pub(crate) node: usize,
    /// Where they meet, as `host:port`.
    pub(crate) master: String,
}

impl Nodes {
    /// Reads which processes there are; none if this one is alone.
    ///
    /// # Errors
    /// It is not one of them, or could not find node 0.
    pub(crate) fn of(cache: &CacheArgs) -> Result<Option<Self>> {
        let CacheArgs { nnodes, node_rank, master_addr, master_port, .. } = cache;
        if node_rank >= nnodes {
            bail!("--node-rank {node_rank} is not below --nnodes {nnodes}");
        }
        if *nnodes == 1 {
            return Ok(None);
        }
        if *node_rank > 0 && *master_port == 0 {
            bail!(
                "--master-port 0 with --node-rank {node_rank}: give the port that node 0 has taken; its log names it"
            );
        }
        let master = format!("{master_addr}:{master_port}");
        Ok(Some(Self { count: *nnodes, node: *node_rank, master }))
    }
}

/// Where to compute.
#[derive(Clone, Debug)]
pub(crate) enum DeviceConfig {
    /// On the CPU.
    Cpu(CpuConfig),
    /// On NVIDIA GPUs, from the first on.
    Cuda(GpuConfig),
    /// Nowhere: on GPUs whose step times are predicted.
    Sim(SimDevice),
}

/// Which GPUs to simulate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SimDevice {
    /// Their kind.
    pub(crate) gpu: Gpu,
    /// How much of their data sheet they reach.
    pub(crate) factors: Factors,
    /// The share of their memory to take.
    pub(crate) memory_utilization: f64,
}

impl DeviceConfig {
    /// Returns whether it only predicts how long computing would take.
    pub(crate) const fn is_simulated(&self) -> bool {
        match self {
            Self::Cpu(_) | Self::Cuda(_) => false,
            Self::Sim(_) => true,
        }
    }

    /// Returns what step times are predicted from; null where they are not predicted.
    pub(crate) fn simulation(&self) -> Value {
        match self {
            Self::Cpu(_) | Self::Cuda(_) => Value::Null,
            Self::Sim(sim) => json!({ "gpu": sim.gpu, "factors": sim.factors }),
        }
    }
}

/// How to use a GPU.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GpuConfig {
    /// Where compiled kernels are kept.
    pub(crate) kernel_cache: PathBuf,
    /// The share of its memory to take.
    pub(crate) memory_utilization: f64,
    /// Which instructions to keep to.
    pub(crate) kernels: Kernels,
    /// Whether ranks may talk through each other's memory, where they reach it.
    pub(crate) peer_memory: bool,
    /// Whether steps of single tokens are recorded.
    pub(crate) records: bool,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsFrom {
    /// From the model's files.
    Files,
    /// They are drawn at random.
    Chance,
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenizerFrom {
    /// The model.
    Model,
    /// A tokenizer.json.
    File(PathBuf),
}

/// Where the chat template comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TemplateFrom {
    /// The model.
    Model,
    /// The user.
    Text(String),
}

/// Where sampling defaults come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum GenerationFrom {
    /// The model's generation_config.json.
    Model,
    /// Nowhere: they are neutral.
    Neutral,
    /// The user's generation_config.json.
    Json(Value),
}

/// The most tokens a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenBudget {
    /// As many as a CPU computes in half a second, measured at start; 2,048 elsewhere.
    Measured,
    /// So many.
    Exactly(usize),
}

/// How to face clients.
#[derive(Clone, Debug)]
pub(crate) struct FrontConfig {
    /// Where to listen.
    pub(crate) address: SocketAddr,
    /// Names of the model that replace its own; may be empty.
    pub(crate) served_model_names: Vec<String>,
    /// Keys that open the API; none leaves it open.
    pub(crate) api_keys: Vec<String>,
    /// Which web pages may call.
    pub(crate) cors: CorsConfig,
    /// What protects the process from its clients.
    pub(crate) limits: Limits,
    /// What a request is promised that says nothing.
    pub(crate) default_slo: Slo,
    /// Variables for the chat template.
    pub(crate) chat_template_kwargs: Map<String, Value>,
    /// What is reported beyond the defaults.
    pub(crate) report: ReportConfig,
}

impl InstanceConfig {
    /// Returns how many ranks this process has.
    pub(crate) fn num_local_ranks(&self) -> usize {
        self.parallel.world_size() / self.nodes.as_ref().map_or(1, |nodes| nodes.count)
    }

    /// Resolves the flags that concern the engine.
    ///
    /// # Errors
    /// A flag's value can't work; the message names the flag.
    pub(crate) fn resolve(args: &EngineArgs, environment: &Environment) -> Result<Self> {
        let EngineArgs { model, scheduler, cache } = args;
        let scheduler_config = scheduler_config(scheduler, cache);
        // Only to find out now, not after minutes of loading, whether name and settings do.
        Registry::default().build(&scheduler.scheduler, &scheduler_config)?;
        let device = device(model.dtype, cache, environment)?;
        let parallel =
            Parallel { tensor: cache.tensor_parallel_size, pipeline: cache.pipeline_parallel_size };
        Ok(Self {
            weights: match (&device, model.load_format) {
                // A simulation reads no weights.
                (DeviceConfig::Sim(_), _) | (_, LoadFormat::Dummy) => WeightsFrom::Chance,
                (_, LoadFormat::Auto | LoadFormat::Safetensors | LoadFormat::Gguf) => {
                    WeightsFrom::Files
                }
            },
            tokenizer: tokenizer(model)?,
            chat_template: chat_template(model)?,
            generation: generation(model)?,
            dtype: match model.dtype {
                Dtype::Auto => DtypeChoice::Auto,
                Dtype::Float16 => DtypeChoice::F16,
                Dtype::Bfloat16 => DtypeChoice::BF16,
                Dtype::Float32 => DtypeChoice::F32,
            },
            max_model_len: model.max_model_len.unwrap_or(Auto::Fit),
            parallel,
            first_gpu: 0,
            nodes: nodes(cache, parallel, &device)?,
            device,
            block_size: cache.block_size,
            kv_size: match (cache.num_gpu_blocks_override, cache.kv_cache_memory_bytes) {
                (Some(num_blocks), _) => KvSize::Blocks(num_blocks),
                (None, Some(bytes)) => KvSize::Bytes(bytes as u64),
                (None, None) => KvSize::Auto,
            },
            token_budget: scheduler
                .max_num_batched_tokens
                .map_or(TokenBudget::Measured, TokenBudget::Exactly),
            policy: scheduler.scheduler.clone(),
            scheduler: scheduler_config,
            max_num_waiting: scheduler.max_num_waiting,
        })
    }
}

impl FrontConfig {
    /// Resolves the flags of `serve` that concern clients of a deployment.
    ///
    /// # Errors
    /// A flag's value can't work; the message names the flag.
    pub(crate) fn resolve(
        args: &ServerArgs,
        deployment: &DeploymentConfig,
        environment: &Environment,
    ) -> Result<Self> {
        let address = args.address().map_err(anyhow::Error::msg)?;
        Ok(Self {
            address: SocketAddr::new(address, args.port),
            served_model_names: args.served_model_name.clone(),
            api_keys: match args.api_key.as_slice() {
                [] => environment.api_keys.clone(),
                given => given.to_vec(),
            },
            cors: CorsConfig {
                allowed_origins: list("allowed-origins", &args.allowed_origins)?,
                allowed_methods: list("allowed-methods", &args.allowed_methods)?,
                allowed_headers: list("allowed-headers", &args.allowed_headers)?,
                allow_credentials: args.allow_credentials,
            },
            limits: Limits {
                max_concurrent_requests: deployment.max_concurrent_requests(),
                max_logprobs: args.max_logprobs,
                trust_request_chat_template: args.trust_request_chat_template,
                ..Limits::default()
            },
            default_slo: Slo { ttft: args.ttft_slo, tpot: args.tpot_slo },
            chat_template_kwargs: serde_json::from_str(&args.default_chat_template_kwargs)
                .context("--default-chat-template-kwargs is not a JSON object")?,
            report: ReportConfig {
                enable_force_include_usage: args.enable_force_include_usage,
                enable_request_id_headers: args.enable_request_id_headers,
                return_tokens_as_token_ids: args.return_tokens_as_token_ids,
                disable_log_stats: args.disable_log_stats,
            },
        })
    }
}

fn ordering(policy: SchedulingPolicy) -> Ordering {
    match policy {
        SchedulingPolicy::Fcfs => Ordering::Fcfs,
        SchedulingPolicy::Priority => Ordering::Priority,
        SchedulingPolicy::Sjf => Ordering::Sjf,
        SchedulingPolicy::Ljf => Ordering::Ljf,
        SchedulingPolicy::Edf => Ordering::Edf,
        SchedulingPolicy::Llf => Ordering::Llf,
    }
}

fn scheduler_config(scheduler: &SchedulerArgs, cache: &CacheArgs) -> SchedulerConfig {
    let default = SchedulerConfig::default();
    SchedulerConfig {
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler
            .max_num_batched_tokens
            .unwrap_or(default.max_num_batched_tokens),
        long_prefill_token_threshold: scheduler.long_prefill_token_threshold,
        ordering: ordering(scheduler.scheduling_policy),
        enable_prefix_caching: !cache.no_enable_prefix_caching,
        settings: scheduler.scheduler_config.iter().cloned().collect(),
        ..default
    }
}

/// Finds out which processes share the ranks.
fn nodes(cache: &CacheArgs, parallel: Parallel, device: &DeviceConfig) -> Result<Option<Nodes>> {
    let Some(nodes) = Nodes::of(cache)? else { return Ok(None) };
    let (nnodes, ranks) = (nodes.count, parallel.world_size());
    if device.is_simulated() {
        bail!("--nnodes {nnodes}: a simulation needs one process; leave it out");
    }
    if !ranks.is_multiple_of(nnodes) {
        bail!(
            "--nnodes {nnodes} does not divide the {ranks} ranks of --tensor-parallel-size and --pipeline-parallel-size"
        );
    }
    Ok(Some(nodes))
}

/// Decides where to compute: `auto` takes a GPU that has all it needs.
fn device(dtype: Dtype, cache: &CacheArgs, environment: &Environment) -> Result<DeviceConfig> {
    let on_cpu = cpu(dtype, cache)?;
    if let DeviceKind::Sim(name) = &cache.device {
        return simulated(name, cache);
    }
    if cache.device == DeviceKind::Cpu {
        return Ok(DeviceConfig::Cpu(on_cpu));
    }
    let on_gpu = GpuConfig {
        kernel_cache: environment.kernels(),
        memory_utilization: cache.gpu_memory_utilization,
        kernels: cache.kernels,
        peer_memory: !cache.disable_custom_all_reduce,
        records: !cache.enforce_eager,
    };
    match (gpu_problem(cache), &cache.device) {
        (None, _) => Ok(DeviceConfig::Cuda(on_gpu)),
        (Some(problem), DeviceKind::Cuda) => {
            bail!("--device cuda: {problem}; or use --device cpu. `stallfree doctor` says more")
        }
        (Some(problem), _) => {
            if num_gpus() > 0 {
                tracing::warn!("Computing on the CPU: {problem}");
            }
            Ok(DeviceConfig::Cpu(on_cpu))
        }
    }
}

/// Says what keeps as many GPUs as are asked for from being used, or from talking to each other.
fn gpu_problem(cache: &CacheArgs) -> Option<String> {
    let (tensor, stages, nodes) =
        (cache.tensor_parallel_size, cache.pipeline_parallel_size, cache.nnodes);
    let (count, needed) = (num_gpus(), (tensor * stages).div_ceil(nodes));
    if let Err(problem) = gpu_is_usable(0) {
        return Some(problem.to_string());
    }
    if count < needed {
        let each = if nodes > 1 { " on each of the nodes" } else { "" };
        return Some(format!(
            "--tensor-parallel-size {tensor} and --pipeline-parallel-size {stages} need {needed} GPUs{each}, and the driver lists {count}"
        ));
    }
    let peer_memory = !cache.disable_custom_all_reduce;
    let ranks = GpuRanks { gpus: 0..needed, tensor, num_nodes: nodes, peer_memory };
    Exchange::choose(&ranks).err().map(|problem| problem.to_string())
}

fn simulated(name: &str, cache: &CacheArgs) -> Result<DeviceConfig> {
    let (gpu, factors) = Calibration::find(name)?;
    Ok(DeviceConfig::Sim(SimDevice {
        gpu,
        factors,
        memory_utilization: cache.gpu_memory_utilization,
    }))
}

fn cpu(dtype: Dtype, cache: &CacheArgs) -> Result<CpuConfig> {
    let mut cpu = CpuConfig::default();
    match cache.threads {
        Some(0) => bail!("--threads must be at least 1"),
        Some(threads) if threads > MAX_THREADS => {
            bail!("--threads is {threads}, but must be at most {MAX_THREADS}")
        }
        Some(threads) => cpu.num_threads = threads,
        None => {}
    }
    if dtype == Dtype::Float32 {
        cpu.kv_type = KvType::F32;
    }
    Ok(cpu)
}

fn tokenizer(model: &ModelArgs) -> Result<TokenizerFrom> {
    let Some(path) = &model.tokenizer else { return Ok(TokenizerFrom::Model) };
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.clone() };
    if !file.is_file() {
        bail!(
            "--tokenizer {}: it is neither a tokenizer.json nor a folder with one",
            path.display()
        );
    }
    Ok(TokenizerFrom::File(file))
}

fn chat_template(model: &ModelArgs) -> Result<TemplateFrom> {
    let Some(given) = &model.chat_template else { return Ok(TemplateFrom::Model) };
    if given.contains(['{', '\n']) {
        return Ok(TemplateFrom::Text(given.clone()));
    }
    let text = std::fs::read_to_string(given)
        .with_context(|| format!("--chat-template {given} is neither a template nor a file"))?;
    Ok(TemplateFrom::Text(text))
}

fn generation(model: &ModelArgs) -> Result<GenerationFrom> {
    match &*model.generation_config {
        "auto" => Ok(GenerationFrom::Model),
        "vllm" => Ok(GenerationFrom::Neutral),
        folder => {
            let path = PathBuf::from(folder).join("generation_config.json");
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("--generation-config: {}", path.display()))?;
            let json = serde_json::from_str(&text)
                .with_context(|| format!("--generation-config: {}", path.display()))?;
            Ok(GenerationFrom::Json(json))
        }
    }
}

fn list(flag: &str, text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text)
        .with_context(|| format!(r#"--{flag} {text} is not a JSON list such as ["*"]"#))
}

#[cfg(test)]
mod tests;
