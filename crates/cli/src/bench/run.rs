//! `stallfree bench run`: engines in this process, without HTTP.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use stallfree_bench::run::{
    Detail, Progress, Recorder, RunConfig, RunOutcome, in_real_time, in_virtual_time,
};
use stallfree_bench::{RunFolder, Summary, TableHead, new_folder, stamp, table};
use stallfree_cluster::Role;

use super::progress::RunProgress;
use super::results::{About, ResultArgs, add_details, load_line};
use super::workload::{WorkloadArgs, count_tokens};
use crate::args::{DeploymentArgs, EngineArgs};
use crate::config::{DeploymentConfig, InstanceConfig};
use crate::environment::Environment;
use crate::instance::{self, Member};
use crate::{console, model_source};

/// The flags of `bench run`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// What to measure.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// How many of them.
    #[command(flatten)]
    pub(crate) deployment: DeploymentArgs,
    /// With what.
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    /// Which figures.
    #[command(flatten)]
    pub(crate) results: ResultArgs,
    /// How it runs.
    #[command(flatten)]
    pub(crate) mode: RunModeArgs,
}

/// How a run goes, and what is kept of it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct RunModeArgs {
    /// Which time counts
    #[arg(long, value_enum, default_value_t = ClockKind::Auto)]
    pub(crate) clock: ClockKind,
    /// What is kept of each batch
    #[arg(long, value_enum, default_value_t = Records::Batches)]
    pub(crate) records: Records,
    /// The folder of this run [default: RESULT_DIR/DATASET/MODE_TIMESTAMP]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Write replica_0/plots/METRIC.csv too, as Sarathi's artifact does
    #[arg(long)]
    pub(crate) replica_plots: bool,
}

/// Which time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClockKind {
    /// Virtual for a simulated device, else real
    Auto,
    /// It jumps from event to event
    Virtual,
    /// The wall clock
    Real,
}

/// What is kept of each batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Records {
    /// Nothing, and no request's tokens either: a day of traffic has millions
    None,
    /// Nothing
    Requests,
    /// Its figures
    Batches,
    /// Its figures and chunks
    Chunks,
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// What it was about.
    pub(crate) about: About,
    /// Its records.
    pub(crate) outcome: RunOutcome,
    /// Its figures.
    pub(crate) summary: Summary,
    /// How it was set up.
    pub(crate) config: Map<String, Value>,
}

/// Runs, prints and saves.
///
/// # Errors
/// The flags, the model or the machine don't allow it, or nothing was completed.
pub(crate) fn run(args: &RunArgs, environment: &Environment) -> Result<()> {
    let command = console::command_line();
    let ran = execute(args, environment, "Requests")?;
    let path = match &args.mode.run_dir {
        Some(path) => path.clone(),
        None => {
            let name = format!("{}_{}", ran.about.deployment_mode, stamp(SystemTime::now()));
            new_folder(&args.results.result_dir().join(&ran.about.dataset.0).join(name))?
        }
    };
    save(args, &ran, &path, &command)?;
    let head = TableHead {
        max_concurrency: ran.about.max_concurrency,
        request_rate: ran.about.request_rate,
        client_cpu_time: None,
        metrics: args.results.percentile_metrics.clone(),
    };
    console::print(table(&ran.summary, &head))?;
    console::note(format_args!("Results: {}", path.display()));
    if ran.summary.completed == 0 {
        let errors = ran.outcome.requests.iter().find_map(|request| request.error());
        bail!("no request was completed: {}", errors.unwrap_or("there were none"));
    }
    Ok(())
}

/// Keeps a run in a folder.
///
/// # Errors
/// A file can't be written.
pub(crate) fn save(args: &RunArgs, ran: &Ran, path: &std::path::Path, command: &str) -> Result<()> {
    let folder = RunFolder::create(path)?;
    folder.write_origin(command, &ran.config)?;
    folder.write_records(&ran.outcome)?;
    folder.write_plots(&ran.outcome, &ran.summary, &subtitle(ran))?;
    if args.mode.replica_plots {
        folder.write_replica_plots(&ran.outcome)?;
    }
    let mut json = args.results.json(&ran.about, &ran.summary);
    json.insert("num_preemptions".to_owned(), json!(ran.outcome.stats.num_preemptions));
    if let Some(Value::Object(deployment)) = ran.config.get("deployment") {
        json.extend(deployment.clone());
    }
    if args.mode.records != Records::None {
        add_details(&mut json, &ran.outcome.requests);
    }
    Ok(folder.write_result(&json)?)
}

