//! Flags that say which figures are made and where they go.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stallfree_bench::metrics::{Goodput, Slo, SummaryConfig};
use stallfree_bench::{RequestRecord, Summary, date};

use crate::args::key_value;

/// Which figures, and where to.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Results")]
pub(crate) struct ResultArgs {
    /// Latencies to print: ttft, tpot, itl, e2el
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "ttft,tpot,itl")]
    pub(crate) percentile_metrics: Vec<String>,
    /// Percentiles to report
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "99")]
    pub(crate) metric_percentiles: Vec<f64>,
    /// What counts as a good request, in ms: ttft:200 tpot:50 e2el:3000
    #[arg(long, value_name = "NAME:MS", num_args = 1.., value_parser = limit)]
    pub(crate) goodput: Vec<(String, f64)>,
    /// Objective for the time to the first token, in ms
    #[arg(long, value_name = "MS", requires = "tpot_slo")]
    pub(crate) ttft_slo: Option<f64>,
    /// Objective for the mean time per further token, in ms
    #[arg(long, value_name = "MS", requires = "ttft_slo")]
    pub(crate) tpot_slo: Option<f64>,
    /// A gap between tokens counts as a stall beyond this many times the median gap
    #[arg(long, value_name = "FACTOR", value_parser = factor, default_value = "5")]
    pub(crate) stall_factor: f64,
    /// GPUs that do the work, for rates per GPU [default: as many as the engine has, or 1]
    #[arg(long, value_name = "N")]
    pub(crate) num_gpus: Option<usize>,
    /// A name for the results
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// How the system is deployed, for comparisons: simple, disaggregated, or what you call it
    /// [default: as the engine's --mode has it, or simple]
    #[arg(long, value_name = "MODE")]
    pub(crate) deployment_mode: Option<String>,
    /// Fields to add to the results
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
    /// Where results go [default: results]
    #[arg(long, value_name = "DIR")]
    pub(crate) result_dir: Option<PathBuf>,
    /// Show no progress
    #[arg(long, visible_alias = "disable-tqdm")]
    pub(crate) no_progress: bool,
}

/// What is known about a run beside its figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    /// `openai`, `openai-chat`, or `engine` for one in this process.
    pub(crate) backend: String,
    /// The model.
    pub(crate) model: String,
    /// The tokenizer, if there was one.
    pub(crate) tokenizer: Option<String>,
    /// The workload's name, and whether it is drawn from a fit.
    pub(crate) dataset: (String, bool),
    /// Requests asked for.
    pub(crate) num_prompts: usize,
    /// The rate asked for; `None` for a replayed trace.
    pub(crate) request_rate: Option<f64>,
    /// The burstiness asked for.
    pub(crate) burstiness: f64,
    /// The limit on concurrency.
    pub(crate) max_concurrency: Option<usize>,
    /// GPUs.
    pub(crate) num_gpus: usize,
    /// How the system is deployed.
    pub(crate) deployment_mode: String,
}

impl ResultArgs {
    /// Says how figures are to be made.
    ///
    /// # Errors
    /// A percentile or an unknown name.
    pub(crate) fn summary_config(&self, num_gpus: usize) -> Result<SummaryConfig> {
        let known = ["ttft", "tpot", "itl", "e2el"];
        if let Some(other) = self.percentile_metrics.iter().find(|name| !known.contains(&&***name))
        {
            bail!("--percentile-metrics knows ttft, tpot, itl and e2el, not `{other}`");
        }
        if let Some(other) = self.metric_percentiles.iter().find(|p| !(0.0..=100.0).contains(*p)) {
            bail!("--metric-percentiles: {other} is not from 0 to 100");
        }
        let mut goodput = Goodput::default();
        for (name, ms) in &self.goodput {
            let seconds = Some(ms / 1000.0);
            match &**name {
                "ttft" => goodput.ttft = seconds,
                "tpot" => goodput.tpot = seconds,
                "e2el" => goodput.e2el = seconds,
                _ => bail!("--goodput knows ttft, tpot and e2el, not `{name}`"),
            }
        }
        Ok(SummaryConfig {
            percentiles: self.metric_percentiles.clone(),
            stall_factor: self.stall_factor,
            goodput: (!self.goodput.is_empty()).then_some(goodput),
            slo: self.slo(),
            num_gpus,
        })
    }

