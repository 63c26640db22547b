//! `stallfree bench step`: what a step takes, through the whole engine, beside what the hardware allows.
//!
//! Rows are made of random prompts: decode at a batch size and context, prefill, and an offline mix. Tokens are chosen greedily,
//! collected and detokenized as a server would. Each row's tokens are then held against a second computation of the
//! same texts as prompts, which shares neither the recorded steps nor the kernels for single tokens.

mod drive;
mod floor;
mod row;
mod threads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use stallfree_bench::{date, new_folder};
use stallfree_core::{Clock, WallClock};
use stallfree_engine::ThreadedEngine;
use stallfree_models::Checkpoint;

use self::drive::{Driver, StepLog};
use self::floor::Floor;
use self::row::{Decode, Mix, Prefill};
use crate::args::{EngineArgs, positive};
use crate::config::{DeviceConfig, InstanceConfig};
use crate::environment::Environment;
use crate::{console, instance, model_source};

/// The flags of `bench step`.
#[derive(Clone, Debug, Args)]
pub(crate) struct StepArgs {
    /// What to measure.
    #[command(flatten)]
    engine: EngineArgs,
    /// Which rows.
    #[command(flatten)]
    rows: RowArgs,
}

/// Which rows to measure.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Rows")]
struct RowArgs {
    /// Decode rows: a batch size and a context, or a batch size alone for a context of 512; - for none
    #[arg(
        long,
        value_name = "BATCH[xCONTEXT]",
        value_delimiter = ',',
        default_value = "1,8,32,128,256"
    )]
    decode: Vec<String>,
    /// Tokens that each sequence of a decode row produces
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode_len: usize,
    /// Prefill rows: how many prompts of how many tokens; - for none
    #[arg(
        long,
        value_name = "NxLEN",
        value_delimiter = ',',
        default_value = "1x2048,1x8192,8x2048"
    )]
    prefill: Vec<String>,
    /// Requests of the offline mix, with prompts of 128 to 896 tokens and answers of 256; 0 for none
    #[arg(long, value_name = "N", default_value_t = 512)]
    mix: usize,
    /// How often each row is measured; the median counts
    #[arg(long, value_name = "N", value_parser = positive, default_value = "3")]
    repeats: usize,
    /// Write the results to DIR/DATE-DEVICE/step.json
    #[arg(long, value_name = "DIR")]
    result_dir: Option<PathBuf>,
}

/// Measures, prints and saves.
///
/// # Errors
/// The flags, the model or the machine don't allow it, or a row's tokens don't stand up to the second computation.
pub(crate) fn run(args: &StepArgs, environment: &Environment) -> Result<()> {
    let decode =
        row::parse_all(&args.rows.decode, |text| Decode::parse(text, args.rows.decode_len))?;
    let prefill = row::parse_all(&args.rows.prefill, Prefill::parse)?;
    let config = InstanceConfig::resolve(&args.engine, environment)?;
    let found = model_source::find(&args.engine.model, config.weights, environment)?;
    let checkpoint = instance::open(&found.path, config.weights)?;
    let floor = match &config.device {
        DeviceConfig::Cuda(gpu) => {
            Some(Floor::measure(checkpoint.config(), config.parallel.tensor, &gpu.kernel_cache)?)
        }
        _ => None,
    };
    let started = WallClock::start();
    let log = StepLog::default();
    let tokenizer = Arc::new(instance::open_tokenizer(&found.path, &config)?);
    let built = instance::engine(&found.path, &config, log.observer())?;
    let (worker, limits) = (built.worker.clone(), built.scheduler.clone());
    let max_model_len = limits.max_model_len;
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    let engine = ThreadedEngine::spawn(built.engine, clock, usize::MAX)
        .context("the engine's thread can't be started")?;
    let ready = started.now().since_start();
    let mut report = Report::new(args, &checkpoint, &worker.device, floor);
    report.set("engine_start_s", json!(ready.as_secs_f64()));
    let limits = json!({
        "scheduler": config.policy,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "num_gpu_blocks": worker.kv.num_blocks,
        "block_size": worker.kv.block_size,
        "kv_tokens": worker.kv.num_tokens(),
    });
    report.set("config", limits);
    if let Some(floor) = floor {
        console::print(format_args!("{}\n", floor.line()))?;
    }
    console::print(format_args!(
        "Engine ready in {:.2} s\n{}\n",
        ready.as_secs_f64(),
        row::HEADER
    ))?;
    let mut driver = Driver::new(&engine, tokenizer, log, built.vocab_size)?;
    driver.warm_up()?;
    let max_margin = row::max_margin(checkpoint.config());
    let limits = (floor.as_ref(), max_margin);
    for row in &decode {
        if fits(&row.name(), row.num_tokens(), max_model_len)? {
            report.add("decode", row.measure(&mut driver, args.rows.repeats, limits)?)?;
        }
    }
    for row in &prefill {
        if fits(&row.name(), row.num_tokens(), max_model_len)? {
            report.add("prefill", row.measure(&mut driver, args.rows.repeats, limits)?)?;
        }
    }
    let mix = Mix { num_requests: args.rows.mix };
    if args.rows.mix > 0 && fits(&mix.name(), Mix::NUM_TOKENS, max_model_len)? {
        report.add("mixed", mix.measure(&mut driver, max_margin)?)?;
    }
    report.save(args)?;
    match report.unsound {
        0 => Ok(()),
        rows => bail!("{rows} rows produced tokens that a second computation does not confirm"),
    }
}

