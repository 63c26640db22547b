//! Pages that come from the code: `cargo xtask docs` writes them, and a stale one is untidy.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use stallfree_scheduler::POLICIES;

/// The page of the scheduling policies.
const SCHEDULERS: &str = "docs/schedulers.md";

/// Writes every generated page.
///
/// # Errors
/// A page can't be written.
pub fn write(root: &Path) -> Result<()> {
    std::fs::write(root.join(SCHEDULERS), schedulers()).context(SCHEDULERS)
}

/// Returns the pages that are not what the code says.
pub(crate) fn check(root: &Path) -> Vec<String> {
    let there = std::fs::read_to_string(root.join(SCHEDULERS)).unwrap_or_default();
    let stale = there != schedulers();
    stale.then(|| format!("{SCHEDULERS} is stale; run `cargo xtask docs`")).into_iter().collect()
}

fn schedulers() -> String {
    let mut page =
        "# Schedulers\n\nWhat `--scheduler` takes, and what `--scheduler-config KEY=VALUE` sets. \
        Written by `cargo xtask docs`.\n"
            .to_owned();
    for policy in POLICIES {
        // Writing to a string can't fail.
        let _ =
            write!(page, "\n## {}\n\n{}\n\nSource: {}\n", policy.name, policy.doc, policy.paper);
        if !policy.settings.is_empty() {
            page.push_str("\n| setting | default | what it does |\n|---|---|---|\n");
        }
        for setting in policy.settings {
            let _ =
                writeln!(page, "| `{}` | {} | {} |", setting.name, setting.default, setting.doc);
        }
    }
    page
}
