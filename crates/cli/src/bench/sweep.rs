//! `stallfree bench sweep`: one run for each combination of settings. A sweep that was cut off goes on where it ended.

mod plan;
mod report;
mod server;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;
use stallfree_bench::StoredResult;
use stallfree_core::{Clock as _, WallClock};

use super::run::{execute, save};
use super::{BenchCommand, serve};
use crate::args::{self, Command};
use crate::console;
use crate::environment::Environment;
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
    /// Start this server for the runs, and stop it after them; runs are bench serve's then
    #[arg(long, value_name = "COMMAND")]
    pub(crate) serve_cmd: Option<String>,
    /// The sweep's name [default: the file's, or sweep]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where results are, and are looked for [default: results/sweeps/NAME]
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
    let folder = args.sweep_dir.clone();
    let folder = folder.unwrap_or_else(|| Path::new("results/sweeps").join(&plan.name));
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    fs::write(folder.join("command.txt"), console::command_line() + "\n")?;
    // A wrong flag shows before the first run, not after hours.
    for point in &points {
        point.parse()?;
    }
    run_missing(&plan, &points, &folder, environment)?;
    let results = points.iter().map(|point| Ok((point, stored(point, &folder)?)));
    report::write(&plan, &results.collect::<Result<Vec<_>>>()?, &folder)?;
    console::note(format_args!("Results: {}", folder.display()));
    Ok(())
}

fn run_missing(
    plan: &Plan,
    points: &[Point],
    folder: &Path,
    environment: &Environment,
) -> Result<()> {
    let missing: Vec<&Point> = points.iter().filter(|point| !point.is_done(folder)).collect();
    if missing.len() < points.len() {
        let done = points.len() - missing.len();
        console::note(format_args!("{done} of {} runs are there already", points.len()));
    }
    let Some(first) = missing.first() else { return Ok(()) };
    let mut server = match (&plan.serve_cmd, first.parse()?) {
        (Some(command), BenchCommand::Serve(args)) => Some(Server::start(command, &args, folder)?),
        _ => None,
    };
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
