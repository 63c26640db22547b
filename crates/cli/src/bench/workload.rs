//! Flags that say which requests come when.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use stallfree_bench::WorkloadConfig;
use stallfree_bench::workload::{
    ARXIV, Arrivals, CountTokens, LONGBENCH_2K, Lengths, RampShape, SHAREGPT, SHAREGPT_2K, Source,
    Trace,
};
use stallfree_tokenizer::Tokenizer;

use crate::args::positive;

/// Which requests come.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Workload")]
pub(crate) struct WorkloadArgs {
    /// Where lengths come from [default: trace if there is one, else random]
    #[arg(long, value_enum)]
    pub(crate) dataset_name: Option<DatasetName>,
    /// A trace: CSV with Sarathi's, Splitwise's or Azure's columns, Mooncake's JSONL, or ShareGPT's JSON
    #[arg(long, value_name = "FILE", visible_alias = "trace")]
    pub(crate) dataset_path: Option<PathBuf>,
    /// Requests to send [default: 1000, or all of a replayed trace]
    #[arg(long, value_name = "N")]
    pub(crate) num_prompts: Option<usize>,
    /// Prompt lengths: N, uniform:LOW-HIGH, lognormal:MEDIAN,SIGMA(,MAX), or S, M, L (Llumnix)
    #[arg(long, value_name = "LENGTHS")]
    pub(crate) input_len: Option<Lengths>,
    /// Output lengths, in the same notation; replaces a trace's
    #[arg(long, value_name = "LENGTHS", alias = "sharegpt-output-len")]
    pub(crate) output_len: Option<Lengths>,
    /// Mean prompt length of the random data set
    #[arg(long, value_name = "N", value_parser = positive, default_value = "1024")]
    pub(crate) random_input_len: usize,
    /// Mean output length of the random data set
    #[arg(long, value_name = "N", value_parser = positive, default_value = "128")]
    pub(crate) random_output_len: usize,
    /// How far both spread: from 1 - RATIO to 1 + RATIO times the mean
    #[arg(long, value_name = "RATIO", default_value_t = 0.0)]
    pub(crate) random_range_ratio: f64,
    /// Tokens that all prompts begin with, on top of their own
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) random_prefix_len: usize,
    /// Cut requests to this many tokens, prompt and output in proportion. What the model allows cuts
    /// them in any case where the engine is in this process; how many it cuts is said
    #[arg(long, value_name = "N")]
    pub(crate) max_total_len: Option<usize>,
    /// Decides lengths, times and tokens
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Decides tokens alone, so that a server's prefix cache finds nothing of an earlier run [default: as --seed]
    #[arg(long, value_name = "SEED")]
    pub(crate) prompt_seed: Option<u64>,
    /// When they come.
    #[command(flatten)]
    pub(crate) arrivals: ArrivalArgs,
}

/// When requests come.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Arrivals")]
pub(crate) struct ArrivalArgs {
    /// Requests a second; inf sends all at once
    #[arg(long, value_name = "RATE", default_value = "inf")]
    pub(crate) request_rate: Rate,
    /// Requests a second for each GPU of the system
    #[arg(long, value_name = "RATE", conflicts_with = "request_rate")]
    pub(crate) request_rate_per_gpu: Option<Rate>,
    /// How they come [default: static at an infinite rate, else poisson, or gamma with --burstiness]
    #[arg(long, value_enum)]
    pub(crate) arrivals: Option<ArrivalKind>,
    /// Shape of the gamma-distributed intervals: 1 is Poisson, less comes in bursts
    #[arg(long, value_name = "SHAPE", default_value_t = 1.0)]
    pub(crate) burstiness: f64,
    /// The same as a coefficient of variation: CV = 1 / sqrt(burstiness)
    #[arg(long, value_name = "CV", conflicts_with = "burstiness")]
    pub(crate) arrival_cv: Option<f64>,
    /// Change the rate over the run
    #[arg(long, value_enum, requires = "ramp_up_start_rps", requires = "ramp_up_end_rps")]
    pub(crate) ramp_up_strategy: Option<RampUp>,
    /// The rate at the start
    #[arg(long, value_name = "RATE", requires = "ramp_up_strategy")]
    pub(crate) ramp_up_start_rps: Option<f64>,
    /// The rate at the end
    #[arg(long, value_name = "RATE", requires = "ramp_up_strategy")]
    pub(crate) ramp_up_end_rps: Option<f64>,
    /// Replay a trace's times this many times as fast
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub(crate) replay_speed: f64,
    /// Let each replayed request come up to this many seconds late, where timestamps are coarse
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub(crate) replay_jitter: f64,
    /// Most requests under way; with an infinite rate, a closed loop of so many clients
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_concurrency: Option<usize>,
}

