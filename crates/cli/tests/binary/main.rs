//! The binary as a user starts it, with a tiny model.

mod admin;
mod bench;
mod deployments;
mod experiments;
mod instances;
mod nodes;
mod server;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use server::{Server, own_port, stallfree, tiny_model};

#[test]
fn answers_and_drains_on_sigterm() {
    let model = tiny_model();
    let mut server = Server::start(model.path(), &["--served-model-name", "tiny"]);
    let body = json!({ "model": "tiny", "prompt": "hello", "max_tokens": 5, "ignore_eos": true });
    let answer = server.post("/v1/completions", &body).unwrap();
    let answer: serde_json::Value = serde_json::from_reader(answer).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 5, "{answer}");

    // Long enough to be under way when the signal comes.
    let body = json!({
        "model": "tiny", "prompt": "hello", "max_tokens": 1500, "ignore_eos": true, "stream": true, "n": 4,
    });
    let mut stream = BufReader::new(server.post("/v1/completions", &body).unwrap());
    stream.read_line(&mut String::new()).unwrap();
    server.signal("TERM");
    server.wait_for("Finishing ");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(
        rest.trim_end().ends_with("data: [DONE]"),
        "{}",
        &rest[rest.len().saturating_sub(300)..]
    );
    assert_eq!(rest.matches(r#""finish_reason":"length""#).count(), 4);
    assert!(server.post("/v1/completions", &body).is_err(), "nobody is let in any more");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_log_that_can_not_be_written_is_lost_alone() {
    let model = tiny_model();
    let url = format!("http://127.0.0.1:{}/health", own_port());
    let port = url.rsplit(':').next().unwrap().trim_end_matches("/health");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = stallfree();
    command.arg("serve").arg(model.path()).args(["--host=127.0.0.1", "--port", port]);
    command.args(["--kv-cache-memory-bytes=64M", "--max-num-batched-tokens=256"]);
    let mut process = command.stderr(full).spawn().unwrap();
    while ureq::get(&url).call().is_err() {
        assert_eq!(process.try_wait().unwrap(), None, "it ended");
        std::thread::sleep(Duration::from_millis(20)); // until it listens
    }
    Command::new("kill").arg(process.id().to_string()).status().unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

#[test]
fn a_simulated_gpu_answers_over_http_without_any_file() {
    let flags = ["--device=sim:h100-sxm", "-tp", "2", "-pp=2", "--served-model-name=sim"];
    let mut server = Server::start(Path::new("llama-2-70b"), &flags);
    let body = json!({ "model": "sim", "prompt": "hello", "max_tokens": 20 });
    let answer = server.post("/v1/completions", &body).unwrap();
    let answer: serde_json::Value = serde_json::from_reader(answer).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 20, "{answer}");
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.bytes().all(|byte| byte.is_ascii_lowercase()), "{text:?}");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
}

/// The same answers wherever they are computed, and errors that name the flag.
#[test]
fn some_instances_prefill_and_others_decode() {
    let model = tiny_model();
    let ask = |flags: &[&str]| {
        let flags = [&["--served-model-name", "tiny"], flags].concat();
        let server = Server::start(model.path(), &flags);
        let answer = |prompt: &str| {
            let body = json!({
                "model": "tiny", "prompt": prompt, "max_tokens": 24, "ignore_eos": true, "temperature": 0,
                "logprobs": 1,
            });
            let answer = server.post("/v1/completions", &body).unwrap();
            let answer: serde_json::Value = serde_json::from_reader(answer).unwrap();
            assert_eq!(answer["usage"]["completion_tokens"], 24, "{answer}");
            // Sums over ranks are rounded differently: the tokens are the same, their logprobs nearly.
            answer["choices"][0]["logprobs"]["tokens"].clone()
        };
        ["hello", "a much longer prompt that fills several blocks", "x"].map(answer)
    };
    let expected = ask(&[]);
    for flags in [
        &["--mode=distserve"][..],
        &["--mode=distserve", "--replica-spec", "1,1", "2,1", "1,2", "--partition-id=1"],
        &["--mode=distserve", "--replica-spec", "2,1", "1,1", "--dispatch-policy=round-robin"],
        &["--replica-spec", "1,1", "1,1", "--dispatch-policy=least-requests"],
        &[
            "--mode=distserve",
            "--dispatch-policy=multiplexing",
            "--tpot-slo=200",
            "--schedule-policy=edf",
        ],
        &["--mode=distserve", "--dispatch-policy=slack", "--ttft-slo=60000", "--early-rejection"],
    ] {
        assert_eq!(ask(flags), expected, "{flags:?}");
    }
    for (flags, words) in [
        (&["--mode=distserve", "--partition-id=3"][..], "--partition-id 3"),
        (&["--replica-spec", "2"], "'2' is not TENSOR,PIPELINE"),
        (&["--dispatch-policy=best"], "there is no dispatch policy \"best\""),
        (
            &["--device=sim:a100-80g-sxm", "--instances-listen=127.0.0.1:0"],
            "--instances-listen: instances on simulated GPUs",
        ),
    ] {
        let output = stallfree().arg("serve").arg(model.path()).args(flags).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(words), "{flags:?}: {error}");
    }
}

