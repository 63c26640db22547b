//! `stallfree calibrate`: measures steps on this machine and writes the file that `--device sim:FILE` predicts steps from.

mod measure;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use stallfree_sim::{
    Calibration, Factors, Gpu, GpuChoice, Measured, ModelChoice, ModelShape, Residual, Shipped,
};

use crate::args::{EngineArgs, positive};
use crate::config::{DeviceConfig, InstanceConfig, TokenBudget};
use crate::environment::Environment;
use crate::{console, instance, model_source};
use measure::{Measurement, Row};

/// The flags of `calibrate`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// What to measure.
    #[command(flatten)]
    engine: EngineArgs,
    /// How.
    #[command(flatten)]
    fit: FitArgs,
}

/// How to measure and fit.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Calibration")]
struct FitArgs {
    /// How many requests of how many prompt tokens come at once; what is measured is each step that this leads to
    #[arg(
        long,
        value_name = "NxLEN",
        value_delimiter = ',',
        default_value = "1x64,1x200,1x500,1x1024,1x2048,2x128,4x300,8x1024,16x64,32x128,64x32"
    )]
    rows: Vec<Row>,
    /// Tokens that each request gets
    #[arg(long, value_name = "N", default_value_t = 12)]
    output_len: usize,
    /// How often each row is measured; the median counts
    #[arg(long, value_name = "N", value_parser = positive, default_value = "3")]
    repeats: usize,
    /// Take peaks and links of this GPU from its data sheet [default: peaks are what the fastest steps reach]
    #[arg(long, value_name = "GPU")]
    gpu: Option<String>,
    /// The file to write
    #[arg(long, short, value_name = "FILE", default_value = "calibration.json")]
    output: PathBuf,
    /// Show no progress
    #[arg(long)]
    no_progress: bool,
}

/// Where the search for factors begins.
const START: Factors = Factors {
    overlap: 1.0,
    linear: 0.8,
    tile: 128,
    memory: 0.8,
    attention: 0.3,
    kv_read: 0.8,
    collective: 0.55,
    layer_s: 1e-6,
    seq_s: 1e-6,
    step_s: 1e-4,
};

/// The most steps that are printed.
const NUM_SHOWN: usize = 16;

/// Measures, fits, prints and writes.
///
/// # Errors
/// The flags, the model or the machine don't allow it, or too few steps were measured.
pub(crate) fn run(args: &CalibrateArgs, environment: &Environment) -> Result<()> {
    let fit = &args.fit;
    // Not after minutes of measuring.
    let named = fit.gpu.as_deref().map(Shipped::find).transpose()?;
    let mut config = InstanceConfig::resolve(&args.engine, environment)?;
    if args.engine.cache.pipeline_parallel_size > 1 {
        bail!("--pipeline-parallel-size: one stage is measured; leave it at 1");
    }
    if args.engine.cache.tensor_parallel_size > 1
        && named.is_none()
        && !config.device.is_simulated()
    {
        bail!("--tensor-parallel-size: name the GPUs, whose links are known then: --gpu h100-sxm");
    }
    // Every prompt token is to be computed, and most prompts in one step.
    config.scheduler.enable_prefix_caching = false;
    if config.token_budget == TokenBudget::Measured {
        config.token_budget = TokenBudget::Exactly(2048);
    }
    let found = model_source::find(&args.engine.model, config.weights, environment)?;
    let model = instance::sizes(&found.path)?;
    let shape = ModelShape::from_config(&model)?;
    let Measurement { steps, device, kv_tokens } = measure::steps(fit, &found.path, &config)?;
    if steps.len() < 8 {
        bail!("only {} kinds of steps were measured; add rows or repeats", steps.len());
    }
    let gpu = match (named, &config.device) {
        (Some(shipped), _) => shipped.gpu(),
        (None, DeviceConfig::Sim(sim)) => sim.gpu.clone(),
        (None, DeviceConfig::Cpu(_) | DeviceConfig::Cuda(_)) => {
            Gpu::reaching(&device, &shape, kv_tokens, &steps)
        }
    };
    let measured = Measured {
        source: format!("{} on {device}: {}", found.name(), console::command_line()),
        gpu: GpuChoice::Given(gpu),
        model: ModelChoice::Given(model),
        tensor_parallel_size: args.engine.cache.tensor_parallel_size,
        start: START,
        steps,
    };
    let calibration = measured.fit_widely()?;
    console::print(text(&calibration))?;
    write(&calibration, &fit.output)?;
    let (path, model) = (fit.output.display(), found.name());
    Ok(console::print(format_args!(
        "Written to {path}; try: stallfree bench run {model} --device sim:{path}\n"
    ))?)
}

fn write(calibration: &Calibration, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(calibration)? + "\n";
    std::fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// Says what was found and how well it fits.
fn text(calibration: &Calibration) -> String {
    let off = |step: &Residual| (step.predicted_ms / step.measured_ms - 1.0) * 100.0;
    let mut steps: Vec<&Residual> = calibration.residuals.iter().collect();
    steps.sort_by(|a, b| a.measured_ms.total_cmp(&b.measured_ms));
    let mut text = "measured ms  predicted ms  off by  step\n".to_owned();
    let every = steps.len().div_ceil(NUM_SHOWN).max(1);
    for step in steps.iter().step_by(every) {
        let (measured, predicted) = (step.measured_ms, step.predicted_ms);
        let off = off(step);
        text.push_str(&format!("{measured:>11.2} {predicted:>13.2} {off:>+6.0}%  {}\n", step.step));
    }
    let mut offs: Vec<f64> = steps.iter().map(|step| off(step).abs()).collect();
    offs.sort_by(f64::total_cmp);
    let at = |share: f64| offs.get(((offs.len() - 1) as f64 * share) as usize);
    if let (Some(median), Some(most)) = (at(0.5), at(0.9)) {
        let count = steps.len();
        text.push_str(&format!(
            "{count} kinds of steps: half within {median:.0} %, nine of ten within {most:.0} %\n"
        ));
    }
    text
}
