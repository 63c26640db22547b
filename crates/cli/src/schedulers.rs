//! `stallfree schedulers`: the policies, where they come from, what can be set.

use anyhow::Result;
use stallfree_scheduler::POLICIES;

use crate::console::{print, wrap};

/// Lines stay within this many columns.
const WIDTH: usize = 100;

/// Prints every policy of the registry.
///
/// # Errors
/// Standard output can't be written.
pub(crate) fn print_all() -> Result<()> {
    print(describe())?;
    Ok(())
}

/// Describes every policy: what it does, where it comes from, what can be set.
fn describe() -> String {
    let mut text =
        "Choose with --scheduler NAME, set with --scheduler-config KEY=VALUE.\n".to_owned();
    for policy in POLICIES {
        text += &format!("\n{}\n", policy.name);
        text += &wrap(policy.doc, 2, WIDTH);
        text += &wrap(&format!("Source: {}", policy.paper), 2, WIDTH);
        for setting in policy.settings {
            text += &format!("  {} (default: {})\n", setting.name, setting.default);
            text += &wrap(setting.doc, 6, WIDTH);
        }
    }
    text
}

#[cfg(test)]
mod tests;