/// Returns whether a row of texts of `num_tokens` can be measured, and says so if not: the others are worth having all the same.
fn fits(name: &str, num_tokens: usize, max_model_len: usize) -> Result<bool> {
    let fits = num_tokens <= max_model_len;
    if !fits {
        console::print(format_args!(
            "{name:<20} left out: {num_tokens} tokens with the answer, and the most is {max_model_len} (--max-model-len)\n"
        ))?;
    }
    Ok(fits)
}

/// A measured row: its line and its JSON.
struct Measured {
    line: String,
    json: Value,
    /// Whether its tokens stood up to the second computation.
    is_sound: bool,
}

/// What is printed and saved.
struct Report {
    json: Map<String, Value>,
    device: String,
    unsound: usize,
}

impl Report {
    fn new(args: &StepArgs, checkpoint: &Checkpoint, device: &str, floor: Option<Floor>) -> Self {
        let mut json = Map::new();
        json.insert("stallfree".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        json.insert("model".to_owned(), json!(checkpoint.describe()));
        json.insert("command".to_owned(), json!(console::command_line()));
        json.insert("gpu".to_owned(), json!(device));
        json.insert("repeats".to_owned(), json!(args.rows.repeats));
        if let Some(floor) = floor {
            json.insert("ceilings".to_owned(), floor.json());
        }
        Self { json, device: device.to_owned(), unsound: 0 }
    }

    fn set(&mut self, name: &str, value: Value) {
        self.json.insert(name.to_owned(), value);
    }

    fn add(&mut self, kind: &str, row: Measured) -> Result<()> {
        console::print(format_args!("{}\n", row.line))?;
        self.unsound += usize::from(!row.is_sound);
        match self.json.get_mut(kind) {
            _ if kind == "mixed" => self.set(kind, row.json),
            Some(Value::Array(rows)) => rows.push(row.json),
            _ => self.set(kind, json!([row.json])),
        }
        Ok(())
    }

    fn save(&self, args: &StepArgs) -> Result<()> {
        let Some(dir) = &args.rows.result_dir else { return Ok(()) };
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let device: String = self.device.chars().map(plain).collect();
        let name = format!("{}-{}", date(SystemTime::now()), device.trim_matches('-'));
        let folder = new_folder(&dir.join(name))?;
        let path = folder.join("step.json");
        let text = serde_json::to_string_pretty(&self.json)?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("{} can't be written", path.display()))?;
        console::note(format_args!("Results: {}", path.display()));
        Ok(())
    }
}
