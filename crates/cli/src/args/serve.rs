//! The flags of `serve`, with vLLM's names and defaults where the meaning is the same.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, ValueEnum};

use super::deployment::DeploymentArgs;
use super::key_value::key_value;
use super::number::{Auto, count, millis, positive, ranks, share};

/// The flags of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// What answers.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How many of them.
    #[command(flatten)]
    pub(crate) deployment: DeploymentArgs,
    /// How clients reach it.
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The flags of an engine, with or without a server before it.
#[derive(Clone, Debug, Args)]
pub(crate) struct EngineArgs {
    /// What to run.
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Who runs next.
    #[command(flatten)]
    pub(crate) scheduler: SchedulerArgs,
    /// Where the KV cache lies, and how large it is.
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
}

/// Which model, and how to read it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A folder, a .gguf file, or a Hugging Face id (org/name, org/name:file.gguf)
    /// [default: SmolLM2-135M-Instruct]
    #[arg(value_name = "MODEL", help_heading = None::<&'static str>)]
    pub(crate) model: Option<String>,
    /// The same as MODEL
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "model")]
    pub(crate) model_flag: Option<String>,
    /// Branch, tag or commit of a Hugging Face id [default: main]
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// A tokenizer.json, or a folder that holds one [default: the model's]
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// How to read the weights; dummy draws them at random and needs only a config.json
    #[arg(long, value_enum, default_value_t = LoadFormat::Auto)]
    pub(crate) load_format: LoadFormat,
    /// The type that weights are kept in; quantized ones stay as they are, except with float32
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    pub(crate) dtype: Dtype,
    /// Most tokens of a request, prompt and answer together (8k, 8K, auto)
    /// [default: the model's, or as much as fits]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_model_len: Option<Auto>,
    /// Where sampling defaults come from: auto (the model's generation_config.json), vllm (none), or
    /// a folder
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    pub(crate) generation_config: String,
    /// The chat template, as a file or as text [default: the model's]
    #[arg(long, value_name = "FILE|TEXT")]
    pub(crate) chat_template: Option<String>,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormat {
    /// Whatever MODEL is
    Auto,
    /// A folder with safetensors
    Safetensors,
    /// A GGUF file
    Gguf,
    /// Random weights
    Dummy,
}

/// What weights are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// As the files have them
    Auto,
    /// 16-bit IEEE
    #[value(alias = "half")]
    Float16,
    /// 16-bit brain float
    Bfloat16,
    /// 32-bit
    #[value(alias = "float")]
    Float32,
}

/// Who runs next.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Scheduler")]
pub(crate) struct SchedulerArgs {
    /// The policy; `stallfree schedulers` describes each
    #[arg(long, value_name = "NAME", default_value = "sarathi")]
    pub(crate) scheduler: String,
    /// A setting of the policy; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) scheduler_config: Vec<(String, String)>,
    /// The order of waiting requests; edf and llf need objectives
    #[arg(long, value_enum, default_value_t = SchedulingPolicy::Fcfs)]
    pub(crate) scheduling_policy: SchedulingPolicy,
    /// Most sequences running at once
    #[arg(long, value_name = "N", value_parser = positive, default_value = "256")]
    pub(crate) max_num_seqs: usize,
    /// Most tokens computed in a step (2k, 2K)
    /// [default: 2048; on the CPU alone, as many as it computes in 0.5 s]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_num_batched_tokens: Option<usize>,
    /// Most tokens of one prompt in a step; 0 sets no limit
    #[arg(long, value_name = "N", value_parser = count, default_value = "0")]
    pub(crate) long_prefill_token_threshold: usize,
    /// Most requests waiting, before others are answered with 429
    #[arg(long, value_name = "N", value_parser = positive, default_value = "4096")]
    pub(crate) max_num_waiting: usize,
}

/// The order of waiting requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchedulingPolicy {
    /// First come, first served
    Fcfs,
    /// Lower `priority` first
    Priority,
    /// Shortest prompt first
    Sjf,
    /// Longest prompt first
    Ljf,
    /// Earliest deadline of the first token first
    Edf,
    /// Least laxity first: the deadline, less the time that the prompt takes
    Llf,
}

