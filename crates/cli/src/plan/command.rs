//! The command line that serves with a placement.

use std::fmt;

use clap::ValueEnum;
use stallfree_scheduler::SchedulerConfig;

use super::PlanArgs;
use super::placement::{Fleet, Placement};
use crate::args::{
    Auto, CacheArgs, DeploymentArgs, EngineArgs, ModelArgs, ReplicaSpec, SchedulerArgs, ServeArgs,
    serve_args,
};

/// Returns the command line that serves with a placement on GPUs that are there: what decided the simulation, as far as it is not the
/// default.
///
/// # Errors
/// clap's, where a flag of `serve` has no default.
pub(super) fn of(placement: Placement, args: &PlanArgs) -> Result<Vec<String>, clap::Error> {
    let ServeArgs { engine: default, .. } = serve_args(&["stallfree", "serve"])?;
    let EngineArgs { model, scheduler, cache } = &args.engine;
    let command = ["stallfree", "serve"].map(str::to_owned).to_vec();
    Ok([
        command,
        model_flags(model, &default.model),
        scheduler_flags(scheduler, &default.scheduler),
        cache_flags(cache, &default.cache),
        flag("ttft-slo", args.search.ttft_slo),
        flag("tpot-slo", args.search.tpot_slo),
        deployment_flags(placement, placement.deployment(args)),
    ]
    .concat())
}

fn flag(name: &str, value: impl fmt::Display) -> Vec<String> {
    vec![format!("--{name}"), value.to_string()]
}

/// A flag with its value, if it was given.
fn given(name: &str, value: Option<impl fmt::Display>) -> Vec<String> {
    value.map(|value| flag(name, value)).unwrap_or_default()
}

/// A flag with its value, if that is not the default.
fn changed<T: PartialEq + fmt::Display>(name: &str, value: &T, default: &T) -> Vec<String> {
    given(name, (value != default).then_some(value))
}

/// The same for values that have names.
fn chosen<T: PartialEq + ValueEnum>(name: &str, value: &T, default: &T) -> Vec<String> {
    let named = value.to_possible_value().filter(|_| value != default);
    given(name, named.map(|value| value.get_name().to_owned()))
}

fn switch(name: &str, is_on: bool) -> Vec<String> {
    if is_on { vec![format!("--{name}")] } else { Vec::new() }
}

/// Weights are the model's own where they are not simulated, however they were to be read here.
fn model_flags(model: &ModelArgs, default: &ModelArgs) -> Vec<String> {
    let ModelArgs {
        model: name,
        model_flag,
        revision,
        tokenizer,
        load_format: _,
        dtype,
        max_model_len,
        generation_config,
        chat_template,
    } = model;
    let max_model_len = max_model_len.and_then(|len| match len {
        Auto::Exactly(count) => Some(count),
        Auto::Fit => None,
    });
    [
        name.clone().or_else(|| model_flag.clone()).into_iter().collect(),
        given("revision", revision.as_ref()),
        given("tokenizer", tokenizer.as_ref().map(|path| path.display())),
        chosen("dtype", dtype, &default.dtype),
        given("max-model-len", max_model_len),
        changed("generation-config", generation_config, &default.generation_config),
        given("chat-template", chat_template.as_ref()),
    ]
    .concat()
}

fn scheduler_flags(scheduler: &SchedulerArgs, default: &SchedulerArgs) -> Vec<String> {
    let SchedulerArgs {
        scheduler: name,
        scheduler_config,
        scheduling_policy,
        max_num_seqs,
        max_num_batched_tokens,
        long_prefill_token_threshold: threshold,
        max_num_waiting,
    } = scheduler;
    // Left alone, a simulated device takes the scheduler's own default, a real one what it measures.
    let tokens = SchedulerConfig::default().max_num_batched_tokens;
    let setting =
        |(key, value): &(String, String)| flag("scheduler-config", format!("{key}={value}"));
    [
        changed("scheduler", name, &default.scheduler),
        scheduler_config.iter().flat_map(setting).collect(),
        chosen("scheduling-policy", scheduling_policy, &default.scheduling_policy),
        changed("max-num-seqs", max_num_seqs, &default.max_num_seqs),
        flag("max-num-batched-tokens", max_num_batched_tokens.unwrap_or(tokens)),
        changed("long-prefill-token-threshold", threshold, &default.long_prefill_token_threshold),
        changed("max-num-waiting", max_num_waiting, &default.max_num_waiting),
    ]
    .concat()
}

/// Where to compute is what the machine has; a placement says over how many GPUs.
fn cache_flags(cache: &CacheArgs, default: &CacheArgs) -> Vec<String> {
    let CacheArgs {
        device: _,
        tensor_parallel_size: _,
        pipeline_parallel_size: _,
        nnodes: _,
        node_rank: _,
        master_addr: _,
        master_port: _,
        threads: _,
        disable_custom_all_reduce,
        enforce_eager,
        gpu_memory_utilization: share,
        kernels,
        block_size,
        num_gpu_blocks_override,
        kv_cache_memory_bytes,
        enable_prefix_caching: _,
        no_enable_prefix_caching,
    } = cache;
    [
        switch("disable-custom-all-reduce", *disable_custom_all_reduce),
        switch("enforce-eager", *enforce_eager),
        changed("gpu-memory-utilization", share, &default.gpu_memory_utilization),
        chosen("kernels", kernels, &default.kernels),
        changed("block-size", block_size, &default.block_size),
        given("num-gpu-blocks-override", num_gpu_blocks_override.as_ref()),
        given("kv-cache-memory-bytes", kv_cache_memory_bytes.as_ref()),
        switch("no-enable-prefix-caching", *no_enable_prefix_caching),
    ]
    .concat()
}

