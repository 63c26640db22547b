//! The committed experiments: that their command gives them again, and that they are as near to the papers as promised.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

fn committed(experiment: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/experiments").join(experiment)
}

fn summary(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("summary.csv")).expect("a summary")
}

/// Runs an experiment, or the part of it that `flags` leave, and holds its summary against the committed one, whose rows are told
/// apart by their first `num_keys` cells. The last digits may differ where another libm rounds.
fn repeat(name: &str, num_keys: usize, flags: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = super::server::stallfree();
    command.args(["bench", "experiment", name, "--output"]).arg(folder.path()).args(flags);
    let output = command.output().expect("the binary");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (ours, theirs) = (summary(folder.path()), summary(&committed(name)));
    let key = |line: &str| line.split(',').take(num_keys).collect::<Vec<_>>().join(",");
    let keys: Vec<String> = ours.lines().map(key).collect();
    let is_ours = |line: &&str| flags.is_empty() || keys.contains(&key(line));
    let theirs: Vec<&str> = theirs.lines().filter(is_ours).collect();
    assert_eq!(ours.lines().count(), theirs.len(), "{name}: {ours}");
    for (ours, theirs) in ours.lines().zip(theirs) {
        for (ours, theirs) in ours.split(',').zip(theirs.split(',')) {
            let close = match (ours.parse::<f64>(), theirs.parse::<f64>()) {
                (Ok(ours), Ok(theirs)) => (ours - theirs).abs() <= 0.01 * theirs.abs().max(0.1),
                _ => ours == theirs,
            };
            assert!(close, "{name}: {ours}, but {theirs} is committed");
        }
    }
    folder
}

#[test]
fn experiments_repeat() {
    for name in ["generation_stalls", "high_tail_latency", "schedule"] {
        let folder = repeat(name, 0, &[]);
        let plots = folder.path().join("runs/yi-34b-tp2-pp1");
        let runs = std::fs::read_dir(plots).unwrap().count();
        assert!(runs >= 6, "{name}: records of {runs} policies");
    }
}

/// Returns a column of a folder's summary, by the row's first cells.
fn column(folder: &Path, num_keys: usize, name: &str) -> BTreeMap<String, f64> {
    let text = summary(folder);
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let mut names = lines.next().expect("a head").into_iter();
    let place = names.position(|column| column == name).expect("the column");
    let value = |cells: &[&str]| cells[place].parse().expect("a number");
    lines.map(|cells| (cells[..num_keys].join(" "), value(&cells))).collect()
}

fn within(what: &str, value: f64, low: f64, high: f64) {
    assert!((low..=high).contains(&value), "{what}: {value} is not from {low} to {high}");
}

/// Sarathi-Serve's figure 1a: the vLLM policy is silent for 65 s, takes 1.12 times as long, and stalls for seconds.
#[test]
fn generation_stalls_are_the_papers() {
    let of = |name: &str| column(&committed("generation_stalls"), 1, name);
    within("silence", of("silence_s")["vllm"], 65.0 * 0.8, 65.0 * 1.2);
    within("makespan", of("makespan_over_sarathi")["vllm"], 1.07, 1.17);
    within("longest plateau", of("longest_plateau_s")["vllm"], 2.0, 10.0);
    within("plateaus of sarathi", of("plateaus_over_1s")["sarathi"], 0.0, 0.0);
    within("plateaus of vllm", of("plateaus_over_1s")["vllm"], 20.0, 1000.0);
    let makespan = of("makespan_s");
    for (faster, slower) in [
        ("sarathi", "vllm"),
        ("sarathi", "chunked"),
        ("vllm", "orca"),
        ("orca", "fastertransformer"),
    ] {
        assert!(makespan[faster] < makespan[slower], "{faster} before {slower}");
    }
}

/// Tropical's rule keeps 90 % of its promises at a rate at which either plain mode breaks a quarter of them or more.
#[test]
fn multiplexing_keeps_promises_at_higher_rates() {
    let flags = ["--only=mooncake,vllm,distserve,multiplexing", "--rates=0.4"];
    let folder = repeat("tropical", 3, &flags);
    let both = column(folder.path(), 3, "both");
    let at = |deployment: &str| both[&format!("mooncake {deployment} 0.4")];
    within("multiplexing", at("multiplexing"), 0.9, 1.0);
    within("vllm", at("vllm"), 0.0, 0.75);
    within("distserve", at("distserve"), 0.0, 0.75);
}

/// Figure 1b: Sarathi's P99 time between tokens is flat at 0.30 to 0.35 s, that of vLLM grows to 1.3 or 1.4 s.
#[test]
fn tail_latency_is_the_papers() {
    let p99 = column(&committed("high_tail_latency"), 2, "p99_tbt_s");
    for rate in ["0.55", "0.7", "1"] {
        let of = |policy: &str| p99[&format!("{policy} {rate}")];
        within("sarathi", of("sarathi"), 0.30 * 0.75, 0.35 * 1.25);
        assert!(of("sarathi") < of("chunked") && of("chunked") < of("orca"), "{rate}");
        assert!(of("orca") < of("vllm"), "{rate}");
    }
    within("sarathi's growth", p99["sarathi 1"] / p99["sarathi 0.55"], 0.9, 1.1);
    within("vllm", p99["vllm 1"], 1.3 * 0.75, 1.4 * 1.25);
    within("vllm's growth", p99["vllm 1"] / p99["vllm 0.55"], 1.2, 10.0);
}

/// DistServe's figure 8a: 2.0 to 3.4 times vLLM's goodput, with each system's own step times.
#[test]
fn attainment_is_the_papers() {
    let flags = ["--only=8a,vllm,distserve", "--rates=0.5,0.75,1.75,2"];
    let folder = repeat("distserve", 5, &flags);
    let both = column(folder.path(), 5, "both");
    let at = |deployment: &str, rate: &str| both[&format!("8a opt-13b {deployment} {rate}")];
    // Their 90 % lie between these rates.
    within("vllm", at("vllm 1", "0.5"), 0.9, 1.0);
    within("vllm", at("vllm 1", "0.75"), 0.8, 0.9);
    within("distserve", at("distserve 3", "1.75"), 0.9, 1.0);
    within("distserve", at("distserve 3", "2"), 0.0, 0.9);
}
