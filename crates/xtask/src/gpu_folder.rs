//! The folder that goes onto a machine with a GPU: programs, scripts and a model's shape; no cargo is needed there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::status;

/// The programs: the package's binary, and the checks that need a GPU.
const BINARY: &str = "stallfree";
const EXAMPLES: &[&str] =
    &["gpu_check", "gpu_parity", "gpu_hand_over", "gpu_ranks", "teacher_forced"];
const PACKAGES: &[&str] = &["stallfree", "stallfree-kernels", "stallfree-worker"];
/// What lies beside them in `benches/gpu`.
const FILES: &[&str] = &["run.sh", "llama_parity.py", "llama-3-8b/config.json"];
/// The folder has to stay small enough to be sent about.
const MAX_BYTES: u64 = 64 << 20;

/// Builds the programs and puts everything into `folder`.
pub(crate) fn build(root: &Path, folder: &Path) -> Result<()> {
    let target = xtask::metadata(root)?.target_directory.join("release");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--bin", BINARY]).current_dir(root);
    cargo.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    cargo.args(EXAMPLES.iter().flat_map(|example| ["--example", example]));
    status(&mut cargo)?;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let examples = EXAMPLES.iter().map(|example| (*example, target.join("examples").join(example)));
    let mut bytes = 0;
    for (name, program) in [(BINARY, target.join(BINARY))].into_iter().chain(examples) {
        let to = folder.join(name);
        status(Command::new("strip").arg("-o").arg(&to).arg(program))?;
        bytes += std::fs::metadata(&to)?.len();
    }
    for file in FILES {
        let to = folder.join(file);
        std::fs::create_dir_all(to.parent().unwrap_or(folder))?;
        bytes += std::fs::copy(root.join("benches/gpu").join(file), &to).context(*file)?;
    }
    if bytes > MAX_BYTES {
        bail!("{} is {} MiB, more than {}", folder.display(), bytes >> 20, MAX_BYTES >> 20);
    }
    Ok(())
}
