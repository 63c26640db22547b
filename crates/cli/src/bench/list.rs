//! `stallfree bench list`: what results there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::Args;
use stallfree_bench::{StoredResult, moment};

use crate::console;

/// The flags of `bench list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    /// Where results are
    #[arg(value_name = "DIR", default_value = "results")]
    pub(crate) dir: PathBuf,
}

/// The results of a run, a sweep, or a folder of files.
#[derive(Debug)]
struct Entry {
    newest: SystemTime,
    results: Vec<StoredResult>,
}

/// Prints an entry a folder, newest first.
///
/// # Errors
/// There is no such folder, or standard output can't be written.
pub(crate) fn run(args: &ListArgs) -> Result<()> {
    if !args.dir.is_dir() {
        bail!("there is no folder {} to look for results in", args.dir.display());
    }
    let mut entries: BTreeMap<PathBuf, Entry> = BTreeMap::new();
    for result in StoredResult::find(&args.dir) {
        let folder = home(&result.path, &args.dir);
        let new = || Entry { newest: SystemTime::UNIX_EPOCH, results: Vec::new() };
        let entry = entries.entry(folder).or_insert_with(new);
        entry.newest = entry.newest.max(result.written);
        entry.results.push(result);
    }
    if entries.is_empty() {
        console::note(format_args!("No results in {}", args.dir.display()));
    }
    let mut entries: Vec<(PathBuf, Entry)> = entries.into_iter().collect();
    entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.newest));
    for (folder, entry) in &entries {
        console::print(describe(folder, entry, &args.dir))?;
    }
    Ok(())
}

/// Returns the folder that a result belongs to: that of its sweep, or of its mode there, if it is of one, else its own.
fn home(path: &Path, root: &Path) -> PathBuf {
    let own = path.parent().unwrap_or(root);
    let above = own.parent().filter(|above| above.starts_with(root));
    let is_sweep = |folder: &Path| folder.join("sweep.csv").is_file();
    let belongs = |above: &&Path| is_sweep(above) || above.parent().is_some_and(is_sweep);
    above.filter(belongs).unwrap_or(own).to_owned()
}

fn describe(folder: &Path, entry: &Entry, root: &Path) -> String {
    let shown = folder.strip_prefix(root).ok().filter(|path| !path.as_os_str().is_empty());
    let shown = shown.unwrap_or(folder).display();
    let plots = std::fs::read_dir(folder.join("plots")).into_iter().flatten();
    let is_pdf = |path: &Path| path.extension().is_some_and(|ending| ending == "pdf");
    let plots =
        plots.filter(|entry| entry.as_ref().is_ok_and(|entry| is_pdf(&entry.path()))).count();
    let first = entry.results.first();
    let text = |name: &str| first.and_then(|result| result.text(name)).unwrap_or("?");
    let time = moment(entry.newest);
    let files = entry.results.len();
    let mut rates: Vec<f64> = entry.results.iter().filter_map(StoredResult::rate).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    let rates = match (rates.first(), rates.last()) {
        (Some(low), Some(high)) if rates.len() > 1 => format!(", {low} to {high} req/s"),
        (Some(rate), _) => format!(", {rate} req/s"),
        _ => String::new(),
    };
    let most =
        |name: &str| entry.results.iter().filter_map(|result| result.number(name)).reduce(f64::max);
    let stalls = match (most("stalls.longest_gap"), most("stalls.stalled_share")) {
        (Some(gap), Some(share)) => {
            format!("\n    Stalls: longest gap {gap:.3} s, stalled {:.2} %", share * 100.0)
        }
        _ => String::new(),
    };
    let gpus = match first
        .map_or((None, None), |result| (result.prefill_instances(), result.decode_instances()))
    {
        (Some((prefill, each)), Some((decode, other))) => {
            format!("PF:{prefill}, D:{decode}, TP:{each}x{other}")
        }
        _ => format!("GPUs:{}", first.map_or(1.0, StoredResult::num_gpus)),
    };
    let model =
        first.and_then(|result| result.text("model_name").or_else(|| result.text("model_id")));
    format!(
        "{time} - {shown} ({files} files, {plots} plots)\n    Config: {gpus}, Model:{}, Mode:{}, Dataset:{}{rates}{stalls}\n",
        model.unwrap_or("?"),
        text("deployment_mode"),
        text("dataset_name"),
    )
}
