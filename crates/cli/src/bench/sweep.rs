//! `stallfree bench sweep`: one run for each combination of settings. A sweep that was cut off goes on where it ended.

mod mode;
mod plan;
mod report;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum as _};
use serde_json::Value;
use stallfree_bench::metrics::ATTAINMENT_TARGET;
use stallfree_bench::{StoredResult, new_folder, stamp};
use stallfree_core::{Clock as _, WallClock};

use super::run::{execute, save};
use super::{BenchCommand, serve};
use crate::args::{self, Command};
use crate::console;
use crate::environment::Environment;
pub(crate) use mode::DeploymentMode;
pub(crate) use plan::Target;
use plan::{Plan, Point};
use server::Server;

/// The flags of `bench sweep`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SweepArgs {
    /// A file that describes the sweep; docs/benchmarking.md has an example
    #[arg(value_name = "FILE.toml")]
    pub(crate) plan: Option<PathBuf>,
    /// A flag and the values it is to have; may be repeated, and all combinations are run
    #[arg(long, value_name = "FLAG=V1,V2,..")]
    pub(crate) vary: Vec<String>,
    /// What each combination is given to [default: run]
    #[arg(long, value_enum)]
    pub(crate) target: Option<Target>,
    /// Ways to deploy the system that are compared, per GPU: simple, disaggregated. Flags of the
    /// deployment, such as --replica-spec, stand among the flags of every run
    #[arg(long, value_enum, value_name = "MODES", value_delimiter = ',')]
    pub(crate) modes: Vec<DeploymentMode>,
    /// Start this server for the runs, and stop it after them; runs are bench serve's then. With
    /// --modes, flags of the deployment are added
    #[arg(long, value_name = "COMMAND")]
    pub(crate) serve_cmd: Option<String>,
    /// Measure a mode on this server, which is there already; may be repeated
    #[arg(long, value_name = "MODE=URL", value_parser = server_of)]
    pub(crate) server: Vec<(DeploymentMode, String)>,
    /// Objective for the time to the first token, in ms
    #[arg(long, value_name = "MS", requires = "tpot_slo")]
    pub(crate) ttft_slo: Option<f64>,
    /// Objective for the mean time per further token, in ms
    #[arg(long, value_name = "MS", requires = "ttft_slo")]
    pub(crate) tpot_slo: Option<f64>,
    /// Share of requests that has to meet both, in %
    #[arg(long, value_name = "PERCENT", default_value_t = ATTAINMENT_TARGET * 100.0)]
    pub(crate) atta_target: f64,
    /// The sweep's name [default: the file's, or sweep]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where results are, and are looked for [default: results/sweeps/NAME, with --modes and the time]
    #[arg(long, value_name = "DIR")]
    pub(crate) sweep_dir: Option<PathBuf>,
    /// Print the command lines and run none
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Flags of every run
    #[arg(last = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// Runs what is missing, then tables and plots of all.
///
/// # Errors
/// A combination can't be run, or a file can't be written.
pub(crate) fn run(args: &SweepArgs, environment: &Environment) -> Result<()> {
    let plan = Plan::read(args)?;
    let points = plan.points()?;
    if args.dry_run {
        let lines: String = points.iter().map(|point| point.command_line() + "\n").collect();
        return Ok(console::print(lines)?);
    }
    let folder = folder(args, &plan)?;
    fs::write(folder.join("command.txt"), console::command_line() + "\n")?;
    // A wrong flag shows before the first run, not after hours.
    for point in &points {
        point.parse()?;
    }
    run_missing(&points, &folder, environment)?;
    let results = points.iter().map(|point| Ok((point, stored(point, &folder)?)));
    report::write(&plan, &results.collect::<Result<Vec<_>>>()?, args.atta_target / 100.0, &folder)?;
    console::note(format_args!("Results: {}", folder.display()));
    Ok(())
}