    /// Returns what requests are promised, if anything.
    pub(crate) fn slo(&self) -> Option<Slo> {
        let (ttft, tpot) = self.ttft_slo.zip(self.tpot_slo)?;
        Some(Slo { ttft: ttft / 1000.0, tpot: tpot / 1000.0 })
    }

    /// Returns how the system is deployed, which is `known` unless the user calls it something else.
    pub(crate) fn deployment_mode(&self, known: &str) -> String {
        self.deployment_mode.clone().unwrap_or_else(|| known.to_owned())
    }

    /// Returns the folder for results.
    pub(crate) fn result_dir(&self) -> PathBuf {
        self.result_dir.clone().unwrap_or_else(|| "results".into())
    }

    /// Puts the figures into vLLM's JSON, with what is known beside them.
    pub(crate) fn json(&self, about: &About, summary: &Summary) -> Map<String, Value> {
        let rate = |rate: f64| if rate.is_finite() { json!(rate) } else { json!("inf") };
        let mut json = Map::new();
        let fields = [
            ("date", json!(date(SystemTime::now()))),
            ("endpoint_type", json!(about.backend)),
            ("backend", json!(about.backend)),
            ("label", json!(self.label)),
            ("model_id", json!(about.model)),
            ("model_name", json!(about.model)),
            ("tokenizer_id", json!(about.tokenizer)),
            ("dataset_name", json!(about.dataset.0)),
            ("is_synthetic", json!(about.dataset.1)),
            ("deployment_mode", json!(about.deployment_mode)),
            ("num_prompts", json!(about.num_prompts)),
        ];
        json.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let metadata = self.metadata.iter();
        json.extend(metadata.map(|(key, value)| (key.clone(), json!(value))));
        json.insert("request_rate".to_owned(), about.request_rate.map_or(json!("replay"), rate));
        json.insert("burstiness".to_owned(), json!(about.burstiness));
        json.insert("max_concurrency".to_owned(), json!(about.max_concurrency));
        json.extend(summary.to_json());
        json
    }
}

/// Says in a few words what the load was.
pub(crate) fn load_line(about: &About) -> String {
    let rate = match about.request_rate {
        Some(rate) if rate.is_finite() => format!("{rate} requests/s"),
        Some(_) => "all at once".to_owned(),
        None => "at the trace's times".to_owned(),
    };
    let limit =
        about.max_concurrency.map_or_else(String::new, |n| format!(", at most {n} at once"));
    format!("{} requests of {}, {rate}{limit}", about.num_prompts, about.dataset.0)
}

/// Adds what vLLM's `--save-detailed` has: figures of each request, in seconds.
pub(crate) fn add_details(json: &mut Map<String, Value>, requests: &[RequestRecord]) {
    let list = |of: &dyn Fn(&RequestRecord) -> Value| requests.iter().map(of).collect::<Value>();
    let fields = [
        ("input_lens", list(&|request| json!(request.prompt_len))),
        ("output_lens", list(&|request| json!(request.output_len))),
        ("ttfts", list(&|request| json!(request.ttft().unwrap_or_default()))),
        ("tpots", list(&|request| json!(request.tpot()))),
        ("itls", list(&|request| request.gaps().collect())),
        ("start_times", list(&|request| json!(request.sent))),
        ("generated_texts", list(&|request| json!(request.text))),
        ("errors", list(&|request| json!(request.error()))),
    ];
    json.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
}

/// Writes one result a file, or adds it to a file as vLLM does: one result a line.
///
/// # Errors
/// The file can't be written.
pub(crate) fn save(path: &Path, json: &Map<String, Value>, append: bool) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    }
    let mut text =
        if append { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&serde_json::to_string(json)?);
    fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// Reads a factor: a number above 0.
fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor > 0.0);
    factor.ok_or_else(|| format!("'{text}' is not a factor such as 5: a number above 0"))
}

/// Reads `name:milliseconds`.
fn limit(text: &str) -> Result<(String, f64), String> {
    let parsed = text.split_once(':').and_then(|(name, ms)| Some((name, ms.parse::<f64>().ok()?)));
    match parsed {
        Some((name, ms)) if ms >= 0.0 => Ok((name.to_owned(), ms)),
        _ => Err(format!("'{text}' is not NAME:MILLISECONDS")),
    }
}
