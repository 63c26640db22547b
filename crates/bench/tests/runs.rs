//! Engines under a workload, in virtual and in real time.

use std::sync::Arc;
use std::time::Duration;

use stallfree_bench::metrics::SummaryConfig;
use stallfree_bench::run::{
    Detail, Progress, Recorder, RunConfig, RunOutcome, in_real_time, in_virtual_time,
};
use stallfree_bench::workload::{Arrivals, Lengths, Source};
use stallfree_bench::{RunFolder, Summary, Workload, WorkloadConfig};
use stallfree_core::WallClock;
use stallfree_engine::{Engine, EngineInfo, Replay, ThreadedEngine};
use stallfree_scheduler::{Planner, SchedulerConfig};
use stallfree_testkit::{MockConfig, MockExecutor, Pace, VOCAB_SIZE};

fn workload(arrivals: Arrivals) -> Workload {
    let lengths = |text: &str| text.parse::<Lengths>().expect(text);
    let (prompt, output) = (lengths("uniform:50-400"), lengths("uniform:1-40"));
    let recipe = WorkloadConfig {
        source: Source::Drawn { name: "test".to_owned(), prompt, output },
        arrivals,
        num_requests: Some(60),
        max_total_len: None,
        output_len: None,
        shared_prefix_len: 0,
        seed: 1,
    };
    recipe.generate().expect("a workload")
}

fn engine(policy: &str, mock: MockConfig, recorder: &Recorder) -> Engine {
    let config = SchedulerConfig {
        max_model_len: 1024,
        // A chunk takes three times as long as a decode at most, a whole prompt fourteen times.
        max_num_batched_tokens: if policy == "sarathi" { 64 } else { 2048 },
        ..SchedulerConfig::default()
    };
    let info = EngineInfo {
        scheduler: policy.to_owned(),
        max_model_len: config.max_model_len,
        kv: mock.kv,
        enable_prefix_caching: true,
    };
    let planner = Planner::new(config, mock.kv, policy).expect(policy);
    Engine::new(planner, MockExecutor::boxed(mock), Some(recorder.observer()), info)
}

fn run_config(max_concurrency: Option<usize>) -> RunConfig {
    RunConfig { max_concurrency, ..RunConfig::exact(VOCAB_SIZE as usize) }
}

/// Long prompts take long: 5 ms a step and 0.2 ms a token.
fn mock() -> MockConfig {
    MockConfig { token_time: Duration::from_micros(200), ..MockConfig::default() }
}

fn virtual_run(policy: &str, arrivals: Arrivals, max_concurrency: Option<usize>) -> RunOutcome {
    let recorder = Recorder::new(Detail::Chunks);
    let engine = engine(policy, mock(), &recorder);
    let mut last = 0;
    let mut progress = |progress: Progress| {
        assert!(progress.done >= last && progress.done <= progress.total);
        last = progress.done;
    };
    let run = run_config(max_concurrency);
    in_virtual_time(&mut Replay::new(engine), &workload(arrivals), &run, &recorder, &mut progress)
}

fn check(outcome: &RunOutcome, workload: &Workload) {
    assert_eq!(outcome.requests.len(), workload.items.len());
    for (index, (request, item)) in outcome.requests.iter().zip(&workload.items).enumerate() {
        assert_eq!(request.id, index);
        assert!(request.is_completed(), "{:?}", request.error());
        assert_eq!((request.prompt_len, request.output_len), (item.prompt.len, item.output_len));
        assert!(request.planned <= request.due && request.due <= request.sent + 1e-9);
        assert!(Some(request.sent) <= request.scheduled);
        assert!(request.scheduled <= request.first_token());
        assert!(request.token_times.is_sorted() && request.first_token() <= Some(request.finished));
    }
    let tokens: usize = workload.items.iter().map(|item| item.output_len).sum();
    let sampled: u32 = outcome.batches.iter().map(|batch| batch.num_sampled).sum();
    assert_eq!(sampled as usize, tokens);
}

#[test]
fn virtual_runs_are_whole_and_repeatable() {
    for policy in ["sarathi", "vllm", "orca"] {
        let arrivals = Arrivals::Poisson { rate: 20.0 };
        let outcome = virtual_run(policy, arrivals.clone(), None);
        check(&outcome, &workload(arrivals.clone()));
        let again = virtual_run(policy, arrivals, None);
        assert_eq!((outcome.requests, outcome.batches), (again.requests, again.batches));
    }
}

#[test]
fn open_loop_requests_are_sent_at_their_times() {
    let outcome = virtual_run("sarathi", Arrivals::Poisson { rate: 20.0 }, None);
    assert!(outcome.requests.iter().all(|request| request.send_lag() < 1e-9));
    assert!(outcome.requests.iter().all(|request| (request.sent - request.planned).abs() < 1e-9));
}