/// Says in two lines what ran.
fn subtitle(ran: &Ran) -> String {
    let text = |of: &Value, name: &str| {
        of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let load = load_line(&ran.about);
    let model = ran.about.model.rsplit('/').next().unwrap_or_default();
    let what = match ran.config.get("instances").and_then(Value::as_array) {
        Some(instances) => {
            let one = |of: &Value| format!("{} on {}", text(of, "role"), text(of, "device"));
            instances.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        None => {
            let config = json!(ran.config);
            format!("{}, {} scheduler", text(&config, "device"), text(&config, "scheduler"))
        }
    };
    format!("{model}, {what}\n{load}")
}

/// Makes the workload and runs it.
///
/// # Errors
/// The flags, the model or the machine don't allow it.
pub(crate) fn execute(args: &RunArgs, environment: &Environment, what: &str) -> Result<Ran> {
    let deployment = DeploymentConfig::resolve(&args.engine, &args.deployment, environment)?;
    if deployment.gate.is_some() {
        bail!("--instances-listen is for `stallfree serve`, which `bench serve` measures");
    }
    let (_, first) = deployment.instances.first().context("a deployment needs an instance")?;
    let found = model_source::find(&args.engine.model, first.weights, environment)?;
    let tokenizer = match args.workload.has_texts() {
        true => Some(instance::open_tokenizer(&found.path, first)?),
        false => None,
    };
    let num_gpus = args.results.num_gpus.unwrap_or(deployment.num_gpus());
    let mut recipe =
        args.workload.resolve(&|text| count_tokens(tokenizer.as_ref(), text), num_gpus)?;
    let detail = match args.mode.records {
        Records::None | Records::Requests => Detail::Requests,
        Records::Batches => Detail::Batches,
        Records::Chunks => Detail::Chunks,
    };
    let recorder = Recorder::new(detail);
    let mut observe = |instance, _: &_| recorder.observer_of(instance);
    let members = instance::members(&found.path, &deployment, &mut observe)?;
    // Longer requests would be refused one by one, and a run without its longest requests misleads.
    let longest = members.iter().map(|member| member.built.scheduler.max_model_len).min();
    let longest = longest.unwrap_or(usize::MAX);
    let is_users = recipe.max_total_len.is_some_and(|limit| limit <= longest);
    recipe.max_total_len = Some(recipe.max_total_len.map_or(longest, |limit| limit.min(longest)));
    let mut workload = recipe.generate()?;
    if workload.num_cut > 0 && !is_users {
        let (cut, all) = (workload.num_cut, workload.items.len());
        console::note(format_args!(
            "{cut} of {all} requests were cut to {longest} tokens, prompt and output together: the model's or --max-model-len's limit"
        ));
    }
    if let Some(slo) = args.results.slo() {
        workload.promise(slo.of_request());
    }
    if let Some(seed) = args.workload.prompt_seed {
        workload.redraw_prompts(seed);
    }
    let about = About {
        backend: "engine".to_owned(),
        model: found.name().to_owned(),
        tokenizer: None,
        dataset: (workload.name.clone(), workload.is_synthetic),
        num_prompts: workload.items.len(),
        request_rate: recipe.arrivals.rate(),
        burstiness: args.workload.arrivals.burstiness,
        max_concurrency: args.workload.arrivals.max_concurrency,
        num_gpus,
        deployment_mode: args.results.deployment_mode(mode(&deployment)),
    };
    let summary_config = args.results.summary_config(about.num_gpus)?;
    let is_virtual = match args.mode.clock {
        ClockKind::Auto => first.device.is_simulated(),
        ClockKind::Virtual => true,
        ClockKind::Real => false,
    };
    let clock = if is_virtual { "virtual" } else { "real" };
    let settings = settings(args, &members, &deployment, clock);
    let vocab_size = members.first().map_or(0, |member| member.built.vocab_size);
    let run = RunConfig { max_concurrency: about.max_concurrency, ..RunConfig::exact(vocab_size) };
    let mut bar = RunProgress::start(what, workload.items.len(), args.results.no_progress);
    let mut show = |progress: Progress| {
        bar.show(progress.done, progress.total, || format!("{:.1} s", progress.now));
    };
    let outcome = if is_virtual {
        let mut engines = instance::in_virtual_time(members, &deployment.dispatch)?;
        in_virtual_time(&mut *engines, &workload, &run, &recorder, &mut show)
    } else {
        // Every request may wait: the sender decides how many there are.
        let engines = instance::on_threads(members, None, &deployment, usize::MAX)?;
        in_real_time(&*engines, &workload, &run, &recorder, &mut show)
    };
    drop(bar);
    let summary = Summary::new(&outcome.requests, summary_config);
    Ok(Ran { about, outcome, summary, config: settings })
}

/// Says how the instances of a deployment work together.
fn mode(deployment: &DeploymentConfig) -> &'static str {
    if deployment.is_disaggregated() { "disaggregated" } else { "simple" }
}

/// Returns what results say of a deployment, in the fields of vLLM's NIXL benchmark.
fn described(deployment: &DeploymentConfig) -> Map<String, Value> {
    let mut json = Map::new();
    let mut put = |prefix: &str, count: &str, role| {
        let Some(first) = deployment.with_role(role).next() else { return };
        json.insert(count.to_owned(), json!(deployment.with_role(role).count()));
        let sizes = [("tensor", first.parallel.tensor), ("pipeline", first.parallel.pipeline)];
        for (name, size) in sizes {
            json.insert(format!("{prefix}{name}_parallel_size"), json!(size));
        }
    };
    put("", "num_instances", Role::Mixed);
    put("prefill_", "num_prefill_instances", Role::Prefill);
    put("decode_", "num_decode_instances", Role::Decode);
    json
}

fn settings(
    args: &RunArgs,
    members: &[Member],
    deployment: &DeploymentConfig,
    clock: &str,
) -> Map<String, Value> {
    let simulation = deployment.instances.first().map(|(_, config)| config.device.simulation());
    let fields = [
        ("stallfree", json!(env!("CARGO_PKG_VERSION"))),
        ("platform", json!(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))),
        ("clock", json!(clock)),
        ("simulation", json!(simulation)),
        ("deployment", json!(described(deployment))),
        ("dataset", json!(format!("{:?}", args.workload.dataset()).to_lowercase())),
        ("seed", json!(args.workload.seed)),
    ];
    let mut json: Map<String, Value> =
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let all: Vec<Map<String, Value>> = members
        .iter()
        .zip(&deployment.instances)
        .map(|(member, (_, config))| instance_settings(member, config))
        .collect();
    if all.len() > 1 {
        json.insert("dispatch_policy".to_owned(), json!(deployment.dispatch.policy));
        json.insert("instances".to_owned(), json!(all));
    }
    // What most plots and readers want to know is that of the first.
    json.extend(all.into_iter().next().unwrap_or_default());
    json
}

fn instance_settings(member: &Member, config: &InstanceConfig) -> Map<String, Value> {
    let (built, limits) = (&member.built, &member.built.scheduler);
    let fields = [
        ("role", json!(member.role.to_string())),
        ("device", json!(built.worker.device)),
        ("scheduler", json!(config.policy)),
        ("scheduler_config", json!(limits.settings)),
        ("max_num_seqs", json!(limits.max_num_seqs)),
        ("max_num_batched_tokens", json!(limits.max_num_batched_tokens)),
        ("long_prefill_token_threshold", json!(limits.long_prefill_token_threshold)),
        ("max_model_len", json!(limits.max_model_len)),
        ("enable_prefix_caching", json!(limits.enable_prefix_caching)),
        ("num_gpu_blocks", json!(built.worker.kv.num_blocks)),
        ("block_size", json!(built.worker.kv.block_size)),
        ("tensor_parallel_size", json!(config.parallel.tensor)),
        ("pipeline_parallel_size", json!(config.parallel.pipeline)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
