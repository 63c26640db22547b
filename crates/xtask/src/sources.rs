//! What the source files themselves have to keep to.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Lines of a file, its inline tests left out, from which on it holds more than one noun.
const MAX_LINES: usize = 800;

/// Where unsafe code may stand, each block with its SAFETY line.
const UNSAFE: &[&str] = &["crates/device/", "crates/comm/", "crates/transfer/", "kernels/"];

/// Where HTTP may be known.
const HTTP: &[&str] = &["crates/server/", "crates/cluster/", "crates/cli/", "crates/xtask/"];

/// Returns every file of the tree at `root` that breaks a rule.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in files(root)? {
        let Ok(text) = std::fs::read_to_string(root.join(&path)) else { continue };
        if path.ends_with(".rs") || path.ends_with(".cu") || path.ends_with(".cuh") {
            check_source(&path, &text, &mut found);
        }
        check_todo(&path, &text, &mut found);
    }
    Ok(found)
}

fn files(root: &Path) -> Result<Vec<String>> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git ls-files could not be run")?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
}

fn check_source(path: &str, text: &str, found: &mut Vec<String>) {
    let tests = path.contains("/tests/") || path.ends_with("tests.rs");
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let lines = code.lines().count();
    if lines > MAX_LINES && !tests {
        found.push(format!("{path}: {lines} lines, at most {MAX_LINES}; give a part its own noun"));
    }
    if path.starts_with("crates/xtask/") || tests {
        return;
    }
    let under = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    if code.contains("unsafe ") && !path.ends_with(".cu") && !under(UNSAFE) {
        found.push(format!("{path}: unsafe code belongs into {}", UNSAFE.join(", ")));
    }
    if (code.contains("use axum") || code.contains("axum::")) && !under(HTTP) {
        found.push(format!("{path}: HTTP belongs into {}", HTTP.join(", ")));
    }
}

/// A note of unfinished work names the issue where it is settled: `TODO(#12)`.
fn check_todo(path: &str, text: &str, found: &mut Vec<String>) {
    if path.starts_with("crates/xtask/") || path.ends_with(".md") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        let bare = line.contains("TODO") && !line.contains("TODO(#");
        if bare || line.contains("FIXME") {
            found.push(format!("{path}:{}: name the issue: TODO(#number)", number + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{check_source, check_todo};

    fn check(path: &str, text: &str, expected: usize) {
        let mut found = Vec::new();
        check_source(path, text, &mut found);
        check_todo(path, text, &mut found);
        assert_eq!(found.len(), expected, "{path}: {found:?}");
    }

    #[test]
    fn each_rule_finds_its_breach() {
        check("crates/core/src/ids.rs", "fn f() {}\n", 0);
        check("crates/core/src/ids.rs", "unsafe { f() }\n", 1);
        check("kernels/src/cpu.rs", "unsafe { f() }\n", 0);
        check("crates/engine/src/engine.rs", "use axum::Router;\n", 1);
        check("crates/core/src/ids.rs", "// TODO: later\n", 1);
        check("crates/core/src/ids.rs", "// TODO(#7): later\n", 0);
        check("crates/core/src/ids.rs", &"fn f() {}\n".repeat(801), 1);
    }
}
