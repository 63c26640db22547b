//! What measuring commands say of numbers that can't be, and of what they did to the workload.

use std::path::Path;

use super::server::stallfree;

/// Runs a command line; returns whether it succeeded, and what it wrote, output before errors.
fn run(folder: &Path, line: &str) -> (bool, String) {
    let mut command = stallfree();
    let output =
        command.args(line.split_whitespace()).current_dir(folder).output().expect("the binary");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A run of few requests on a simulated GPU.
const RUN: &str = "bench run llama-3-8b --device sim:h100-sxm --no-progress --num-prompts 5";

#[test]
fn what_can_not_be_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let check = |line: &str, words: &[&str]| {
        let (done, text) = run(folder.path(), line);
        let is_told = words.iter().all(|word| text.contains(word)) && !text.contains("panicked");
        assert!(!done && is_told, "{line}: {text}");
        assert!(text.lines().count() <= 5, "{line}: one error: {text}");
    };
    let with = |flags: &str| format!("{RUN} {flags}");
    let sim = "bench run llama-3-8b --device sim:h100-sxm";
    check(&format!("{sim} --num-prompts 1000000000"), &["--num-prompts", "10000000;"]);
    check(&with("--num-gpu-blocks-override 1000000000000"), &["--num-gpu-blocks-override"]);
    check(&with("--kv-cache-memory-bytes 1M"), &["room for no block", "--kv-cache-memory-bytes"]);
    check(&with("--block-size 1000000000"), &["room for no block", "--block-size"]);
    check(&with("--random-prefix-len 1000000000000"), &["--random-prefix-len", "16777216"]);
    let plan = "plan llama-3-8b --device sim:h100-sxm --ttft-slo 100 --tpot-slo 100";
    check(&format!("{plan} --num-gpus 1000000000000"), &["--num-gpus", "512"]);
    for flag in [
        "--random-output-len 0",
        "--random-input-len 0",
        "--max-concurrency 0",
        "--stall-factor 0",
        "--stall-factor nan",
    ] {
        let name = flag.split_once(' ').unwrap().0;
        check(&with(flag), &[name]);
        check(&format!("bench serve {flag}"), &[name]);
    }
    check("calibrate llama-3-8b --device sim:h100-sxm --repeats 0", &["--repeats"]);
    check("bench step llama-3-8b --device sim:h100-sxm --repeats 0", &["--repeats"]);
    check("bench list nowhere", &["there is no folder nowhere"]);
    for (name, words) in [
        ("generation_stalls", "there are chunked, fastertransformer, "),
        ("capacity", "there are conversations, "),
        ("chunk_size", "nothing to choose from"),
        ("tropical", "there are distserve, longbench, mooncake, multiplexing, multiplexing-edf, "),
        ("distserve", "there are 8a, 8b, 9b, distserve, sarathi-same-steps, "),
    ] {
        let line = format!("bench experiment {name} --only sarathy --output e");
        check(&line, &["--only", "sarathy", words]);
    }
}

#[test]
fn runs_of_one_second_keep_their_results_apart() {
    let folder = tempfile::tempdir().unwrap();
    let num_runs = 4;
    for _ in 0..num_runs {
        let (done, text) = run(folder.path(), &format!("{RUN} --result-dir rr"));
        assert!(done, "{text}");
    }
    let kept = std::fs::read_dir(folder.path().join("rr/random")).unwrap();
    let kept = kept.filter(|entry| entry.as_ref().unwrap().path().join("result.json").is_file());
    assert_eq!(kept.count(), num_runs);
}

#[test]
fn what_was_changed_or_not_found_out_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let check = |line: &str, words: &str, is_said: bool| {
        let (done, text) = run(folder.path(), line);
        assert!(done && text.contains(words) == is_said, "{line}: {text}");
    };
    let with = |flags: &str| format!("{RUN} --run-dir r {flags}");
    let cut = "5 of 5 requests were cut to 8192 tokens";
    check(&with("--random-input-len 1000000 --random-output-len 9"), cut, true);
    check(&with("--random-input-len 8000 --random-output-len 192"), "were cut", false);
    // It is what the user asked for.
    check(&with("--max-total-len 100"), "were cut", false);

    let capacity = RUN.replace("bench run", "bench capacity");
    check(&format!("{capacity} --tbt-slo 1e9"), "Capacity: at least ", true);
    check(&format!("{capacity} --tbt-slo 1e9"), "no limit was reached", true);
    let plan = RUN.replace("bench run", "plan") + " --num-gpus 1 --output-len 3";
    check(&format!("{plan} --ttft-slo 1e9 --tpot-slo 1e9"), "no limit was reached", true);
    check(&format!("{plan} --ttft-slo 900.5 --tpot-slo 30"), "TTFT <= 900.5 ms", true);
    check(&format!("{plan} --ttft-slo 900.5 --tpot-slo 30"), "llama-3-8b stands for", true);
    let opt = plan.replace("llama-3-8b", "opt-13b");
    let only = "opt-13b can only be served with --device sim:GPU: architecture";
    check(&format!("{opt} --ttft-slo 900 --tpot-slo 30"), only, true);
}
