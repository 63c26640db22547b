//! `stallfree bench serve`: an OpenAI-compatible server over HTTP, with vLLM's flags, figures and fields.

mod client;
mod events;
mod prompts;
mod sender;

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use stallfree_bench::run::RunOutcome;
use stallfree_bench::{RequestRecord, RunFolder, Summary, TableHead, Workload, date, table};
use stallfree_tokenizer::Tokenizer;

use super::cpu_time;
use super::results::{About, ResultArgs, add_details, load_line, save};
use super::workload::{DatasetName, WorkloadArgs, count_tokens};
use crate::args::key_value;
use crate::console;
use client::Client;
use prompts::Prompts;
use sender::Template;

/// The flags of `bench serve`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServeBenchArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// For what.
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    /// How.
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Which figures.
    #[command(flatten)]
    pub(crate) results: ResultArgs,
    /// What is kept.
    #[command(flatten)]
    pub(crate) files: FileArgs,
}

/// Whom to ask.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// What to ask for
    #[arg(long, value_enum, default_value_t = Backend::Openai)]
    pub(crate) backend: Backend,
    /// The server's address, without a path [default: http://HOST:PORT]
    #[arg(long, value_name = "URL")]
    pub(crate) base_url: Option<String>,
    /// The server's host
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The server's port
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// The path [default: the backend's]
    #[arg(long, value_name = "PATH")]
    pub(crate) endpoint: Option<String>,
    /// The model [default: the first that the server lists]
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// What the server calls the model, where that differs
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// A tokenizer.json to make prompts with [default: ask the server's /tokenize]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Key to send
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Headers to send
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = key_value)]
    pub(crate) header: Vec<(String, String)>,
    /// Wait so long for the server to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) ready_check_timeout_sec: u64,
    /// Requests to send before those that count
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) num_warmups: usize,
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// /v1/completions
    #[value(alias = "vllm")]
    Openai,
    /// /v1/chat/completions
    OpenaiChat,
}

/// How tokens are drawn.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Go on beyond the end of the text [default: on, but for sharegpt]
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Sampling temperature [default: the server's]
    #[arg(long)]
    pub(crate) temperature: Option<f64>,
    /// Keep the most likely tokens that sum to this probability [default: the server's]
    #[arg(long)]
    pub(crate) top_p: Option<f64>,
    /// Keep this many most likely tokens [default: the server's]
    #[arg(long)]
    pub(crate) top_k: Option<i64>,
    /// Drop tokens less likely than this share of the most likely one [default: the server's]
    #[arg(long)]
    pub(crate) min_p: Option<f64>,
    /// Ask for logprobs of this many tokens
    #[arg(long, value_name = "N")]
    pub(crate) logprobs: Option<u32>,
    /// Fields to add to each request's body
    #[arg(long, value_name = "JSON")]
    pub(crate) extra_body: Option<String>,
}

/// What is kept.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Results")]
#[expect(clippy::struct_excessive_bools, reason = "one field is one flag of the command line")]
pub(crate) struct FileArgs {
    /// Write the figures as JSON
    #[arg(long)]
    pub(crate) save_result: bool,
    /// Write each request's figures, too
    #[arg(long)]
    pub(crate) save_detailed: bool,
    /// Add to the file instead of replacing it
    #[arg(long)]
    pub(crate) append_result: bool,
    /// The file's name [default: LABEL-RATEqps-concurrencyN-MODEL-TIME.json]
    #[arg(long, value_name = "NAME")]
    pub(crate) result_filename: Option<String>,
    /// Write a folder with everything about this run
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
}

/// Measures, prints, and saves what was asked for.
///
/// # Errors
/// The server does not answer, a file can't be read or written, or no request was completed.
pub(crate) fn run(args: &ServeBenchArgs) -> Result<()> {
    let command = console::command_line();
    let ran = execute(args, "Requests")?;
    if let Some(path) = &args.files.run_dir {
        save_folder(args, &ran, path, &command)?;
        console::note(format_args!("Results: {}", path.display()));
    }
    if args.files.save_result || args.files.save_detailed || args.files.append_result {
        let mut json = figures(args, &ran);
        if args.files.save_detailed {
            add_details(&mut json, &ran.outcome.requests);
        }
        let path = args.results.result_dir.clone().unwrap_or_default().join(file_name(args, &ran));
        save(&path, &json, args.files.append_result)?;
        console::note(format_args!("Results: {}", path.display()));
    }
    let head = TableHead {
        max_concurrency: ran.about.max_concurrency,
        request_rate: ran.about.request_rate,
        client_cpu_time: Some(ran.cpu_time),
        metrics: args.results.percentile_metrics.clone(),
    };
    console::print(table(&ran.summary, &head))?;
    if ran.summary.completed == 0 {
        let error = ran.outcome.requests.iter().find_map(RequestRecord::error);
        bail!("no request was completed: {}", error.unwrap_or("there were none"));
    }
    Ok(())
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    about: About,
    outcome: RunOutcome,
    summary: Summary,
    /// CPU seconds of this process while requests were under way.
    cpu_time: f64,
}

