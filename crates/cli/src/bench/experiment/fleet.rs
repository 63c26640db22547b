//! Deployments of several instances under traffic at a rate: what experiments with disaggregation run.

use std::path::Path;

use anyhow::{Result, bail};
use stallfree_bench::metrics::SloMetric;
use stallfree_bench::plot::Group;

use super::lab::Lab;
use crate::bench::run::Ran;

/// A deployment, as an experiment's command lines have it.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    /// What tables and charts call it.
    pub(super) label: String,
    /// How many GPUs it takes.
    pub(super) num_gpus: usize,
    model: String,
    device: String,
    /// Flags of its engines and of the deployment.
    flags: Vec<String>,
}

/// Which requests come to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic<'a> {
    /// The data set's name on the command line; a trace that the user gave takes its place.
    pub(super) dataset: &'a str,
    /// How many, unless the user says.
    pub(super) num_prompts: usize,
    /// What else decides them: `--arrival-cv=...`.
    pub(super) flags: &'a [&'a str],
}

impl Fleet {
    /// Instances that run requests from beginning to end, each over `(tensor, pipeline)` GPUs.
    pub(super) fn simple(label: &str, on: (&str, &str), specs: &[(usize, usize)]) -> Self {
        Self::new(label, on, specs, &["--mode=simple"])
    }

    /// Instances of which the first `num_prefill` prefill and the others decode.
    pub(super) fn disaggregated(
        label: &str,
        on: (&str, &str),
        specs: &[(usize, usize)],
        num_prefill: usize,
    ) -> Self {
        let partition = format!("--partition-id={num_prefill}");
        Self::new(label, on, specs, &["--mode=distserve", &partition])
    }

    fn new(
        label: &str,
        (model, device): (&str, &str),
        specs: &[(usize, usize)],
        flags: &[&str],
    ) -> Self {
        let (model, device) = (model.to_owned(), device.to_owned());
        let mut all = vec!["--replica-spec".to_owned()];
        all.extend(specs.iter().map(|(tensor, pipeline)| format!("{tensor},{pipeline}")));
        all.extend(flags.iter().map(|&flag| flag.to_owned()));
        let num_gpus = specs.iter().map(|(tensor, pipeline)| tensor * pipeline).sum();
        Self { label: label.to_owned(), num_gpus, model, device, flags: all }
    }

    /// Adds flags: a scheduler, limits, a dispatch policy.
    pub(super) fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }
}

impl Lab<'_> {
    /// Runs a deployment under traffic of `rate` requests a second; what fails stays among its records.
    pub(super) fn run_fleet(
        &mut self,
        fleet: &Fleet,
        traffic: &Traffic<'_>,
        rate: f64,
    ) -> Result<Ran> {
        let args = self.args();
        let model = args.model.as_deref().unwrap_or(&fleet.model);
        let device = args.device.as_deref().unwrap_or(&fleet.device);
        let num_prompts = args.num_prompts.unwrap_or(traffic.num_prompts);
        let mut argv: Vec<String> = ["stallfree", "bench", "run", model].map(str::to_owned).into();
        argv.extend([format!("--device={device}"), "--load-format=dummy".to_owned()]);
        argv.extend(fleet.flags.iter().cloned());
        argv.push(match &args.trace {
            Some(path) => format!("--dataset-path={}", path.display()),
            None => format!("--dataset-name={}", traffic.dataset),
        });
        argv.extend(traffic.flags.iter().map(|&flag| flag.to_owned()));
        argv.extend([
            format!("--num-prompts={num_prompts}"),
            format!("--request-rate={rate}"),
            format!("--seed={}", args.seed),
            "--records=requests".to_owned(),
            // Prompts that are alike would all be in the prefix cache.
            "--no-enable-prefix-caching".to_owned(),
        ]);
        let (ran, line) = self.bench_run(&argv, !device.starts_with("sim:"))?;
        match ran.summary.completed {
            0 => bail!("`{line}` completed no request"),
            _ => Ok(ran),
        }
    }

    /// Runs a deployment on the requests of a trace, at their own times; what fails stays among its records.
    pub(super) fn replay_fleet(
        &mut self,
        fleet: &Fleet,
        path: &Path,
        max_model_len: usize,
    ) -> Result<Ran> {
        let args = self.args();
        let model = args.model.as_deref().unwrap_or(&fleet.model);
        let device = args.device.as_deref().unwrap_or(&fleet.device);
        let mut argv: Vec<String> = ["stallfree", "bench", "run", model].map(str::to_owned).into();
        argv.extend([format!("--device={device}"), "--load-format=dummy".to_owned()]);
        argv.extend(fleet.flags.iter().cloned());
        argv.extend([
            format!("--dataset-path={}", path.display()),
            "--arrivals=replay".to_owned(),
            format!("--max-model-len={max_model_len}"),
            "--records=requests".to_owned(),
            "--no-enable-prefix-caching".to_owned(),
        ]);
        Ok(self.bench_run(&argv, !device.starts_with("sim:"))?.0)
    }

    /// Runs a deployment at each of `rates` requests a second and GPU; returns its curve of attainment.
    pub(super) fn run_rates(
        &mut self,
        fleet: &Fleet,
        traffic: &Traffic<'_>,
        rates: &[f64],
    ) -> Result<Group> {
        let num_gpus = fleet.num_gpus as f64;
        let mut points = Vec::new();
        for &rate in rates {
            let ran = self.run_fleet(fleet, traffic, rate * num_gpus)?;
            points.push((rate, ran.outcome.requests.iter().map(SloMetric::from).collect()));
        }
        Ok(Group { name: fleet.label.clone(), num_gpus, points })
    }
}
