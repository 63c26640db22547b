//! The flags of a deployment of several instances, spelled as DistServe and Tropical (sgir-distserve) spell them.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::SchedulingPolicy;
use super::instance::KvTransport;
use super::number::{millis, positive, ranks, share};

/// Several instances in one server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Several instances")]
pub(crate) struct DeploymentArgs {
    /// How requests are shared out among instances
    #[arg(long, value_enum, default_value_t = Mode::Simple)]
    pub(crate) mode: Mode,
    /// The instances, each as TENSOR,PIPELINE: 2,1 2,1 1,2
    #[arg(long, value_name = "TP,PP", num_args = 1..)]
    pub(crate) replica_spec: Vec<ReplicaSpec>,
    /// With --mode distserve, how many of the instances prefill; the others decode. As many as there
    /// are: all do both [default: half of them]
    #[arg(long, value_name = "K")]
    pub(crate) partition_id: Option<usize>,
    /// Which instance gets a sequence: least-tokens, least-requests, round-robin, or, by objectives,
    /// slack, multiplexing [default: least-tokens]
    #[arg(long, value_name = "NAME")]
    pub(crate) dispatch_policy: Option<String>,
    /// Where instances in processes of their own join, which `stallfree instance` starts; they compute
    /// beside those of --replica-spec, or alone
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) instances_listen: Option<String>,
    /// How many of them to wait for before clients are let in
    /// [default: 1, or none beside --replica-spec]
    #[arg(long, value_name = "N", requires = "instances_listen")]
    pub(crate) wait_for_instances: Option<usize>,
    /// How KV goes between processes [default: auto]
    #[arg(long, value_enum, requires = "instances_listen")]
    pub(crate) kv_transport: Option<KvTransport>,
    /// With multiplexing: prompts of as many tokens are not computed on instances that decode
    /// [default: 8192]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_multiplexing_length: Option<usize>,
    /// With multiplexing: most tokens that all decodes of an instance have which is given a prompt
    /// [default: 400000]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) multiplexing_decode_batched_tokens_watermark: Option<usize>,
    /// With multiplexing: longest decode step of an instance that is given a prompt, in milliseconds
    /// [default: 850]
    #[arg(long, value_name = "MS", value_parser = millis)]
    pub(crate) multiplexing_decode_batch_latency_watermark: Option<Duration>,
    /// With multiplexing: seconds after which a request that no instance has taken is answered with 429,
    /// or with an error event if it is streamed [default: 60]
    #[arg(long, value_name = "S", value_parser = positive)]
    pub(crate) dispatch_timeout: Option<usize>,
    /// Answer 429 at once where the first token would come after the request's ttft_slo
    #[arg(long)]
    pub(crate) early_rejection: bool,
    /// --scheduling-policy of instances that prefill
    #[arg(long, visible_alias = "schedule-policy", value_enum)]
    pub(crate) prefill_scheduling_policy: Option<SchedulingPolicy>,
    /// What is different on instances that prefill.
    #[command(flatten)]
    pub(crate) prefill: PrefillArgs,
    /// What is different on instances that decode.
    #[command(flatten)]
    pub(crate) decode: DecodeArgs,
}

/// How requests are shared out among instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Each runs on one instance from beginning to end
    Simple,
    /// Some instances prefill, the others fetch the KV and decode
    #[value(alias = "disaggregated")]
    Distserve,
}

/// Over how many ranks an instance is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaSpec {
    pub(crate) tensor: usize,
    pub(crate) pipeline: usize,
}

impl FromStr for ReplicaSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why: &str| format!("'{text}' is not TENSOR,PIPELINE, such as 2,1{why}");
        let (tensor, pipeline) = text.split_once(',').ok_or_else(|| bad(""))?;
        let number = |text: &str| ranks(text.trim()).map_err(|why| bad(&format!(": {why}")));
        Ok(Self { tensor: number(tensor)?, pipeline: number(pipeline)? })
    }
}

/// Settings of some instances, where they differ from those of all.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    pub(crate) scheduler: Option<String>,
    pub(crate) max_num_seqs: Option<usize>,
    pub(crate) max_num_batched_tokens: Option<usize>,
    pub(crate) gpu_memory_utilization: Option<f64>,
}

impl Overrides {
    /// Returns the flags that were given, without the side that they begin with, and their values.
    pub(crate) fn typed(&self) -> Vec<(&'static str, String)> {
        let Self { scheduler, max_num_seqs, max_num_batched_tokens, gpu_memory_utilization } = self;
        let values = [
            ("scheduler", scheduler.clone()),
            ("max-num-seqs", max_num_seqs.map(|value| value.to_string())),
            ("max-num-batched-tokens", max_num_batched_tokens.map(|value| value.to_string())),
            ("gpu-memory-utilization", gpu_memory_utilization.map(|value| value.to_string())),
        ];
        values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

macro_rules! overrides {
    ($(#[$doc:meta])* $name:ident, $who:literal, $scheduler:ident, $seqs:ident, $tokens:ident, $memory:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Args)]
        pub(crate) struct $name {
            #[arg(long, value_name = "NAME")]
            #[arg(help = concat!("--scheduler of instances that ", $who))]
            $scheduler: Option<String>,
            #[arg(long, value_name = "N", value_parser = positive)]
            #[arg(help = concat!("--max-num-seqs of instances that ", $who))]
            $seqs: Option<usize>,
            #[arg(long, value_name = "N", value_parser = positive)]
            #[arg(help = concat!("--max-num-batched-tokens of instances that ", $who))]
            $tokens: Option<usize>,
            #[arg(long, value_name = "SHARE", value_parser = share)]
            #[arg(help = concat!("--gpu-memory-utilization of instances that ", $who))]
            $memory: Option<f64>,
        }

        impl $name {
            pub(crate) fn overrides(&self) -> Overrides {
                Overrides {
                    scheduler: self.$scheduler.clone(),
                    max_num_seqs: self.$seqs,
                    max_num_batched_tokens: self.$tokens,
                    gpu_memory_utilization: self.$memory,
                }
            }
        }
    };
}

overrides! {
    /// What is different on instances that prefill.
    PrefillArgs, "prefill", prefill_scheduler, prefill_max_num_seqs, prefill_max_num_batched_tokens,
    prefill_gpu_memory_utilization
}
overrides! {
    /// What is different on instances that decode.
    DecodeArgs, "decode", decode_scheduler, decode_max_num_seqs, decode_max_num_batched_tokens,
    decode_gpu_memory_utilization
}