#[test]
fn a_closed_loop_keeps_its_clients_busy() {
    let outcome = virtual_run("sarathi", Arrivals::Static, Some(4));
    check(&outcome, &workload(Arrivals::Static));
    let mut changes: Vec<(f64, i32)> = outcome
        .requests
        .iter()
        .flat_map(|request| [(request.sent, 1), (request.finished, -1)])
        .collect();
    // Ends before starts: a client's next request starts when its last one ends.
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut active = 0;
    let most = changes.iter().map(|(_, change)| {
        active += change;
        active
    });
    assert_eq!(most.max(), Some(4));
    let mut sent: Vec<f64> = outcome.requests.iter().map(|request| request.sent).collect();
    sent.sort_by(f64::total_cmp);
    let ends =
        |at: f64| outcome.requests.iter().any(|request| request.finished.total_cmp(&at).is_eq());
    assert!(sent[4..].iter().all(|&at| ends(at)), "successors start at once");
}

#[test]
fn prefill_first_stalls_decodes_and_chunks_do_not() {
    let stalls = |policy: &str| {
        let outcome = virtual_run(policy, Arrivals::Poisson { rate: 10.0 }, None);
        Summary::new(&outcome.requests, SummaryConfig::default()).stalls
    };
    let (vllm, sarathi) = (stalls("vllm"), stalls("sarathi"));
    assert!(vllm.longest_gap > 0.1 && vllm.stalled_share > 0.1, "{vllm:?}");
    assert!(sarathi.longest_gap < 0.05 && sarathi.stalled_share < 0.01, "{sarathi:?}");
}

#[test]
fn a_real_run_measures_the_same_work() {
    let recorder = Recorder::new(Detail::Batches);
    let mock = MockConfig {
        pace: Pace::Real,
        step_time: Duration::from_micros(500),
        token_time: Duration::ZERO,
        ..MockConfig::default()
    };
    let engine = engine("sarathi", mock, &recorder);
    let engine = ThreadedEngine::spawn(engine, Arc::new(WallClock::start()), 1000).unwrap();
    let workload = workload(Arrivals::Poisson { rate: 500.0 });
    let outcome = in_real_time(&engine, &workload, &run_config(Some(16)), &recorder, &mut |_| ());
    check(&outcome, &workload);
}

#[test]
fn a_folder_keeps_everything() {
    let outcome = virtual_run("sarathi", Arrivals::Poisson { rate: 20.0 }, None);
    let summary = Summary::new(&outcome.requests, SummaryConfig::default());
    let place = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(&place.path().join("a/b")).unwrap();
    folder.write_origin("stallfree bench run", &serde_json::Map::new()).unwrap();
    folder.write_records(&outcome).unwrap();
    folder.write_replica_plots(&outcome).unwrap();
    folder.write_result(&summary.to_json()).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let header = |name: &str| read(name).lines().next().unwrap().to_owned();
    assert!(
        header("sequence_metrics.csv")
            .starts_with("Request Id,arrived_at,sent_at,status,request_e2e_time,")
    );
    assert_eq!(read("sequence_metrics.csv").lines().count(), 61);
    assert!(header("batch_metrics.csv").starts_with("Batch Id,started_at,batch_num_tokens,"));
    assert_eq!(read("batch_metrics.csv").lines().count(), outcome.batches.len() + 1);
    let token_time = "decode_token_execution_plus_preemption_time";
    assert_eq!(header(&format!("replica_0/plots/{token_time}.csv")), format!("cdf,{token_time}"));
    assert_eq!(read(&format!("replica_0/plots/{token_time}.csv")).lines().count(), 1002);
    let series = read("replica_0/plots/decode_completion_time_series.csv");
    assert!(series.starts_with("Time (sec),decode_completion\n"));
    let tokens: usize = outcome.requests.iter().map(|request| request.output_len).sum();
    assert!(series.trim_end().ends_with(&format!(",{tokens}")));
    let trace: serde_json::Value = serde_json::from_str(&read("chrome_trace.json")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 2 * outcome.batches.len());
    let first = &events[0];
    assert_eq!((&first["ph"], &first["name"]), (&"X".into(), &"prefill".into()));
    assert_eq!(
        first["args"]["prompt_chunk_lens"].as_array().unwrap().len(),
        first["args"]["batch_size"]
    );
    let result: serde_json::Value = serde_json::from_str(&read("result.json")).unwrap();
    for field in [
        "duration",
        "completed",
        "request_throughput",
        "output_throughput",
        "mean_ttft_ms",
        "median_tpot_ms",
        "p99_itl_ms",
        "std_e2el_ms",
        "max_concurrent_requests",
    ] {
        assert!(result[field].is_number(), "{field}: {result}");
    }
    assert!(result["stalls"]["stalled_share"].is_number());
}
