//! Checks of the source tree that no compiler makes; they run as a test, too.

mod generated;
mod sources;
mod towers;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
pub use generated::write as write_generated;

/// What `cargo metadata` says of the workspace.
#[derive(Debug)]
pub struct Metadata {
    /// Where build output goes.
    pub target_directory: PathBuf,
    /// Each workspace package and those of its dependencies (not its dev-dependencies) that are workspace packages too.
    pub edges: Vec<(String, Vec<String>)>,
}

/// Asks cargo about the workspace at `root`.
///
/// # Errors
/// Cargo cannot be run or its answer is not understood.
pub fn metadata(root: &Path) -> Result<Metadata> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo metadata could not be run")?;
    if !out.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr));
    }
    let json: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let packages = json["packages"].as_array().context("cargo metadata lists no packages")?;
    let names: Vec<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let ours = |package: &serde_json::Value| -> Vec<String> {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        dependencies
            .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
            .map(|dependency| text(&dependency["name"]))
            .filter(|name| names.contains(name))
            .collect()
    };
    Ok(Metadata {
        target_directory: text(&json["target_directory"]).into(),
        edges: packages.iter().map(|package| (text(&package["name"]), ours(package))).collect(),
    })
}

/// Returns everything untidy in the tree at `root`, a line each.
///
/// # Errors
/// The tree cannot be read.
pub fn tidy(root: &Path) -> Result<Vec<String>> {
    let mut found = towers::check(&metadata(root)?.edges);
    found.extend(sources::check(root)?);
    found.extend(generated::check(root));
    Ok(found)
}
