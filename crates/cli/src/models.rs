//! `stallfree models`: which architectures can be served, and which models are on this machine.

use std::path::{Path, PathBuf};

use anyhow::Result;
use stallfree_models::ARCHITECTURES;

use crate::console::{bytes, print, wrap};
use crate::download::hub_cache;
use crate::environment::Environment;
use crate::model_source::{self, DEFAULT_MODEL};

/// Prints both lists.
///
/// # Errors
/// Standard output can't be written.
pub(crate) fn print_all(environment: &Environment) -> Result<()> {
    print("Architectures\n")?;
    for architecture in ARCHITECTURES {
        print(format_args!("  {}\n", architecture.names.join(", ")))?;
        print(wrap(architecture.doc, 4, 100))?;
    }
    print("\nModels on this machine\n")?;
    let found = on_this_machine(environment);
    for (name, path) in &found {
        print(format_args!("  {name}, {}\n    {}\n", bytes(size(path)), path.display()))?;
    }
    if found.is_empty() {
        print("  none; `stallfree serve` downloads the default model\n")?;
    }
    Ok(())
}

/// Returns the models in the caches, by name, with their folders or files.
pub(crate) fn on_this_machine(environment: &Environment) -> Vec<(String, PathBuf)> {
    let gguf = model_source::default_gguf(environment);
    let default = gguf.is_file().then(|| (format!("{DEFAULT_MODEL} (default)"), gguf));
    default.into_iter().chain(hub_cache::models(&environment.hub)).collect()
}

/// Returns the bytes of a file, or of the files in a folder, links followed.
pub(crate) fn size(path: &Path) -> u64 {
    let of_file = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| of_file(&entry.path())).sum(),
        Err(_) => of_file(path),
    }
}