#[test]
fn dummy_weights_need_only_a_configuration() {
    let model = tiny_model();
    for file in std::fs::read_dir(model.path()).unwrap() {
        let path = file.unwrap().path();
        if !path.ends_with("config.json") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mut server =
        Server::start(model.path(), &["--load-format=dummy", "--served-model-name=dummy"]);
    let check = |path: &str, mut body: serde_json::Value, text: &str| {
        for (key, value) in [
            ("model", json!("dummy")),
            ("seed", json!(1)),
            ("ignore_eos", json!(true)),
            ("stream", json!(true)),
        ] {
            body[key] = value;
        }
        let mut stream = String::new();
        server.post(path, &body).unwrap().read_to_string(&mut stream).unwrap();
        let events = stream.lines().filter_map(|line| line.strip_prefix("data: "));
        let json = events.filter_map(|event| serde_json::from_str(event).ok());
        // How many events the text comes in depends on how quickly it is read.
        let shown: String = json
            .filter_map(|event: serde_json::Value| {
                event["choices"][0].pointer(text)?.as_str().map(str::to_owned)
            })
            .collect();
        assert!(shown.chars().count() > 4, "{stream}");
    };
    let messages = json!([{ "role": "user", "content": "hello" }]);
    check("/v1/completions", json!({ "prompt": "h\u{e9}llo", "max_tokens": 40 }), "/text");
    let body = json!({ "messages": messages, "max_tokens": 40 });
    check("/v1/chat/completions", body, "/delta/content");
    let text = "h\u{e9}llo <|token_300|>";
    let count = server.post("/tokenize", &json!({ "model": "dummy", "prompt": text })).unwrap();
    let count: serde_json::Value = serde_json::from_reader(count).unwrap();
    assert_eq!(count["count"], text.len(), "every byte is a token");
    let tokens = json!({ "model": "dummy", "tokens": count["tokens"] });
    let back = server.post("/detokenize", &tokens).unwrap();
    let back: serde_json::Value = serde_json::from_reader(back).unwrap();
    assert_eq!(back["prompt"], text);
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_second_sigint_stops_at_once() {
    let model = tiny_model();
    let mut server = Server::start(model.path(), &[]);
    let name = model.path().to_str().unwrap();
    let body = json!({
        "model": name, "prompt": "hello", "max_tokens": 2000, "ignore_eos": true, "stream": true, "n": 64,
    });
    let mut stream = BufReader::new(server.post("/v1/completions", &body).unwrap());
    stream.read_line(&mut String::new()).unwrap();
    server.signal("INT");
    server.wait_for("Finishing ");
    server.signal("INT");
    assert_eq!(server.wait(), Some(130));
}

#[test]
fn flags_reach_the_front() {
    let model = tiny_model();
    let flags = [
        "--served-model-name=tiny",
        "--api-key=key",
        "--max-num-seqs=1",
        "--max-num-waiting=1",
        "--max-logprobs=3",
        "--enable-request-id-headers",
        r#"--allowed-origins=["http://a.example"]"#,
    ];
    let mut server = Server::start(model.path(), &flags);
    let path = "/v1/completions";
    let short = json!({ "prompt": "hello", "max_tokens": 2 });
    assert_eq!(server.ask(path, &short, &[]).status(), 401);
    let key = ("Authorization", "Bearer key");
    let headers = [key, ("X-Request-Id", "mine"), ("Origin", "http://a.example")];
    let answer = server.ask(path, &short, &headers);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-request-id"], "mine");
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://a.example");
    let foreign = server.ask(path, &short, &[key, ("Origin", "http://b.example")]);
    assert!(foreign.headers().get("access-control-allow-origin").is_none());
    let logprobs = json!({ "prompt": "hello", "max_tokens": 2, "logprobs": 4 });
    assert_eq!(server.ask(path, &logprobs, &[key]).status(), 400);

    // One runs, one waits, and a third is told when to come again.
    let long = json!({ "prompt": "hello", "max_tokens": 2000, "ignore_eos": true, "stream": true });
    let runs = server.ask(path, &long, &[key]);
    let mut runs = BufReader::new(runs.into_body().into_reader());
    runs.read_line(&mut String::new()).unwrap();
    let waits = server.ask(path, &long, &[key]);
    assert_eq!(waits.status(), 200);
    let refused = server.ask(path, &long, &[key]);
    assert_eq!(refused.status(), 429);
    let seconds = refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    drop((runs, waits));
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn what_can_not_work_fails_before_loading() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("127.0.0.1:{}", taken.local_addr().unwrap().port());
    let port_flag = format!("--port={}", taken.local_addr().unwrap().port());
    let check = |flags: &[&str], expected: &str| {
        let mut command = stallfree();
        let output = command.args(["serve", "/no/such/model"]).args(flags).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains(expected), "{flags:?}: {errors}");
    };
    check(&["--host=127.0.0.1", &port_flag], &format!("can't listen on {port}"));
    check(&["--port=0", "--scheduler=sarathy"], "did you mean `sarathi`");
    check(&["--port=0", "--max-num-seq=3"], "--max-num-seqs");
    check(&["--port=0"], "/no/such/model");
}

#[test]
fn chats_with_piped_input() {
    let model = tiny_model();
    let chat = |args: &[&str]| {
        let mut chat = stallfree();
        chat.arg("chat").args(args).args(["--max-tokens=4", "--temperature=0"]);
        let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        chat.stdin.take().unwrap().write_all(b"hello\n/reset\nhello\n").unwrap();
        let output = chat.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let template = "--chat-template={% for message in messages %}{{ message.content }}{% endfor %}";
    let path = model.path().to_str().unwrap();
    let embedded = chat(&[path, template]);
    assert!(embedded.lines().all(|answer| !answer.is_empty()), "{embedded:?}");
    let mut server = Server::start(model.path(), &[template]);
    assert_eq!(chat(&["--url", &server.url]), embedded);
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn short_commands_print_and_end() {
    let print = |arg: &str| {
        let output = stallfree().arg(arg).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let version = concat!("stallfree ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(print("version"), version);
    assert_eq!(print("--version"), version);
    assert!(print("schedulers").contains("\nsarathi\n"));
    assert!(print("models").contains("LlamaForCausalLM"));
    // A reader that leaves early is no error.
    let script = format!("{} schedulers | head -1", env!("CARGO_BIN_EXE_stallfree"));
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn benchmarks_a_server_and_an_engine() {
    let model = tiny_model();
    let results = tempfile::tempdir().unwrap();
    let bench = |args: &[&str]| {
        let output = stallfree().arg("bench").args(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (String::from_utf8(output.stdout).unwrap(), errors, output.status.success())
    };
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let load = [
        "--num-prompts=12",
        "--random-input-len=30",
        "--random-output-len=7",
        "--request-rate=200",
    ];
    let table = [
        "Successful requests:                     12",
        "Total generated tokens:                  84",
    ];

    let mut server = Server::start(model.path(), &[]);
    for (backend, file) in [("openai", "a.json"), ("openai-chat", "b.json")] {
        let folder = format!("--result-dir={}", results.path().display());
        let (url, name) =
            (format!("--base-url={}", server.url), format!("--result-filename={file}"));
        let flags = ["serve", &url, "--backend", backend, "--save-detailed", &folder, &name];
        let (out, errors, done) = bench(&[&flags, &load[..]].concat());
        assert!(done && table.iter().all(|line| out.contains(line)), "{out}{errors}");
        let result = read(&results.path().join(file));
        assert_eq!((&result["completed"], &result["backend"]), (&json!(12), &json!(backend)));
        assert_eq!(result["output_lens"], json!(vec![7; 12]));
        assert!(backend != "openai" || result["input_lens"] == json!(vec![30; 12]), "{result}");
        assert!(result["client_cpu_time"].as_f64() > Some(0.0));
    }
    let refused = bench(&[
        "serve",
        &format!("--base-url={}", server.url),
        "--model=other",
        "--num-prompts=1",
    ]);
    assert!(!refused.2 && refused.1.contains("other"), "{refused:?}");
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));

    let (model, run) = (model.path().to_str().unwrap(), results.path().join("run"));
    let flags = [
        "run",
        model,
        "--device=cpu",
        "--kv-cache-memory-bytes=64M",
        "--max-num-batched-tokens=256",
    ];
    let folder = format!("--run-dir={}", run.display());
    let (out, errors, done) = bench(&[&flags, &load[..], &[&folder]].concat());
    assert!(done && table.iter().all(|line| out.contains(line)), "{out}{errors}");
    assert_eq!(read(&run.join("result.json"))["completed"], 12);
    let command = std::fs::read_to_string(run.join("command.txt")).unwrap();
    assert!(command.starts_with("stallfree bench run ") && command.contains("--request-rate=200"));
    let (listed, ..) = bench(&["list", results.path().to_str().unwrap()]);
    assert!(listed.contains("run"), "{listed}");
}

#[test]
fn sweeps_go_on_where_they_ended_and_can_be_compared() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |args: &[&str]| {
        let mut command = stallfree();
        let output = command.arg("bench").args(args).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {errors}");
        (String::from_utf8(output.stdout).unwrap(), errors)
    };
    let engine = ["yi-34b", "--device=sim:a100-80g-pcie", "-tp", "2"];
    let load = ["--num-prompts=16", "--input-len=uniform:100-3000", "--output-len=30"];
    let vary = ["sweep", "--vary=scheduler=sarathi,vllm", "--vary=request-rate=1,4", "--name=s"];
    let slo = ["--ttft-slo=1500", "--tpot-slo=100"];
    let sweep = [&vary[..], &["--"], &engine, &load, &slo].concat();

    let (first, _) = bench(&sweep);
    assert_eq!(first.lines().count(), 5, "a line a run: {first}");
    let runs = folder.path().join("results/sweeps/s");
    let one = runs.join("scheduler=vllm_request-rate=4/result.json");
    std::fs::write(&one, "cut off").unwrap();
    let (again, errors) = bench(&sweep);
    assert!(errors.contains("3 of 4 runs are there already"), "{errors}");
    assert_eq!(first, again, "virtual time repeats itself");
    let csv = std::fs::read_to_string(runs.join("sweep.csv")).unwrap();
    assert!(csv.starts_with("scheduler,request-rate,completed,"), "{csv}");
    assert!(runs.join("plots/attainment.pdf").is_file());

    let (listed, _) = bench(&["list"]);
    assert!(listed.contains("sweeps/s (4 files, ") && listed.contains("GPUs:2"), "{listed}");
    let (compared, _) = bench(&[&["compare", "a=results/sweeps/s"], &slo[..]].concat());
    assert!(compared.contains("a sarathi (2 GPUs)") && compared.contains("90 %"), "{compared}");
    assert!(folder.path().join("plots/attainment.png").is_file());

    let capacity = ["capacity", "--tbt-slo=500", "--run-dir=c"];
    let (found, _) = bench(&[&capacity, &engine[..], &load].concat());
    assert!(found.contains("kept") && found.contains("missed"), "{found}");
    let json = std::fs::read_to_string(folder.path().join("c/capacity.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let (rate, each) = (json["capacity"].as_f64().unwrap(), json["capacity_per_gpu"].as_f64());
    assert_eq!(each, Some(rate / 2.0));
}

#[test]
fn a_sweep_starts_and_stops_its_server() {
    let (model, folder) = (tiny_model(), tempfile::tempdir().unwrap());
    let port = own_port();
    let binary = env!("CARGO_BIN_EXE_stallfree");
    let sweep = |command: &str| {
        let output = stallfree()
            .args(["bench", "sweep", "--vary=max-concurrency=1,2", "--serve-cmd", command, "--"])
            .args([&format!("--port={port}"), "--num-prompts=3", "--random-input-len=20"])
            .args(["--random-output-len=5"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.success())
    };
    let (errors, done) = sweep("echo no such model; exit 3");
    assert!(!done && errors.contains("exit status: 3"), "{errors}");
    let log = std::fs::read_to_string(folder.path().join("results/sweeps/sweep/server.log"));
    assert_eq!(log.unwrap(), "no such model\n");

    let model = model.path().display();
    let limits = "--device cpu --kv-cache-memory-bytes 64M --max-num-batched-tokens 256";
    // In the background of its shell: all of the group is stopped.
    let (errors, done) = sweep(&format!("{binary} serve {model} --port {port} {limits} & wait"));
    assert!(done, "{errors}");
    assert!(folder.path().join("results/sweeps/sweep/max-concurrency=2/result.json").is_file());
    std::net::TcpStream::connect(("127.0.0.1", port)).expect_err("the server is gone");
}

/// Calibrating a simulated device must find what makes its steps; a real one takes the same way but for its clock.
#[test]
fn a_calibration_predicts_what_it_was_fitted_to() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = stallfree().args(args).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let check = |model: &str, flags: &[&str], sim: &str| {
        let device = format!("--device={sim}");
        run(&[&["calibrate", model, &device], flags].concat());
        let throughput = |device: &str| {
            let load = ["--num-prompts=64", "--request-rate=4", "--input-len=M", "--output-len=S"];
            let device = format!("--device={device}");
            run(&[&["bench", "run", model, &device, "--run-dir=r"], &load[..], flags].concat());
            let text = std::fs::read_to_string(folder.path().join("r/result.json")).unwrap();
            let result: serde_json::Value = serde_json::from_str(&text).unwrap();
            (result["output_throughput"].as_f64().unwrap(), result["p99_itl_ms"].as_f64().unwrap())
        };
        let (truth, fitted) = (throughput(sim), throughput("sim:calibration.json"));
        let ratios = [fitted.0 / truth.0, fitted.1 / truth.1];
        let is_close = |ratio: &f64| (0.93..1.07).contains(ratio);
        assert!(ratios.iter().all(is_close), "{model}: {truth:?} became {fitted:?}");
    };
    check("yi-34b", &["-tp=2"], "sim:a100-80g-pcie");
    check("llama-3-8b", &[], "sim:h100-sxm");

    let model = tiny_model();
    let flags = ["--device=cpu", "--kv-cache-memory-bytes=64M", "--repeats=1", "--output=cpu.json"];
    let rows = "--rows=1x20,2x30,4x40,8x50";
    let fitted = run(&[&["calibrate", model.path().to_str().unwrap(), rows], &flags[..]].concat());
    assert!(fitted.contains("sim:cpu.json"), "{fitted}");
    let simulated = ["--device=sim:cpu.json", "--num-prompts=5", "--input-len=50"];
    run(&[&["bench", "run", model.path().to_str().unwrap()], &simulated[..]].concat());
}
