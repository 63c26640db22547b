//! Where experiments are made: runs, and what is kept of them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use serde_json::Value;
use stallfree_bench::RunFolder;
use stallfree_bench::plot::{self, Figure};

use super::table::Table;
use super::{ExperimentArgs, kept};
use crate::args::{Cli, Command};
use crate::bench::BenchCommand;
use crate::bench::run::{Ran, execute};
use crate::console;
use crate::environment::Environment;

/// A model on a group of GPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deployment {
    pub(super) model: &'static str,
    pub(super) device: &'static str,
    pub(super) tensor: usize,
    pub(super) pipeline: usize,
}

/// A policy and its limits.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// What tables and charts call it.
    pub(super) label: String,
    /// Its name in the registry.
    pub(super) name: &'static str,
    pub(super) max_num_seqs: usize,
    pub(super) max_num_batched_tokens: usize,
}

/// What requests there are.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) lengths: LengthsFrom,
    pub(super) num_prompts: usize,
    pub(super) arrivals: Arriving,
    /// The most tokens of a request.
    pub(super) max_model_len: usize,
}

/// Where lengths come from.
#[derive(Clone, Debug)]
pub(super) enum LengthsFrom {
    /// Conversations, or the trace that the user gave.
    Sharegpt,
    /// Papers and their summaries, or the trace that the user gave.
    Arxiv,
    /// The same for all: prompt and output.
    Fixed(usize, usize),
    /// A file, with times.
    File(PathBuf),
}

/// When requests come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arriving {
    /// All at the start.
    AtOnce,
    /// Poisson with clipped intervals, as the paper's artifact draws them; requests a second.
    Poisson(f64),
    /// As the file says.
    AsRecorded,
}

/// Runs what an experiment asks for, and keeps what comes of it.
pub(super) struct Lab<'a> {
    args: &'a ExperimentArgs,
    environment: &'a Environment,
    output: PathBuf,
    num_runs: usize,
    /// What the last run's lengths were.
    dataset: String,
    /// What the last run on a real device ran on, as its worker calls it.
    machine: Option<String>,
    /// Names that could be chosen.
    names: RefCell<BTreeSet<String>>,
}

impl Policy {
    pub(super) fn new(
        name: &'static str,
        max_num_seqs: usize,
        max_num_batched_tokens: usize,
    ) -> Self {
        Self { label: name.to_owned(), name, max_num_seqs, max_num_batched_tokens }
    }

    pub(super) fn called(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
}

impl<'a> Lab<'a> {
    pub(super) fn open(
        name: &str,
        args: &'a ExperimentArgs,
        environment: &'a Environment,
    ) -> Result<Self> {
        let default = || Path::new("results/experiments").join(name);
        let output = args.output.clone().unwrap_or_else(default);
        fs::create_dir_all(&output).with_context(|| format!("{}", output.display()))?;
        let lab = Self {
            args,
            environment,
            output,
            num_runs: 0,
            dataset: "fixed lengths".to_owned(),
            machine: None,
            names: RefCell::default(),
        };
        lab.write("command.txt", &(console::command_line() + "\n"))?;
        Ok(lab)
    }

    /// Returns the folder of the results.
    pub(super) fn output(&self) -> &Path {
        &self.output
    }

