//! Runs on real devices, kept so that an experiment that was interrupted can go on.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stallfree_bench::run::RunOutcome;
use stallfree_bench::{RequestRecord, Summary};

use crate::bench::results::About;
use crate::bench::run::{Ran, RunArgs};

/// Everything of a run but its batches, its requests' stages and objectives.
#[derive(Serialize, Deserialize)]
struct Kept {
    command: String,
    about: About,
    config: Map<String, Value>,
    requests: Vec<RequestRecord>,
}

/// Keeps a run in a file.
pub(super) fn keep(path: &Path, command: &str, ran: &Ran) -> Result<()> {
    let kept = Kept {
        command: command.to_owned(),
        about: ran.about.clone(),
        config: ran.config.clone(),
        requests: ran.outcome.requests.clone(),
    };
    let write = || -> Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        Ok(fs::write(path, serde_json::to_vec(&kept)?)?)
    };
    write().with_context(|| format!("{} can't be written", path.display()))
}

/// Returns a run that was kept; `None` if the file is missing or of another command.
pub(super) fn find(path: &Path, command: &str, args: &RunArgs) -> Result<Option<Ran>> {
    if !path.exists() {
        return Ok(None);
    }
    let what = || format!("{} can't be read; remove it to have the run made again", path.display());
    let kept: Kept =
        serde_json::from_slice(&fs::read(path).with_context(what)?).with_context(what)?;
    if kept.command != command {
        return Ok(None);
    }
    let Kept { about, config, requests, .. } = kept;
    let summary = Summary::new(&requests, args.results.summary_config(about.num_gpus)?);
    let outcome = RunOutcome { requests, ..RunOutcome::default() };
    Ok(Some(Ran { about, outcome, summary, config }))
}
