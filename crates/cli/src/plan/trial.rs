//! Trials: a deployment, or one side of it, under requests at a rate.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use stallfree_bench::WorkloadConfig;
use stallfree_bench::metrics::{
    Attained, Distribution, Slo, SloMetric, Stalls, attained, token_gaps,
};
use stallfree_bench::run::{Detail, Recorder, RunConfig, in_virtual_time};
use stallfree_bench::workload::Lengths;
use stallfree_cluster::Role;
use stallfree_sim::{Factors, Gpu};
use stallfree_worker::KvSize;

use super::PlanArgs;
use super::rate::Outcome;
use crate::args::DeploymentArgs;
use crate::bench::{Rate, count_tokens};
use crate::config::{DeploymentConfig, DeviceConfig, InstanceConfig, WeightsFrom};
use crate::environment::Environment;
use crate::{instance, model_source};

/// Rates below this, in requests a second, are none.
pub(super) const LOWEST: f64 = 0.01;

/// Requests of a trial for each instance, unless the user says; and as many as come in so many seconds, because what is served within
/// one request's life says little of what can be served for long.
const NUM_PROMPTS: usize = 400;
const SECONDS: f64 = 60.0;

/// And no more for each instance than so many, where a high rate would make a minute millions of them.
const MOST_PROMPTS: usize = 10_000;

/// Where placements are tried.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    args: &'a PlanArgs,
    environment: &'a Environment,
    path: PathBuf,
    recipe: WorkloadConfig,
    pub(super) slo: Slo,
    pub(super) target: f64,
    /// Names: the model's, the GPU's, the workload's.
    pub(super) model: String,
    pub(super) gpu: String,
    pub(super) workload: String,
}

/// What a deployment has to do in a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything, within both objectives.
    Whole,
    /// First tokens, within theirs; requests ask for no more.
    Prefill,
    /// What follows first tokens, within its objective; prompts are computed in no time by an instance in front.
    Decode,
}

/// What came of a trial.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    /// Requests within objectives.
    pub(super) attained: Attained,
    /// Stalls.
    pub(super) stalls: Stalls,
    /// Whether all requests came before anything that counts had happened to one: a higher rate would be no other trial.
    is_all_at_once: bool,
}

impl<'a> Bench<'a> {
    /// Finds the model and makes the workload's recipe.
    ///
    /// # Errors
    /// The flags or the model don't allow it.
    pub(super) fn open(
        args: &'a PlanArgs,
        environment: &'a Environment,
        slo: Slo,
        target: f64,
    ) -> Result<Self> {
        let config = InstanceConfig::resolve(&args.engine, environment)?;
        let DeviceConfig::Sim(device) = &config.device else {
            bail!("placements are tried on simulated GPUs: --device sim:GPU, such as sim:h100-sxm")
        };
        let found = model_source::find(&args.engine.model, config.weights, environment)?;
        let tokenizer = match args.workload.has_texts() {
            true => Some(instance::open_tokenizer(&found.path, &config)?),
            false => None,
        };
        // Whatever the rate, it is what is looked for.
        let mut workload = args.workload.clone();
        workload.arrivals.request_rate = Rate(1.0);
        let recipe = workload.resolve(&|text| count_tokens(tokenizer.as_ref(), text), 1)?;
        recipe.arrivals.at_rate(1.0)?;
        let (model, gpu) = (found.name().to_owned(), device.gpu.name.clone());
        let (path, workload) = (found.path, recipe.generate()?.name);
        Ok(Self { args, environment, path, recipe, slo, target, model, gpu, workload })
    }

    /// Says what `serve` needs in place of the model's name where that is all there is.
    pub(super) fn stand_in(&self) -> Option<String> {
        let Self { model, path, .. } = self;
        if path.exists() {
            return None;
        }
        Some(match instance::open(path, WeightsFrom::Chance) {
            Ok(_) => format!(
                "{model} stands for a folder or hub id of that model; its sizes are all that is known here"
            ),
            Err(error) => {
                format!("{model} can only be served with --device sim:GPU: {}", error.root_cause())
            }
        })
    }