/// Where to compute, and with how much memory.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Device and KV cache")]
#[expect(clippy::struct_excessive_bools, reason = "one field is one flag of the command line")]
pub(crate) struct CacheArgs {
    /// Where to compute: auto, cpu, cuda, or sim:GPU, which predicts how long steps take and answers
    /// with letters (a100-80g-pcie, a100-80g-sxm, a100-80g-distserve, h100-sxm, h200-sxm, a40-48g,
    /// a10-24g, or a file that `calibrate` wrote)
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceKind,
    /// GPUs that share each layer; on the CPU, threads that do as they would
    #[arg(long, value_name = "N", value_parser = ranks, default_value = "1")]
    pub(crate) tensor_parallel_size: usize,
    /// Stages of layers, one after the other, each with its own GPUs
    #[arg(long, value_name = "N", value_parser = ranks, default_value = "1")]
    pub(crate) pipeline_parallel_size: usize,
    /// Processes that share the ranks, on one host or several, started with the same flags but for
    /// --node-rank
    #[arg(long, value_name = "N", value_parser = ranks, default_value = "1")]
    pub(crate) nnodes: usize,
    /// Which of the processes this is; 0 answers requests
    #[arg(long, value_name = "N", value_parser = count, default_value = "0")]
    pub(crate) node_rank: usize,
    /// Where process 0 waits for the others
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) master_addr: String,
    /// The port there; on process 0, 0 takes a free one, which its log names
    #[arg(long, value_name = "PORT", default_value_t = 29501)]
    pub(crate) master_port: u16,
    /// GPUs talk through NCCL, even where they reach each other's memory
    #[arg(long)]
    pub(crate) disable_custom_all_reduce: bool,
    /// Record no steps as CUDA graphs
    #[arg(long)]
    pub(crate) enforce_eager: bool,
    /// CPU threads to compute with [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Share of the GPU's memory to take
    #[arg(long, value_name = "SHARE", value_parser = share, default_value = "0.9")]
    pub(crate) gpu_memory_utilization: f64,
    /// GPU kernels to use
    #[arg(long, value_enum, default_value_t = Kernels::Auto)]
    pub(crate) kernels: Kernels,
    /// Tokens in a block of the KV cache
    #[arg(long, value_name = "N", value_parser = positive, default_value = "16")]
    pub(crate) block_size: usize,
    /// Blocks in the KV cache [default: what the memory holds]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) num_gpu_blocks_override: Option<usize>,
    /// Bytes for the KV cache (4G, 512M) [default: a share of the free memory]
    #[arg(long, value_name = "BYTES", value_parser = positive)]
    pub(crate) kv_cache_memory_bytes: Option<usize>,
    /// Keep finished sequences' blocks for requests that start the same [default: on]
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub(crate) enable_prefix_caching: bool,
    /// Do not
    #[arg(long)]
    pub(crate) no_enable_prefix_caching: bool,
}

/// Where to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// The best device there is.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A simulated GPU, or the file that describes it.
    Sim(String),
}

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => match text.strip_prefix("sim:").filter(|gpu| !gpu.is_empty()) {
                Some(gpu) => Ok(Self::Sim(gpu.to_owned())),
                None => Err("it is auto, cpu, cuda, or sim:GPU such as sim:h100-sxm".to_owned()),
            },
        }
    }
}

/// GPU kernels to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernels {
    /// The fastest for the GPU that is there
    Auto,
    /// Those of Ampere, on any GPU
    Sm80,
}

/// How clients reach the server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
#[expect(clippy::struct_excessive_bools, reason = "one field is one flag of the command line")]
pub(crate) struct ServerArgs {
    /// Address to listen on [default: all interfaces]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// Keys that clients must send one of [env: VLLM_API_KEY, STALLFREE_API_KEY]
    #[arg(long, value_name = "KEY", num_args = 1.., action = ArgAction::Append, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) api_key: Vec<String>,
    /// Names that clients may call the model [default: MODEL]
    #[arg(long, value_name = "NAME", num_args = 1.., action = ArgAction::Append, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) served_model_name: Vec<String>,
    /// Origins that browsers may call from, as a JSON list
    #[arg(long, value_name = "JSON", default_value = r#"["*"]"#)]
    pub(crate) allowed_origins: String,
    /// Methods that browsers may use, as a JSON list
    #[arg(long, value_name = "JSON", default_value = r#"["*"]"#)]
    pub(crate) allowed_methods: String,
    /// Headers that browsers may send, as a JSON list
    #[arg(long, value_name = "JSON", default_value = r#"["*"]"#)]
    pub(crate) allowed_headers: String,
    /// Let browsers send credentials along
    #[arg(long)]
    pub(crate) allow_credentials: bool,
    /// Let requests bring their own chat template, which is a program
    #[arg(long)]
    pub(crate) trust_request_chat_template: bool,
    /// Variables for the chat template, as a JSON object; a request's own come before them
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub(crate) default_chat_template_kwargs: String,
    /// Most time to the first token of a request without a `ttft_slo` of its own, in milliseconds
    /// [default: any]
    #[arg(long, value_name = "MS", value_parser = millis)]
    pub(crate) ttft_slo: Option<Duration>,
    /// Most time a token after the first of a request without a `tpot_slo` of its own, in milliseconds
    /// [default: any]
    #[arg(long, value_name = "MS", value_parser = millis)]
    pub(crate) tpot_slo: Option<Duration>,
    /// Most logprobs a request may ask for
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) max_logprobs: u32,
    /// Send each request's X-Request-Id back
    #[arg(long)]
    pub(crate) enable_request_id_headers: bool,
    /// End every stream with its usage, asked for or not
    #[arg(long)]
    pub(crate) enable_force_include_usage: bool,
    /// Name tokens `token_id:N` in logprobs
    #[arg(long)]
    pub(crate) return_tokens_as_token_ids: bool,
    /// Print no throughput line every ten seconds
    #[arg(long)]
    pub(crate) disable_log_stats: bool,
}

impl ServerArgs {
    /// Returns the address to bind.
    ///
    /// # Errors
    /// A sentence that names the host.
    pub(crate) fn address(&self) -> Result<IpAddr, String> {
        match self.host.as_deref() {
            None => Ok(IpAddr::from([0, 0, 0, 0])),
            Some("localhost") => Ok(IpAddr::from([127, 0, 0, 1])),
            Some(host) => host.parse().or_else(|_| {
                let found = (host, self.port).to_socket_addrs().ok();
                let address = found.and_then(|mut addresses| addresses.next());
                address.map(|address| address.ip()).ok_or_else(|| {
                    format!(
                        "--host {host} is neither an IP address such as 127.0.0.1 or :: nor a name of this machine"
                    )
                })
            }),
        }
    }
}
