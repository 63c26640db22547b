//! What the user said: the command line as typed, before anything is looked up or decided.
//!
//! Knows flags and their spelling, not what they lead to; [`crate::config`] resolves them.

mod deployment;
mod doctor;
mod instance;
mod key_value;
mod number;
mod serve;
mod unknown;
mod vllm;

use std::ffi::OsString;

use clap::builder::Styles;
use clap::builder::styling::{AnsiColor, Style};
use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::calibrate::CalibrateArgs;
use crate::plan::PlanArgs;

pub(crate) use deployment::{
    DecodeArgs, DeploymentArgs, Mode, Overrides, PrefillArgs, ReplicaSpec,
};
pub(crate) use doctor::{DoctorArgs, LibraryName};
pub(crate) use instance::{InstanceArgs, KvTransport};
pub(crate) use key_value::key_value;
pub(crate) use number::{Auto, positive};
pub(crate) use serve::{
    CacheArgs, DeviceKind, Dtype, EngineArgs, Kernels, LoadFormat, ModelArgs, SchedulerArgs,
    SchedulingPolicy, ServeArgs, ServerArgs,
};

/// A fast LLM server in which the scheduler is yours to choose.
#[derive(Debug, Parser)]
#[command(name = "stallfree", version, styles = STYLES, max_term_width = 100)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model to OpenAI clients over HTTP
    Serve(Box<ServeArgs>),
    /// Compute for a server, in a process of its own, on its machine or another
    Instance(Box<InstanceArgs>),
    /// Chat with a model in the terminal
    Chat(Box<ChatArgs>),
    /// Measure a server or an engine: latencies, stalls, capacity
    Bench(Box<BenchArgs>),
    /// Find out which instances to make of some GPUs, by simulation
    Plan(Box<PlanArgs>),
    /// Measure steps on this machine, and write what --device sim:FILE predicts them from
    Calibrate(Box<CalibrateArgs>),
    /// List the scheduling policies, their papers and their settings
    Schedulers,
    /// List the supported architectures and the models cached on this machine
    Models,
    /// Say what this machine has and what would run on it, and bring missing CUDA libraries
    Doctor(DoctorArgs),
    /// Print the version
    Version,
}

/// The flags of `chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Chat with the server at this address instead of loading a model here
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "model_flag"])]
    pub(crate) url: Option<String>,
    /// API key of that server
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, requires = "url")]
    pub(crate) api_key: Option<String>,
    /// Start the conversation with this system message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens of an answer [default: up to the model's length]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// Sampling temperature [default: the model's]
    #[arg(long, value_parser = number::temperature)]
    pub(crate) temperature: Option<f32>,
    /// The model, for a chat without a server.
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Where to compute
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DeviceKind,
    /// CPU threads to compute with [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// A parsed command line.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// What was said.
    pub(crate) cli: Cli,
    /// One line for each flag that was taken but changes nothing here.
    pub(crate) notices: Vec<String>,
}

/// Parses a command line, program name first.
///
/// Flags that vLLM has and stallfree doesn't are answered by name: those that can't change an answer are dropped with a
/// notice, the others are refused.
///
/// # Errors
/// clap's error, to be printed with its own exit status; `--help` and `--version` are errors too.
pub(crate) fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Parsed, clap::Error> {
    let known = vllm::answer(argv.into_iter().map(dashes))?;
    let cli = Cli::try_parse_from(known.argv).map_err(unknown::explain)?;
    Ok(Parsed { cli, notices: known.notices })
}

/// Parses a `serve` command line that the program itself wrote.
///
/// # Errors
/// clap's.
pub(crate) fn serve_args(argv: &[&str]) -> Result<ServeArgs, clap::Error> {
    match Cli::try_parse_from(argv)?.command {
        Command::Serve(args) => Ok(*args),
        _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand)),
    }
}

/// Respells `--flag_name=value` as `--flag-name=value`.
fn dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|text| text.starts_with("--")) else { return arg };
    let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
    format!("{}{value}", name.replace('_', "-")).into()
}

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

#[cfg(test)]
mod tests;
