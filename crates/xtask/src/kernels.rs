//! Every CUDA kernel compiles, fits and does not spill: no GPU needed.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::status;

/// Brings NVRTC as a user would, into the target folder, and compiles; anything missing fails.
pub(crate) fn check(root: &Path, binary: &Path) -> Result<()> {
    let target = xtask::metadata(root)?.target_directory;
    let cache = target.join("cuda");
    status(
        Command::new(binary).args(["doctor", "--fetch", "nvrtc"]).env("STALLFREE_CACHE", &cache),
    )?;
    // The whole workspace, so that the dependencies that its tests use serve here, too.
    status(
        Command::new(env!("CARGO"))
            .args(["build", "--workspace", "--example=compile_kernels"])
            .current_dir(root),
    )?;
    status(Command::new(target.join("debug/examples/compile_kernels")).arg(cache.join("libraries")))
}
