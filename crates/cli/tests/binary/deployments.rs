//! Deployments of several instances, measured in the process.

use std::path::Path;

use serde_json::{Value, json};

use super::server::{own_port, stallfree, tiny_model};

fn run(folder: &Path, args: &[&str]) -> Value {
    let output = stallfree()
        .args(["bench", "run"])
        .args(args)
        .current_dir(folder)
        .output()
        .expect("a run with results");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {errors}");
    let text = std::fs::read_to_string(folder.join("r/result.json")).expect("a run with results");
    serde_json::from_str(&text).expect("a run with results")
}

#[test]
fn a_deployment_is_measured_in_virtual_and_in_real_time() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny_model());
    let simulated = ["opt-13b", "--device=sim:a100-80g-sxm", "--run-dir=r"];
    let computed = [
        model.path().to_str().unwrap(),
        "--device=cpu",
        "--kv-cache-memory-bytes=64M",
        "--max-num-batched-tokens=256",
        "--run-dir=r",
    ];
    let load =
        ["--num-prompts=20", "--request-rate=40", "--input-len=uniform:9-200", "--output-len=9"];
    let split = ["--mode=distserve", "--replica-spec", "2,1", "1,1", "1,1", "--partition-id=1"];
    let equal = ["--replica-spec", "1,1", "1,1", "--dispatch-policy=round-robin"];
    let check = |engine: &[&str], flags: &[&str], expected: Value| {
        let result = run(folder.path(), &[engine, &load, flags].concat());
        assert_eq!((&result["completed"], &result["failed"]), (&json!(20), &json!(0)), "{flags:?}");
        assert_eq!(result["output_lens"], json!(vec![9; 20]));
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(result[name], *value, "{name} of {flags:?}");
        }
        let batches = std::fs::read_to_string(folder.path().join("r/batch_metrics.csv")).unwrap();
        let mut instances: Vec<&str> =
            batches.lines().skip(1).filter_map(|line| line.rsplit(',').next()).collect();
        instances.sort_unstable();
        instances.dedup();
        instances.len()
    };
    let disaggregated = json!({
        "deployment_mode": "disaggregated", "num_gpus": 4, "num_prefill_instances": 1,
        "num_decode_instances": 2, "prefill_tensor_parallel_size": 2, "decode_tensor_parallel_size": 1,
    });
    assert_eq!(check(&simulated, &split, disaggregated), 3, "all instances computed");
    let simple = json!({ "deployment_mode": "simple", "num_gpus": 2, "num_instances": 2 });
    assert_eq!(check(&simulated, &equal, simple), 2);
    // They share the cores, and what would be GPUs are threads.
    let shared = json!({ "deployment_mode": "disaggregated", "num_gpus": 1 });
    assert_eq!(check(&computed, &["--mode=disaggregated"], shared), 2);
    let one = json!({ "deployment_mode": "simple", "num_gpus": 1, "tensor_parallel_size": 2 });
    assert_eq!(check(&computed, &["-tp=2"], one), 1);
}