    /// Returns those of an experiment's deployments that are to be run: one, if the user's takes its place.
    pub(super) fn cases<T>(&self, cases: &'static [T]) -> &'static [T] {
        if self.args.model.is_some() { &cases[..cases.len().min(1)] } else { cases }
    }

    /// Returns those of a kind that the user wants, each with its name: all, unless some of them were named. On the command line
    /// `a, b c` is called `a-b-c`.
    pub(super) fn chosen<T, const N: usize>(
        &self,
        all: [T; N],
        name: impl Fn(&T) -> &str,
    ) -> Vec<T> {
        let only = &self.args.only;
        let typed = |one: &T| name(one).replace(", ", "-").replace(' ', "-");
        let is_named = |one: &T| only.contains(&typed(one));
        self.names.borrow_mut().extend(all.iter().map(typed));
        let any = all.iter().any(is_named);
        all.into_iter().filter(|one| !any || is_named(one)).collect()
    }

    /// Returns the rates to try: the user's, or those of the paper.
    pub(super) fn rates(&self, papers: &[f64]) -> Vec<f64> {
        if self.args.rates.is_empty() { papers.to_vec() } else { self.args.rates.clone() }
    }

    /// Returns whether time is spent on a real device.
    pub(super) fn is_real(&self, deployment: &Deployment) -> bool {
        !self.device(deployment).starts_with("sim:")
    }

    fn device<'b>(&'b self, deployment: &'b Deployment) -> &'b str {
        self.args.device.as_deref().unwrap_or(deployment.device)
    }

    /// Returns what to call a deployment.
    pub(super) fn title(&self, papers: &str) -> String {
        self.args.model.clone().unwrap_or_else(|| papers.to_owned())
    }

    /// Returns in words what the last run's lengths were.
    pub(super) fn dataset(&self) -> &str {
        &self.dataset
    }

    /// Returns in a line how the results came about.
    pub(super) fn about(&self, deployment: &Deployment) -> String {
        let device = self.device(deployment);
        let model = self.args.model.as_deref().unwrap_or(deployment.model);
        if let Some(machine) = &self.machine {
            return format!("{model}, {machine}; {}", self.dataset);
        }
        let (tensor, pipeline) = self.parallel(deployment);
        format!("{model}, TP {tensor}, PP {pipeline}, {device}; {}", self.dataset)
    }

    fn parallel(&self, deployment: &Deployment) -> (usize, usize) {
        let tensor = self.args.tensor_parallel_size.unwrap_or(deployment.tensor);
        (tensor, self.args.pipeline_parallel_size.unwrap_or(deployment.pipeline))
    }

    /// Runs one policy under one load, and keeps its records in `runs/`, in the columns of Sarathi-Serve's artifact.
    pub(super) fn run(
        &mut self,
        deployment: &Deployment,
        policy: &Policy,
        load: &Load,
    ) -> Result<Ran> {
        let (ran, line) = self.execute(deployment, policy, load, "chunks")?;
        let (tensor, pipeline) = self.parallel(deployment);
        let Policy { name, max_num_seqs, max_num_batched_tokens, .. } = policy;
        let (model, dataset) = (&ran.about.model, &ran.about.dataset.0);
        let when = match load.arrivals {
            Arriving::AtOnce => "at-once".to_owned(),
            Arriving::AsRecorded => "as-recorded".to_owned(),
            Arriving::Poisson(rate) => format!("qps-{rate}"),
        };
        let path = self
            .output
            .join(format!("runs/{model}-tp{tensor}-pp{pipeline}"))
            .join(format!("{name}-{max_num_seqs}-{max_num_batched_tokens}"))
            .join(format!("{dataset}-{when}"));
        let folder = RunFolder::create(&path)?;
        folder.write_origin(&line, &ran.config)?;
        folder.write_replica_plots(&ran.outcome)?;
        Ok(ran)
    }

    /// Runs one policy under one load for its figures alone.
    pub(super) fn try_out(
        &mut self,
        deployment: &Deployment,
        policy: &Policy,
        load: &Load,
    ) -> Result<Ran> {
        Ok(self.execute(deployment, policy, load, "requests")?.0)
    }

    /// Runs one policy under one load; returns the command line too.
    fn execute(
        &mut self,
        deployment: &Deployment,
        policy: &Policy,
        load: &Load,
        records: &str,
    ) -> Result<(Ran, String)> {
        let mut argv = self.command(deployment, policy, load);
        argv.push(format!("--records={records}"));
        let (ran, line) = self.bench_run(&argv, self.is_real(deployment))?;
        if let Some(error) = ran.outcome.requests.iter().find_map(|request| request.error()) {
            bail!("`{line}`: a request failed: {error}");
        }
        if self.is_real(deployment) {
            self.machine = ran.config.get("device").and_then(Value::as_str).map(str::to_owned);
        }
        let (name, is_synthetic) = &ran.about.dataset;
        match load.lengths {
            LengthsFrom::Sharegpt | LengthsFrom::Arxiv if *is_synthetic => {
                self.dataset = format!("{name} lengths");
            }
            LengthsFrom::Sharegpt | LengthsFrom::Arxiv => {
                self.dataset = format!("lengths of the trace {name}");
            }
            LengthsFrom::Fixed(..) | LengthsFrom::File(_) => {}
        }
        Ok((ran, line))
    }

    /// Runs a command line of `bench run`; returns it too, as text. What took real time is kept.
    pub(super) fn bench_run(&mut self, argv: &[String], is_real: bool) -> Result<(Ran, String)> {
        let line = console::quoted(argv.iter().cloned());
        let Command::Bench(bench) = Cli::try_parse_from(argv)?.command else {
            bail!("`{line}` is not a bench run");
        };
        let BenchCommand::Run(args) = bench.command else {
            bail!("`{line}` is not a bench run");
        };
        if self.num_runs == 0 {
            self.check_only()?;
        }
        self.num_runs += 1;
        let path = self.output.join(format!("kept/{}.json", self.num_runs));
        if let Some(ran) = kept::find(&path, &line, &args).transpose().filter(|_| self.args.resume)
        {
            return Ok((ran?, line));
        }
        let ran = execute(&args, self.environment, &format!("run {}", self.num_runs))?;
        if is_real {
            kept::keep(&path, &line, &ran)?;
        }
        Ok((ran, line))
    }

    /// Returns what the user asked for.
    pub(super) const fn args(&self) -> &ExperimentArgs {
        self.args
    }

    /// Returns the command line of a run.
    fn command(&self, deployment: &Deployment, policy: &Policy, load: &Load) -> Vec<String> {
        let (tensor, pipeline) = self.parallel(deployment);
        let mut argv: Vec<String> = ["stallfree", "bench", "run"].map(str::to_owned).into();
        argv.push(self.args.model.clone().unwrap_or_else(|| deployment.model.to_owned()));
        let mut flag = |name: &str, value: String| {
            argv.extend([format!("--{name}"), value]);
        };
        flag("device", self.device(deployment).to_owned());
        flag("load-format", "dummy".to_owned());
        flag("tensor-parallel-size", tensor.to_string());
        flag("pipeline-parallel-size", pipeline.to_string());
        flag("gpu-memory-utilization", "0.85".to_owned());
        flag("max-model-len", load.max_model_len.to_string());
        flag("scheduler", policy.name.to_owned());
        flag("max-num-seqs", policy.max_num_seqs.to_string());
        flag("max-num-batched-tokens", policy.max_num_batched_tokens.to_string());
        let (trace, given) = (self.args.trace.as_ref(), |path: &Path| path.display().to_string());
        match (&load.lengths, trace) {
            (LengthsFrom::Fixed(prompt, output), _) => {
                flag("random-input-len", prompt.to_string());
                flag("random-output-len", output.to_string());
            }
            (LengthsFrom::File(path), _) => flag("dataset-path", given(path)),
            (_, Some(path)) => flag("dataset-path", given(path)),
            (LengthsFrom::Sharegpt, None) => flag("dataset-name", "synthetic-sharegpt".to_owned()),
            (LengthsFrom::Arxiv, None) => flag("dataset-name", "synthetic-arxiv".to_owned()),
        }
        if let Some(blocks) = self.args.num_gpu_blocks_override {
            flag("num-gpu-blocks-override", blocks.to_string());
        }
        flag("num-prompts", self.num_prompts(load).to_string());
        match load.arrivals {
            Arriving::AtOnce => flag("request-rate", "inf".to_owned()),
            Arriving::AsRecorded => flag("arrivals", "replay".to_owned()),
            Arriving::Poisson(rate) => {
                flag("request-rate", rate.to_string());
                flag("arrivals", "poisson-clipped".to_owned());
            }
        }
        flag("seed", self.args.seed.to_string());
        // Prompts that are alike would all be in the prefix cache.
        argv.push("--no-enable-prefix-caching".to_owned());
        argv
    }

    fn num_prompts(&self, load: &Load) -> usize {
        if matches!(load.lengths, LengthsFrom::Fixed(..) | LengthsFrom::File(_)) {
            return load.num_prompts;
        }
        let most = self.args.num_prompts.unwrap_or(load.num_prompts);
        match (load.arrivals, self.args.window) {
            (Arriving::Poisson(rate), Some(window)) => {
                most.min((rate * window).ceil() as usize).max(1)
            }
            _ => most,
        }
    }

    /// Keeps a table, and shows it if it is short.
    pub(super) fn table(&self, name: &str, table: &Table) -> Result<()> {
        self.write(&format!("{name}.csv"), &table.csv())?;
        let text = table.text();
        if text.lines().count() < 100 {
            console::print(format_args!("\n{name}\n{text}"))?;
        }
        Ok(())
    }

    /// Keeps a chart; one that is made with a user's trace says so.
    pub(super) fn plot(&self, name: &str, mut figure: Figure) -> Result<()> {
        if self.args.trace.is_some() && !figure.subtitle.contains(&self.dataset) {
            figure.subtitle += &format!("\n{}", self.dataset);
        }
        Ok(plot::write(&figure, &self.output.join(name))?)
    }

    /// Keeps a text.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.output.join(name);
        fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))
    }

    /// Makes sure that each of the user's names means something. Experiments choose of all kinds before their first run.
    fn check_only(&self) -> Result<()> {
        let names = self.names.borrow();
        let Some(wanted) = self.args.only.iter().find(|wanted| !names.contains(*wanted)) else {
            return Ok(());
        };
        if names.is_empty() {
            bail!("--only {wanted}: this experiment has nothing to choose from");
        }
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        bail!("--only: nothing is called {wanted}; there are {}", names.join(", "))
    }

    /// Says where everything is.
    pub(super) fn close(self) {
        console::note(format_args!("{} runs; results: {}", self.num_runs, self.output.display()));
    }
}
