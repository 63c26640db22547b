//! The project's own checks, as `cargo xtask <command>`.

mod e2e;
mod gpu_folder;
mod kernels;
mod linkage;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask <command>
  tidy     dependency levels, unsafe code, file sizes, TODOs, generated pages (also a test)
  docs     writes the pages that come from the code
  linkage  the release binary needs nothing beyond the C library's family
  kernels  every CUDA kernel compiles for each architecture, without spilling; fetches NVRTC, needs no GPU
  gpu-folder DIR  builds what goes onto a machine with a GPU: the binary, the checks, run.sh
  e2e      official clients against the release binary with the default model";

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => {
            let found = xtask::tidy(&root()?)?;
            if found.is_empty() { Ok(()) } else { bail!("{}", found.join("\n")) }
        }
        Some("docs") => xtask::write_generated(&root()?),
        Some("linkage") => linkage::check(&release_binary()?),
        Some("kernels") => kernels::check(&root()?, &release_binary()?),
        Some("gpu-folder") => {
            let folder = std::env::args_os().nth(2).context("gpu-folder needs a folder's name")?;
            gpu_folder::build(&root()?, Path::new(&folder))
        }
        Some("e2e") => e2e::run(&root()?, &release_binary()?),
        _ => bail!(USAGE),
    }
}

/// Returns the workspace's folder.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.ancestors().nth(2).context("xtask lies two levels below the root")?.to_owned())
}

/// Returns the path of the release binary, built by the caller.
fn release_binary() -> Result<PathBuf> {
    let path = xtask::metadata(&root()?)?.target_directory.join("release/stallfree");
    if !path.is_file() {
        bail!("{} is missing; run `cargo build --release` first", path.display());
    }
    Ok(path)
}

/// Runs a command to its end.
fn status(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?} could not be run"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed: {status}") }
}