/// Both modes in one figure, whether engines are simulated, computed in the process, or behind servers that the sweep starts.
#[test]
fn modes_are_compared_per_gpu() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny_model());
    let model = model.path().to_str().unwrap();
    let bench = |args: &[&str]| {
        let mut command = stallfree();
        let output = command.arg("bench").args(args).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let modes = ["sweep", "--modes=simple,disaggregated", "--ttft-slo=400", "--tpot-slo=60"];
    let load = ["--num-prompts=30", "--input-len=S", "--output-len=9"];
    let check = |flags: &[&str], under_test: &[&str], gpus: [f64; 2]| {
        let name = format!("--name={}", flags[0].trim_start_matches('-'));
        let out = bench(&[&modes, &flags[1..], &[&*name, "--"], under_test, &load].concat());
        let sweeps = std::fs::read_dir(folder.path().join("results/sweeps")).unwrap();
        let mut paths = sweeps.map(|entry| entry.unwrap().path());
        let of = |path: &std::path::PathBuf| path.to_str().unwrap().contains(flags[0]);
        let sweep = paths.find(of).expect("its folder");
        let time = sweep.to_str().unwrap().rsplit('_').next().unwrap().to_owned();
        assert!(time.parse::<u32>().is_ok(), "the time is in its name: {}", sweep.display());
        let text = std::fs::read_to_string(sweep.join("plots/comparison.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        for (curve, gpus) in json["curves"].as_array().unwrap().iter().zip(gpus) {
            assert_eq!(curve["num_gpus"].as_f64(), Some(gpus), "{curve}");
            assert_eq!(curve["points"].as_array().unwrap().len(), 2, "{curve}");
        }
        assert_eq!(json["curves"].as_array().unwrap().len(), 2);
        assert!(sweep.join("plots/comparison.pdf").is_file());
        assert!(out.contains("disaggregated (") && out.contains("longest gap s"), "{out}");
        let dirs = ["--simple-dir", "--nixl-dir"].into_iter().zip(["simple", "disaggregated"]);
        let dirs: Vec<String> =
            dirs.map(|(flag, dir)| format!("{flag}={}", sweep.join(dir).display())).collect();
        let compared = bench(&["compare", &*dirs[0], &*dirs[1], "--ttft-slo=400", "--tpot-slo=60"]);
        assert!(compared.contains("nixl") && compared.contains("simple"), "{compared}");
        let listed = bench(&["list"]);
        assert!(listed.contains("Stalls: longest gap"), "{listed}");
        assert!(
            listed.contains("/simple (2 files, ") && listed.contains("/disaggregated (2 files, ")
        );
    };
    let engine = ["opt-13b", "--device=sim:a100-80g-sxm", "--replica-spec", "2,1", "1,1"];
    check(&["simulated", "--vary=request-rate-per-gpu=0.5,2"], &engine, [1.0, 3.0]);
    let engine = [model, "--device=cpu", "--kv-cache-memory-bytes=64M"];
    check(&["computed", "--vary=request-rate=20,40"], &engine, [1.0, 1.0]);
    let port = own_port();
    let command = format!(
        "--serve-cmd={} serve {model} --device cpu --kv-cache-memory-bytes 64M --port {port}",
        env!("CARGO_BIN_EXE_stallfree")
    );
    let server = format!("--port={port}");
    let flags = ["served", "--vary=request-rate=20,40", &*command];
    check(&flags, &[&*server, "--replica-spec", "1,1", "1,1"], [1.0, 2.0]);
}

#[test]
fn a_plan_names_its_best_placement_and_how_to_serve_it() {
    let plan = |flags: &[&str]| {
        let output = stallfree().arg("plan").args(flags).output().unwrap();
        let (out, errors) = (output.stdout, output.stderr);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&out), text(&errors), output.status.success())
    };
    let load = ["--input-len=uniform:100-1500", "--output-len=30", "--num-prompts=60", "--top=2"];
    let on = ["opt-13b", "--device=sim:a100-80g-distserve", "--num-gpus=3", "--seed=4"];
    let slo = ["--ttft-slo=250", "--tpot-slo=100"];
    let (first, errors, done) = plan(&[&on, &load[..], &slo].concat());
    assert!(done, "{errors}");
    let lines: Vec<&str> = first.lines().collect();
    assert!(lines[0].contains("opt-13b on 3 x a100-80g-distserve") && lines[0].contains("90 %"));
    let head = lines.iter().position(|line| line.starts_with("req/s")).expect("a table");
    let rows: Vec<&str> =
        lines[head + 1..].iter().take_while(|line| line.contains(" x TP")).copied().collect();
    assert_eq!(rows.len(), 4, "two of either kind: {first}");
    assert!(rows.iter().all(|row| row.len() <= 100), "it fits a terminal: {first}");
    let rate = |row: &&str| row.split_whitespace().next().unwrap().parse::<f64>().unwrap();
    assert!(rows.iter().map(rate).is_sorted_by(|a, b| a >= b) && rate(&rows[0]) > 0.0, "{first}");
    let command = lines.last().unwrap();
    assert!(command.starts_with("stallfree serve opt-13b "), "{command}");
    assert!(!command.contains("sim:"), "it serves on real GPUs: {command}");
    assert_eq!(plan(&[&on, &load[..], &slo].concat()).0, first, "a seed gives one answer");

    for (flags, words) in [
        (&["opt-13b", "--device=cpu", "--num-gpus=2"][..], "--device sim:GPU"),
        (&["opt-66b", "--device=sim:a10-24g", "--num-gpus=1"], "does not fit"),
        (&[on[0], on[1], on[2], "--arrivals=replay"], "no rate"),
    ] {
        let (_, errors, done) = plan(&[flags, &slo].concat());
        assert!(!done && errors.contains(words), "{flags:?}: {errors}");
    }
    let strict = ["--ttft-slo=1", "--tpot-slo=1"];
    let (_, errors, done) = plan(&[&on, &load[..], &strict].concat());
    assert!(!done && errors.contains("no placement serves"), "{errors}");
}