    /// Returns where the model is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Resolves what `serve` would be told; where only one side is tried, that side alone.
    pub(super) fn deployment(&self, args: &DeploymentArgs, part: Part) -> Result<DeploymentConfig> {
        let mut config = DeploymentConfig::resolve(&self.args.engine, args, self.environment)?;
        match part {
            Part::Whole => {}
            Part::Prefill => {
                config.instances.truncate(1);
                config.instances.iter_mut().for_each(|(role, _)| *role = Role::Mixed);
            }
            Part::Decode => {
                let (_, first) = config.instances.first_mut().context("an instance")?;
                *first = immediate(first);
            }
        }
        Ok(config)
    }

    /// Runs a deployment at `rate` requests a second.
    ///
    /// # Errors
    /// The model does not fit, or the workload can't be had.
    pub(super) fn attempt(
        &self,
        deployment: &DeploymentConfig,
        part: Part,
        rate: f64,
    ) -> Result<Tried> {
        let recorder = Recorder::new(Detail::Requests);
        let mut observe = |instance, _: &_| recorder.observer_of(instance);
        let members = instance::members(&self.path, deployment, &mut observe)?;
        let longest = members.iter().map(|member| member.built.scheduler.max_model_len).min();
        let longest = longest.context("a deployment needs an instance")?;
        let vocab_size = members.first().map_or(0, |member| member.built.vocab_size);
        let mut recipe = self.recipe.clone();
        recipe.arrivals = recipe.arrivals.at_rate(rate)?;
        recipe.max_total_len =
            Some(recipe.max_total_len.map_or(longest, |limit| limit.min(longest)));
        if part == Part::Prefill {
            recipe.output_len = Some(Lengths::Fixed(1));
        }
        // As many for each instance that they are for.
        let share = if part == Part::Whole { deployment.instances.len() } else { 1 };
        let num_requests = match recipe.num_requests {
            Some(count) => count.saturating_mul(share),
            None => ((rate * SECONDS) as usize).clamp(NUM_PROMPTS * share, MOST_PROMPTS * share),
        };
        recipe.num_requests = Some(num_requests);
        let mut workload = recipe.generate()?;
        workload.promise(self.slo.of_request());
        let run = RunConfig::exact(vocab_size);
        let mut engines = instance::in_virtual_time(members, &deployment.dispatch)?;
        let ran = in_virtual_time(&mut *engines, &workload, &run, &recorder, &mut |_| {});
        let metrics: Vec<SloMetric> = ran.requests.iter().map(SloMetric::from).collect();
        let gaps = Distribution::new(token_gaps(&ran.requests));
        // A first token takes no time where only what follows it is tried.
        let num_tokens = if part == Part::Decode { 2 } else { 1 };
        Ok(Tried {
            attained: attained(&metrics, self.slo),
            stalls: Stalls::find(&ran.requests, &gaps, Stalls::FACTOR),
            is_all_at_once: ran.is_all_at_once(num_tokens),
        })
    }

    /// Says whether enough requests were within what counts for a part.
    pub(super) fn judge(&self, part: Part, tried: &Tried) -> Outcome {
        let Attained { both, ttft, tpot } = tried.attained;
        let share = match part {
            Part::Whole => both,
            Part::Prefill => ttft,
            Part::Decode => tpot,
        };
        match share >= self.target {
            true if tried.is_all_at_once => Outcome::AtOnce,
            true => Outcome::Holds,
            false => Outcome::Fails,
        }
    }
}

/// Returns the same instance on GPUs that take no time, and with room for all.
fn immediate(config: &InstanceConfig) -> InstanceConfig {
    const NO_LIMIT: f64 = 1e30;
    let mut config = config.clone();
    if let DeviceConfig::Sim(device) = &mut config.device {
        let gpu = device.gpu.clone();
        device.gpu = Gpu { flops: NO_LIMIT, bytes_per_s: NO_LIMIT, ..gpu };
        let links = device.gpu.links.iter_mut();
        links.for_each(|link| (link.bytes_per_s, link.latency_s) = (NO_LIMIT, 0.0));
        device.factors = Factors { layer_s: 0.0, seq_s: 0.0, step_s: 1e-6, ..device.factors };
    }
    config.kv_size = KvSize::Blocks(1 << 17);
    config
}
