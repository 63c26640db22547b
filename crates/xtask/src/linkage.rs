//! The release binary starts on any machine of its platform: it links to the C library's family alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

const ALLOWED: &[&str] = &[
    "linux-vdso",
    "libc.so",
    "libm.so",
    "libgcc_s.so",
    "libpthread.so",
    "libdl.so",
    "librt.so",
    "ld-linux",
];

/// Fails if `binary` needs a library beyond the C library's family.
pub(crate) fn check(binary: &Path) -> Result<()> {
    let out = Command::new("ldd").arg(binary).output().context("ldd could not be run")?;
    let listing = String::from_utf8_lossy(&out.stdout);
    let alien: Vec<_> =
        listing.lines().filter(|line| !ALLOWED.iter().any(|lib| line.contains(lib))).collect();
    if alien.is_empty() && out.status.success() {
        return Ok(());
    }
    bail!("{} needs more than the C library's family:\n{}", binary.display(), alien.join("\n"))
}
