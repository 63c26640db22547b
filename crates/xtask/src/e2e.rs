//! End-to-end tests: official clients against the release binary with the default model.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::status;

/// Installs the clients into a virtual environment of the target folder and runs the suite; anything missing fails.
pub(crate) fn run(root: &Path, binary: &Path) -> Result<()> {
    let target = xtask::metadata(root)?.target_directory;
    let venv = target.join("e2e-venv");
    let python = venv.join("bin/python");
    let suite = root.join("crates/xtask/e2e");
    if !python.is_file() {
        status(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    status(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(suite.join("requirements.txt")),
    )?;
    status(
        Command::new(&python)
            .args(["-m", "pytest", "-q", "--strict-markers"])
            .arg(&suite)
            .env("STALLFREE_BINARY", binary),
    )
}
