//! `stallfree bench list`: what results there are.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use clap::Args;

use crate::console;

/// The flags of `bench list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    /// Where results are
    #[arg(value_name = "DIR", default_value = "results")]
    pub(crate) dir: PathBuf,
}

/// Prints one entry a folder with results.
///
/// # Errors
/// Standard output can't be written.
pub(crate) fn run(args: &ListArgs) -> Result<()> {
    let mut found = Vec::new();
    find(&args.dir, 0, &mut found);
    found.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
    for (_, path) in found {
        console::print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

/// How deep results lie below their folder.
const MAX_DEPTH: usize = 6;

fn find(folder: &Path, depth: usize, found: &mut Vec<(SystemTime, PathBuf)>) {
    let result = folder.join("result.json");
    if let Ok(changed) = result.metadata().and_then(|metadata| metadata.modified()) {
        found.push((changed, folder.to_owned()));
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
        if depth < MAX_DEPTH {
            find(&path, depth + 1, found);
        }
    }
}
