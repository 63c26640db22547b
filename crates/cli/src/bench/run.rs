//! `stallfree bench run`: an engine in this process, without HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use stallfree_bench::run::{
    Detail, Progress, Recorder, RunConfig, RunOutcome, in_real_time, in_virtual_time,
};
use stallfree_bench::{RunFolder, Summary, TableHead, Workload, stamp, table};
use stallfree_core::{Clock, WallClock};
use stallfree_engine::ThreadedEngine;

use super::progress::RunProgress;
use super::results::{About, ResultArgs, add_details, load_line};
use super::workload::{WorkloadArgs, count_tokens};
use crate::args::EngineArgs;
use crate::config::InstanceConfig;
use crate::environment::Environment;
use crate::instance::{self, Built};
use crate::{console, model_source};

/// The flags of `bench run`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// What to measure.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
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
    let path = args.mode.run_dir.clone().unwrap_or_else(|| {
        let name = format!("{}_{}", args.results.deployment_mode, stamp(SystemTime::now()));
        args.results.result_dir().join(&ran.about.dataset.0).join(name)
    });
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
        anyhow::bail!("no request was completed: {}", errors.unwrap_or("there were none"));
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
    let cache = &args.engine.cache;
    for (name, value) in [
        ("num_preemptions", json!(ran.outcome.stats.num_preemptions)),
        ("tensor_parallel_size", json!(cache.tensor_parallel_size)),
        ("pipeline_parallel_size", json!(cache.pipeline_parallel_size)),
    ] {
        json.insert(name.to_owned(), value);
    }
    if args.mode.records != Records::None {
        add_details(&mut json, &ran.outcome.requests);
    }
    Ok(folder.write_result(&json)?)
}

/// Says in a line what ran.
fn subtitle(ran: &Ran) -> String {
    let text = |name: &str| ran.config.get(name).and_then(Value::as_str).unwrap_or_default();
    let load = load_line(&ran.about);
    let model = ran.about.model.rsplit('/').next().unwrap_or_default();
    format!("{model}, {}, {} scheduler\n{load}", text("device"), text("scheduler"))
}

/// Makes the workload and runs it.
///
/// # Errors
/// The flags, the model or the machine don't allow it.
pub(crate) fn execute(args: &RunArgs, environment: &Environment, what: &str) -> Result<Ran> {
    let config = InstanceConfig::resolve(&args.engine, environment)?;
    let found = model_source::find(&args.engine.model, config.weights, environment)?;
    let tokenizer = match args.workload.has_texts() {
        true => Some(instance::open_tokenizer(&found.path, &config)?),
        false => None,
    };
    let mut recipe = args.workload.resolve(&|text| count_tokens(tokenizer.as_ref(), text))?;
    let detail = match args.mode.records {
        Records::None | Records::Requests => Detail::Requests,
        Records::Batches => Detail::Batches,
        Records::Chunks => Detail::Chunks,
    };
    let recorder = Recorder::new(detail);
    let built = instance::engine(&found.path, &config, recorder.observer())?;
    // Longer requests would be refused one by one, and a run without its longest requests misleads.
    let longest = built.scheduler.max_model_len;
    recipe.max_total_len = Some(recipe.max_total_len.map_or(longest, |limit| limit.min(longest)));
    let mut workload = recipe.generate()?;
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
        num_gpus: args.results.num_gpus.unwrap_or(config.parallel.world_size()),
    };
    let summary_config = args.results.summary_config(about.num_gpus)?;
    let is_virtual = match args.mode.clock {
        ClockKind::Auto => config.device.is_simulated(),
        ClockKind::Virtual => true,
        ClockKind::Real => false,
    };
    let clock = if is_virtual { "virtual" } else { "real" };
    let settings = settings(args, &built, &config, clock);
    let run =
        RunConfig { max_concurrency: about.max_concurrency, ..RunConfig::exact(built.vocab_size) };
    let mut bar = RunProgress::start(what, workload.items.len(), args.results.no_progress);
    let mut show = |progress: Progress| {
        bar.show(progress.done, progress.total, || format!("{:.1} s", progress.now));
    };
    let outcome = if is_virtual {
        in_virtual_time(built.engine, &workload, &run, &recorder, &mut show)
    } else {
        real_run(built, &workload, &run, &recorder, &mut show)?
    };
    drop(bar);
    let summary = Summary::new(&outcome.requests, summary_config);
    Ok(Ran { about, outcome, summary, config: settings })
}

fn real_run(
    built: Built,
    workload: &Workload,
    run: &RunConfig,
    recorder: &Recorder,
    show: &mut dyn FnMut(Progress),
) -> Result<RunOutcome> {
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    // Every request may wait: the sender decides how many there are.
    let engine = ThreadedEngine::spawn(built.engine, clock, usize::MAX)
        .context("the engine's thread can't be started")?;
    Ok(in_real_time(&engine, workload, run, recorder, show))
}

fn settings(
    args: &RunArgs,
    built: &Built,
    config: &InstanceConfig,
    clock: &str,
) -> Map<String, Value> {
    let limits = &built.scheduler;
    let fields = [
        ("stallfree", json!(env!("CARGO_PKG_VERSION"))),
        ("platform", json!(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))),
        ("device", json!(built.worker.device)),
        ("clock", json!(clock)),
        ("scheduler", json!(config.policy)),
        ("scheduler_config", json!(limits.settings)),
        ("max_num_seqs", json!(limits.max_num_seqs)),
        ("max_num_batched_tokens", json!(limits.max_num_batched_tokens)),
        ("long_prefill_token_threshold", json!(limits.long_prefill_token_threshold)),
        ("max_model_len", json!(limits.max_model_len)),
        ("enable_prefix_caching", json!(limits.enable_prefix_caching)),
        ("num_gpu_blocks", json!(built.worker.kv.num_blocks)),
        ("block_size", json!(built.worker.kv.block_size)),
        ("tensor_parallel_size", json!(args.engine.cache.tensor_parallel_size)),
        ("pipeline_parallel_size", json!(args.engine.cache.pipeline_parallel_size)),
        ("simulation", config.device.simulation()),
        ("dataset", json!(format!("{:?}", args.workload.dataset()).to_lowercase())),
        ("seed", json!(args.workload.seed)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