/// Where lengths come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DatasetName {
    /// Drawn: --random-input-len and its kin, or --input-len and --output-len
    Random,
    /// --dataset-path, a ShareGPT JSON
    Sharegpt,
    /// --dataset-path
    Trace,
    /// A fit to ShareGPT's lengths (up to 8,192 tokens), synthetic
    SyntheticSharegpt,
    /// A fit to arXiv summarisation's lengths (up to 16,384 tokens), synthetic
    SyntheticArxiv,
    /// A fit to ShareGPT's lengths up to 2,048 tokens (DistServe), synthetic
    #[value(name = "synthetic-sharegpt-2k")]
    SyntheticSharegpt2k,
    /// A fit to LongBench summarisation's lengths up to 2,048 tokens (DistServe), synthetic
    #[value(name = "synthetic-longbench-2k")]
    SyntheticLongbench2k,
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArrivalKind {
    /// All at once
    Static,
    /// Evenly
    Fixed,
    /// Independent of each other
    Poisson,
    /// Poisson, no interval longer than 3 / rate (Sarathi's artifact)
    PoissonClipped,
    /// In bursts, by --burstiness or --arrival-cv
    Gamma,
    /// At the trace's own times
    Replay,
}

/// How a rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RampUp {
    /// By the same amount with each request
    Linear,
    /// By the same factor with each request
    Exponential,
}

/// Requests a second, or all at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate(pub(crate) f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<f64>() {
            Ok(rate) if rate > 0.0 => Ok(Self(rate)),
            _ => Err(format!("'{text}' is neither a number above 0 nor inf")),
        }
    }
}

impl WorkloadArgs {
    /// Turns the flags into a recipe for a system of `num_gpus`. `count_tokens` counts the tokens of texts; it is asked only if the
    /// data set has texts.
    ///
    /// # Errors
    /// Flags contradict each other, or a file can't be read.
    pub(crate) fn resolve(
        &self,
        count_tokens: CountTokens<'_>,
        num_gpus: usize,
    ) -> Result<WorkloadConfig> {
        let source = self.source(count_tokens)?;
        let is_drawn = matches!(source, Source::Drawn { .. });
        if self.input_len.is_some() && !is_drawn {
            bail!("--input-len is for the random data set; a data set with lengths has its own");
        }
        Ok(WorkloadConfig {
            source,
            arrivals: self.arrivals.resolve(num_gpus)?,
            num_requests: self.num_prompts,
            max_total_len: self.max_total_len,
            output_len: self.output_len.clone().filter(|_| !is_drawn),
            shared_prefix_len: self.random_prefix_len,
            seed: self.seed,
        })
    }

    /// Returns whether the data set is of texts, whose tokens have to be counted.
    pub(crate) fn has_texts(&self) -> bool {
        self.dataset_path.as_ref().is_some_and(|path| path.extension().is_some_and(|e| e == "json"))
    }

    /// Returns the data set that was named, or follows from the other flags.
    pub(crate) fn dataset(&self) -> DatasetName {
        self.dataset_name.unwrap_or(match self.dataset_path {
            Some(_) => DatasetName::Trace,
            None => DatasetName::Random,
        })
    }