/// Makes the workload and sends it.
///
/// # Errors
/// The server does not answer, or a flag can't work.
pub(crate) fn execute(args: &ServeBenchArgs, what: &str) -> Result<Ran> {
    let runtime = runtime()?;
    let client = Client::new(&args.server)?;
    runtime.block_on(client.wait_until_ready(args.server.ready_check_timeout_sec))?;
    let model = match (&args.server.served_model_name, &args.server.model) {
        (Some(name), _) | (None, Some(name)) => name.clone(),
        (None, None) => runtime.block_on(client.first_model())?,
    };
    let tokenizer = args.server.tokenizer.as_ref().map(Tokenizer::from_file).transpose()?;
    let num_gpus = args.results.num_gpus.unwrap_or(1);
    let recipe = args.workload.resolve(&|text| count_tokens(tokenizer.as_ref(), text), num_gpus)?;
    let mut workload = recipe.generate()?;
    if let Some(seed) = args.workload.prompt_seed {
        workload.redraw_prompts(seed);
    }
    let prompts = runtime.block_on(Prompts::find(&client, &model, tokenizer))?;
    let template = Template::new(args, &model)?;
    let about = about(args, &workload, &model, recipe.arrivals.rate());
    let summary_config = args.results.summary_config(about.num_gpus)?;
    let sender = sender::Sender { runtime: &runtime, client, template, prompts };
    sender.warm_up(&workload, args.server.num_warmups)?;
    let before = cpu_time();
    let requests = sender.send(&workload, about.max_concurrency, what, args.results.no_progress)?;
    let cpu_time = (cpu_time() - before).as_secs_f64();
    let summary = Summary::new(&requests, summary_config);
    Ok(Ran { about, outcome: RunOutcome { requests, ..RunOutcome::default() }, summary, cpu_time })
}

/// Returns whether the server answers now.
///
/// # Errors
/// A flag can't work.
pub(crate) fn is_ready(args: &ServeBenchArgs) -> Result<bool> {
    Ok(runtime()?.block_on(Client::new(&args.server)?.is_ready()))
}

fn about(
    args: &ServeBenchArgs,
    workload: &Workload,
    model: &str,
    request_rate: Option<f64>,
) -> About {
    About {
        backend: args.server.backend.name().to_owned(),
        model: args.server.model.as_deref().unwrap_or(model).to_owned(),
        tokenizer: args.server.tokenizer.as_ref().map(|path| path.display().to_string()),
        dataset: (workload.name.clone(), workload.is_synthetic),
        num_prompts: workload.items.len(),
        request_rate,
        burstiness: args.workload.arrivals.burstiness,
        max_concurrency: args.workload.arrivals.max_concurrency,
        num_gpus: args.results.num_gpus.unwrap_or(1),
        deployment_mode: args.results.deployment_mode("simple"),
    }
}

fn figures(args: &ServeBenchArgs, ran: &Ran) -> Map<String, Value> {
    let mut json = args.results.json(&ran.about, &ran.summary);
    json.insert("client_cpu_time".to_owned(), json!(ran.cpu_time));
    json
}

/// Keeps a run in a folder.
///
/// # Errors
/// A file can't be written.
pub(crate) fn save_folder(
    args: &ServeBenchArgs,
    ran: &Ran,
    path: &std::path::Path,
    command: &str,
) -> Result<()> {
    let config = json!({
        "stallfree": env!("CARGO_PKG_VERSION"),
        "platform": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "server": args.server.url(),
        "seed": args.workload.seed,
    });
    let folder = RunFolder::create(path)?;
    folder.write_origin(command, config.as_object().unwrap_or(&Map::new()))?;
    folder.write_records(&ran.outcome)?;
    let subtitle =
        format!("{} at {}\n{}", ran.about.model, args.server.url(), load_line(&ran.about));
    folder.write_plots(&ran.outcome, &ran.summary, &subtitle)?;
    let mut json = figures(args, ran);
    add_details(&mut json, &ran.outcome.requests);
    Ok(folder.write_result(&json)?)
}

/// vLLM's name of a result file.
fn file_name(args: &ServeBenchArgs, ran: &Ran) -> String {
    if let Some(name) = &args.files.result_filename {
        return name.clone();
    }
    let label = args.results.label.as_deref().unwrap_or(args.server.backend.name());
    let rate = ran.about.request_rate.map_or_else(|| "replay".to_owned(), |rate| rate.to_string());
    let concurrency =
        ran.about.max_concurrency.map_or_else(String::new, |n| format!("-concurrency{n}"));
    let model = ran.about.model.rsplit('/').next().unwrap_or_default();
    format!("{label}-{rate}qps{concurrency}-{model}-{}.json", date(SystemTime::now()))
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::OpenaiChat => "openai-chat",
        }
    }

    const fn endpoint(self) -> &'static str {
        match self {
            Self::Openai => "/v1/completions",
            Self::OpenaiChat => "/v1/chat/completions",
        }
    }
}

impl ServerArgs {
    /// Returns the address, without a path.
    pub(crate) fn url(&self) -> String {
        let url = self.base_url.clone();
        let url = url.unwrap_or_else(|| format!("http://{}:{}", self.host, self.port));
        url.trim_end_matches('/').to_owned()
    }

    fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or_else(|| self.backend.endpoint())
    }
}

impl SamplingArgs {
    /// Returns whether sequences are to go on beyond the end of the text.
    fn ignores_eos(&self, dataset: DatasetName) -> bool {
        self.ignore_eos || dataset != DatasetName::Sharegpt
    }
}

/// Requests that are due must not queue behind thousands of streams that have something to read: few events are taken at a time, so
/// that queues stay short, and what comes from the sender's thread is looked for often.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("stallfree-bench")
        .max_io_events_per_tick(64)
        .global_queue_interval(8)
        .enable_all()
        .build()
        .context("the client's threads can't be started")
}
