//! The two towers: dependencies point down, and only the command line sees both sides.

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tower {
    Ground,
    Planning,
    Device,
    Top,
}
use Tower::{Device, Ground, Planning, Top};

/// Each package's level and tower, as in `docs/architecture.md`.
const LEVELS: &[(&str, u8, Tower)] = &[
    ("stallfree-core", 0, Ground),
    ("stallfree-kvcache", 1, Planning),
    ("stallfree-tokenizer", 1, Planning),
    ("stallfree-scheduler", 2, Planning),
    ("stallfree-engine", 3, Planning),
    ("stallfree-server", 4, Planning),
    ("stallfree-cluster", 4, Planning),
    ("stallfree-bench", 4, Planning),
    ("stallfree-device", 1, Device),
    ("stallfree-comm", 2, Device),
    ("stallfree-kernels", 3, Device),
    ("stallfree-models", 4, Device),
    ("stallfree-transfer", 4, Device),
    ("stallfree-worker", 5, Device),
    ("stallfree-sim", 5, Device),
    ("stallfree", 6, Top),
    // Development only.
    ("stallfree-testkit", 4, Top),
    ("stallfree-benches", 7, Top),
    ("stallfree-examples", 7, Top),
    ("xtask", 7, Top),
];

fn place(package: &str) -> Option<(u8, Tower)> {
    LEVELS.iter().find(|(name, ..)| *name == package).map(|&(_, level, tower)| (level, tower))
}

/// Returns every dependency that points up, sideways or across the towers.
pub(crate) fn check(edges: &[(String, Vec<String>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (package, dependencies) in edges {
        let Some((level, tower)) = place(package) else {
            found.push(format!(
                "{package}: give it a level and a tower in crates/xtask/src/towers.rs"
            ));
            continue;
        };
        for dependency in dependencies {
            let Some((below, side)) = place(dependency) else { continue };
            if below >= level {
                found.push(format!("{package} depends on {dependency}, which is not below it"));
            }
            if tower != Top && side != Ground && side != tower {
                found.push(format!("{package} depends on {dependency} of the other tower"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::check;

    fn edge(from: &str, to: &str) -> Vec<String> {
        check(&[(from.to_owned(), vec![to.to_owned()])])
    }

    #[test]
    fn downward_edges_pass_and_others_do_not() {
        assert!(edge("stallfree-engine", "stallfree-scheduler").is_empty());
        assert_eq!(edge("stallfree-scheduler", "stallfree-engine").len(), 1);
        assert_eq!(edge("stallfree-server", "stallfree-kernels").len(), 1);
        assert_eq!(edge("stallfree-newcomer", "stallfree-core").len(), 1);
    }
}