    fn source(&self, count_tokens: CountTokens<'_>) -> Result<Source> {
        Ok(match self.dataset() {
            DatasetName::Random => Source::Drawn {
                name: "random".to_owned(),
                prompt: self.drawn(self.input_len.as_ref(), self.random_input_len)?,
                output: self.drawn(self.output_len.as_ref(), self.random_output_len)?,
            },
            DatasetName::SyntheticSharegpt => Source::StandIn(SHAREGPT),
            DatasetName::SyntheticArxiv => Source::StandIn(ARXIV),
            DatasetName::SyntheticSharegpt2k => Source::StandIn(SHAREGPT_2K),
            DatasetName::SyntheticLongbench2k => Source::StandIn(LONGBENCH_2K),
            DatasetName::Sharegpt | DatasetName::Trace => {
                let path = self.dataset_path.as_ref();
                let path = path.context("this data set needs a file: --dataset-path FILE")?;
                Source::Trace(Trace::read(path, count_tokens)?)
            }
        })
    }

    fn drawn(&self, lengths: Option<&Lengths>, mean: usize) -> Result<Lengths> {
        if !(0.0..1.0).contains(&self.random_range_ratio) {
            bail!("--random-range-ratio {} is not from 0 to below 1", self.random_range_ratio);
        }
        Ok(lengths.cloned().unwrap_or_else(|| Lengths::around(mean, self.random_range_ratio)))
    }
}

/// Counts a text's tokens; without a tokenizer or where it fails, four bytes are about a token.
pub(crate) fn count_tokens(tokenizer: Option<&Tokenizer>, text: &str) -> usize {
    let tokens = tokenizer.and_then(|tokenizer| tokenizer.encode(text, false).ok());
    tokens.map_or(text.len().div_ceil(4), |tokens| tokens.len())
}

impl ArrivalArgs {
    fn resolve(&self, num_gpus: usize) -> Result<Arrivals> {
        let cv = match self.arrival_cv {
            Some(cv) => cv,
            None if self.burstiness > 0.0 => self.burstiness.powf(-0.5),
            None => bail!("--burstiness {} is not above 0", self.burstiness),
        };
        if let Some(strategy) = self.ramp_up_strategy {
            let (from, to) = self.ramp_up_start_rps.zip(self.ramp_up_end_rps).unwrap_or_default();
            let shape = match strategy {
                RampUp::Linear => RampShape::Linear,
                RampUp::Exponential => RampShape::Exponential,
            };
            return Ok(Arrivals::Ramp { from, to, shape, cv });
        }
        let each = self.request_rate_per_gpu.map(|Rate(rate)| rate * num_gpus as f64);
        let rate = each.unwrap_or(self.request_rate.0);
        let kind = self.arrivals.unwrap_or(match rate {
            f64::INFINITY => ArrivalKind::Static,
            _ if (cv - 1.0).abs() < 1e-9 => ArrivalKind::Poisson,
            _ => ArrivalKind::Gamma,
        });
        let needs_rate = !matches!(kind, ArrivalKind::Static | ArrivalKind::Replay);
        if needs_rate && rate.is_infinite() {
            bail!("these arrivals need a rate: --request-rate RATE");
        }
        if kind == ArrivalKind::Replay && !(self.replay_speed > 0.0 && self.replay_jitter >= 0.0) {
            bail!("--replay-speed must be above 0, --replay-jitter at least 0");
        }
        Ok(match kind {
            ArrivalKind::Static => Arrivals::Static,
            ArrivalKind::Fixed => Arrivals::Fixed { rate },
            ArrivalKind::Poisson => Arrivals::Poisson { rate },
            ArrivalKind::PoissonClipped => Arrivals::PoissonClipped { rate },
            ArrivalKind::Gamma => Arrivals::Gamma { rate, cv },
            ArrivalKind::Replay => {
                Arrivals::Replay { speed: self.replay_speed, jitter: self.replay_jitter }
            }
        })
    }
}