fn deployment_flags(placement: Placement, deployment: DeploymentArgs) -> Vec<String> {
    let DeploymentArgs {
        mode: _,
        replica_spec,
        partition_id,
        dispatch_policy,
        // A plan has all instances in one process.
        instances_listen: _,
        wait_for_instances: _,
        kv_transport: _,
        max_multiplexing_length,
        multiplexing_decode_batched_tokens_watermark: tokens,
        multiplexing_decode_batch_latency_watermark: step,
        dispatch_timeout,
        early_rejection,
        prefill_scheduling_policy: order,
        prefill,
        decode,
    } = deployment;
    let order = order.and_then(|order| order.to_possible_value());
    let side = |side: &str, typed: Vec<(&str, String)>| -> Vec<String> {
        typed.into_iter().flat_map(|(name, value)| flag(&format!("{side}-{name}"), value)).collect()
    };
    let spec = |spec: ReplicaSpec| format!("{},{}", spec.tensor, spec.pipeline);
    let instances = match placement {
        Placement::Together(Fleet { spec: ReplicaSpec { tensor, pipeline }, count: 1 }) => {
            [flag("tensor-parallel-size", tensor), flag("pipeline-parallel-size", pipeline)]
                .concat()
        }
        Placement::Together(_) | Placement::Apart { .. } => {
            std::iter::once("--replica-spec".to_owned())
                .chain(replica_spec.into_iter().map(spec))
                .collect()
        }
    };
    [
        given("mode", partition_id.map(|_| "distserve")),
        given("partition-id", partition_id),
        given("dispatch-policy", dispatch_policy),
        given("max-multiplexing-length", max_multiplexing_length),
        given("multiplexing-decode-batched-tokens-watermark", tokens),
        given(
            "multiplexing-decode-batch-latency-watermark",
            step.map(|step| step.as_secs_f64() * 1e3),
        ),
        given("dispatch-timeout", dispatch_timeout),
        switch("early-rejection", early_rejection),
        given("prefill-scheduling-policy", order.map(|order| order.get_name().to_owned())),
        side("prefill", prefill.overrides().typed()),
        side("decode", decode.overrides().typed()),
        instances,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::config::DeploymentConfig;
    use crate::environment::Environment;
    use clap::Parser as _;

    const ON: &str =
        "opt-13b --device sim:a100-80g-sxm --num-gpus 4 --ttft-slo 250 --tpot-slo 33.3";

    /// Every flag that decides what is simulated, with another value than its default.
    const ALL: &str = "--revision r --dtype bfloat16 --max-model-len 2k --generation-config vllm --scheduler vllm \
        --scheduling-policy sjf --max-num-seqs 100 --max-num-batched-tokens 4k --long-prefill-token-threshold 1000 \
        --max-num-waiting 99 --disable-custom-all-reduce --enforce-eager --gpu-memory-utilization 0.8 --kernels sm80 \
        --block-size 32 --num-gpu-blocks-override 999 --no-enable-prefix-caching --dispatch-policy multiplexing \
        --max-multiplexing-length 4k --multiplexing-decode-batched-tokens-watermark 100k \
        --multiplexing-decode-batch-latency-watermark 12.5 --dispatch-timeout 9 --early-rejection --schedule-policy edf \
        --prefill-scheduler sarathi --prefill-max-num-seqs 3 --decode-max-num-batched-tokens 512 \
        --decode-gpu-memory-utilization 0.7";

    /// Checks that what is printed is taken by `serve`, and means what was simulated.
    fn check(placement: Placement, flags: &str) {
        let line = format!("stallfree plan {ON} {flags}");
        let parsed = Cli::try_parse_from(line.split_whitespace()).expect("flags of a plan");
        let Command::Plan(mut plan) = parsed.command else { panic!("{line}") };
        let argv = of(placement, &plan).expect("a command line");
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut serve = serve_args(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        assert_eq!(serve.server.ttft_slo.map(|slo| slo.as_secs_f64()), Some(0.25));
        assert_eq!(serve.server.tpot_slo.map(|slo| slo.as_secs_f64()), Some(0.0333));
        serve.engine.cache.device = plan.engine.cache.device.clone();
        let tokens = &mut plan.engine.scheduler.max_num_batched_tokens;
        tokens.get_or_insert(SchedulerConfig::default().max_num_batched_tokens);
        let resolve = |engine: &EngineArgs, deployment: &DeploymentArgs| {
            let config = DeploymentConfig::resolve(engine, deployment, &Environment::read());
            format!("{:#?}", config.unwrap_or_else(|error| panic!("{words:?}: {error}")))
        };
        let simulated = resolve(&plan.engine, &placement.deployment(&plan));
        assert_eq!(resolve(&serve.engine, &serve.deployment), simulated, "{words:?}");
    }

    #[test]
    fn a_plan_is_served_as_it_was_simulated() {
        let fleet =
            |tensor, pipeline, count| Fleet { spec: ReplicaSpec { tensor, pipeline }, count };
        for placement in [
            Placement::Together(fleet(2, 2, 1)),
            Placement::Together(fleet(2, 1, 2)),
            Placement::Apart { prefill: fleet(2, 1, 1), decode: fleet(1, 1, 2) },
        ] {
            for flags in ["", ALL, "--scheduler chunked --scheduler-config chunk_size=7"] {
                check(placement, flags);
            }
        }
    }
}