/// Makes the folder of the results, or finds that of a sweep that was cut off. With modes each sweep has a new one.
fn folder(args: &SweepArgs, plan: &Plan) -> Result<PathBuf> {
    let sweeps = Path::new("results/sweeps");
    let folder = match &args.sweep_dir {
        Some(folder) => folder.clone(),
        None if plan.modes.is_empty() => sweeps.join(&plan.name),
        None => {
            let name = format!("{}_{}", plan.name, stamp(SystemTime::now()));
            return Ok(new_folder(&sweeps.join(name))?);
        }
    };
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    Ok(folder)
}

fn run_missing(points: &[Point], folder: &Path, environment: &Environment) -> Result<()> {
    let missing: Vec<&Point> = points.iter().filter(|point| !point.is_done(folder)).collect();
    if missing.len() < points.len() {
        let done = points.len() - missing.len();
        console::note(format_args!("{done} of {} runs are there already", points.len()));
    }
    let mut server: Option<Server> = None;
    let clock = WallClock::start();
    for (index, point) in missing.iter().enumerate() {
        let left = match index {
            0 => String::new(),
            _ => {
                let each = clock.now().since_start() / index as u32;
                let left = each * (missing.len() - index) as u32;
                format!(", about {} left", console::duration(left))
            }
        };
        let what = format!("[{}/{}{left}] {}", index + 1, missing.len(), point.title());
        if server.as_ref().map(Server::command) != point.serve_cmd.as_deref() {
            // The port has to be free before the next one starts.
            drop(server.take());
            server = point.start_server(folder)?;
        }
        point.run(&folder.join(point.folder()), &what, environment)?;
        server.as_mut().map_or(Ok(()), Server::check)?;
    }
    Ok(())
}

fn stored(point: &Point, folder: &Path) -> Result<StoredResult> {
    let path = folder.join(point.folder()).join("result.json");
    StoredResult::read(&path)?.pop().with_context(|| format!("{} is empty", path.display()))
}

impl Point {
    /// Starts the server that it needs, if it does.
    fn start_server(&self, folder: &Path) -> Result<Option<Server>> {
        match (&self.serve_cmd, self.parse()?) {
            (Some(command), BenchCommand::Serve(args)) => {
                Server::start(command, &args, folder).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Runs it, and keeps everything in `folder`.
    fn run(&self, folder: &Path, what: &str, environment: &Environment) -> Result<()> {
        let command = self.command_line();
        match self.parse()? {
            BenchCommand::Run(args) => {
                let ran = execute(&args, environment, what)?;
                save(&args, &ran, folder, &command)
            }
            BenchCommand::Serve(args) => {
                let ran = serve::execute(&args, what)?;
                serve::save_folder(&args, &ran, folder, &command)
            }
            _ => bail!("`{command}` is neither a run nor a serve"),
        }
        .with_context(|| format!("`{command}` failed"))
    }

    /// Returns whether its result is there, made with the same command line.
    fn is_done(&self, folder: &Path) -> bool {
        let folder = folder.join(self.folder());
        let command = fs::read_to_string(folder.join("command.txt")).unwrap_or_default();
        let result = fs::read_to_string(folder.join("result.json")).unwrap_or_default();
        command.trim_end() == self.command_line() && serde_json::from_str::<Value>(&result).is_ok()
    }

    fn parse(&self) -> Result<BenchCommand> {
        let line = self.command_line();
        let argv = self.argv().into_iter().map(Into::into);
        let parsed = args::parse(argv).with_context(|| format!("`{line}`"))?;
        match parsed.cli.command {
            Command::Bench(bench) => Ok(bench.command),
            _ => bail!("`{line}` is no benchmark"),
        }
    }
}

/// Reads `mode=url`.
fn server_of(text: &str) -> Result<(DeploymentMode, String), String> {
    let (mode, url) = text.split_once('=').ok_or_else(|| format!("'{text}' is not MODE=URL"))?;
    Ok((DeploymentMode::from_str(mode, true)?, url.to_owned()))
}
