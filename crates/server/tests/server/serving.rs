//! The front over TCP, on the real engine and a mock executor.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stallfree_core::WallClock;
use stallfree_engine::{Engine, EngineHandle, EngineInfo, ThreadedEngine};
use stallfree_scheduler::{Planner, SchedulerConfig};
use stallfree_server::{AppState, Limits, Metrics, ServerConfig, serve};
use stallfree_testkit::{MockConfig, MockExecutor, Pace};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::model::{chat_template, tokenizer};
use crate::world::config;

const MAX_MODEL_LEN: usize = 8192;

/// A server on a port of its own.
struct Served {
    address: SocketAddr,
    engine: Arc<ThreadedEngine>,
    shutdown: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Served {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let config = ServerConfig { limits, ..config() };
        let mock = MockConfig {
            pace: Pace::Real,
            step_time: Duration::from_millis(1),
            token_time: Duration::ZERO,
            ..MockConfig::default()
        };
        let limits = SchedulerConfig { max_model_len: MAX_MODEL_LEN, ..SchedulerConfig::default() };
        let info = EngineInfo {
            scheduler: "sarathi".to_owned(),
            max_model_len: MAX_MODEL_LEN,
            kv: mock.kv,
            enable_prefix_caching: true,
        };
        let planner = Planner::new(limits, mock.kv, "sarathi").unwrap();
        let metrics = Metrics::new("tiny", MAX_MODEL_LEN);
        let engine =
            Engine::new(planner, MockExecutor::boxed(mock), Some(metrics.observer()), info);
        let engine = ThreadedEngine::spawn(engine, Arc::new(WallClock::start()), 1000).unwrap();
        let engine = Arc::new(engine);
        let handle: Arc<dyn EngineHandle> = engine.clone();
        let state = AppState::new(handle, tokenizer(), Some(chat_template()), config, metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, told) = oneshot::channel();
        let server = tokio::spawn(serve(listener, state, async {
            let _: Result<(), _> = told.await;
        }));
        Self { address, engine, shutdown, server }
    }

    /// Sends a request without waiting for the answer.
    async fn send(&self, method: &str, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// Sends a request and returns the whole answer, head and all.
    async fn exchange(&self, method: &str, path: &str, body: &Value) -> String {
        read_all(self.send(method, path, body).await).await
    }

    /// Returns a metric's value.
    async fn metric(&self, name: &str) -> f64 {
        let page = self.exchange("GET", "/metrics", &json!(null)).await;
        let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")));
        let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until the engine runs and holds this many sequences.
    async fn wait_for(&self, sequences: usize) {
        let reached = async {
            loop {
                let stats = self.engine.stats();
                let blocks_fit = (stats.num_used_blocks == 0) == (sequences == 0);
                if stats.num_running + stats.num_waiting == sequences && blocks_fit {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await; // until all are there
            }
        };
        let within = timeout(Duration::from_secs(10), reached).await;
        assert!(within.is_ok(), "{sequences} sequences expected: {:?}", self.engine.stats());
    }
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn endless(stream: bool) -> Value {
    json!({ "prompt": "Hi", "max_tokens": 8000, "ignore_eos": true, "stream": stream })
}

/// Ten requests of ten tokens, one after the other.
#[tokio::test]
async fn the_arithmetic_of_metrics() {
    let served = Served::start().await;
    for _ in 0..10 {
        let body = json!({ "prompt": "Hello", "max_tokens": 10, "ignore_eos": true });
        let answer = served.exchange("POST", "/v1/completions", &body).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    served.wait_for(0).await;
    let prompt_tokens = 6.0; // the beginning of a sequence, and five bytes
    for (name, expected) in [
        ("time_to_first_token_seconds_count", 10.0),
        ("inter_token_latency_seconds_count", 90.0),
        ("iteration_tokens_total_sum", 10.0 * (prompt_tokens + 10.0)),
        ("iteration_tokens_total_count", 100.0),
        ("request_params_max_tokens_sum", 100.0),
        ("request_params_max_tokens_count", 10.0),
        ("request_params_n_sum", 10.0),
        ("request_prompt_tokens_sum", 10.0 * prompt_tokens),
        ("request_generation_tokens_sum", 100.0),
        ("request_max_num_generation_tokens_sum", 100.0),
        ("prompt_tokens_total", 10.0 * prompt_tokens),
        ("generation_tokens_total", 100.0),
        ("e2e_request_latency_seconds_count", 10.0),
        ("request_queue_time_seconds_count", 10.0),
        ("request_inference_time_seconds_count", 10.0),
        ("request_prefill_time_seconds_count", 10.0),
        ("request_decode_time_seconds_count", 10.0),
        ("request_time_per_output_token_seconds_count", 10.0),
        ("request_prefill_kv_computed_tokens_sum", 10.0 * prompt_tokens),
        ("num_requests_running", 0.0),
        ("num_requests_waiting", 0.0),
        ("kv_cache_usage_perc", 0.0),
        ("num_preemptions_total", 0.0),
        ("cache_config_info", 1.0),
    ] {
        let value = served.metric(&format!("vllm:{name}")).await;
        assert!((value - expected).abs() < 1e-9, "{name}: {value}, not {expected}");
    }
    let page = served.exchange("GET", "/metrics", &json!(null)).await;
    for line in [
        "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"length\"} 10",
        "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"abort\"} 0",
        "vllm:iteration_tokens_total_bucket{model_name=\"tiny\",engine=\"0\",le=\"1.0\"} 90",
        "vllm:iteration_tokens_total_bucket{model_name=\"tiny\",engine=\"0\",le=\"8.0\"} 100",
        "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"} 10",
    ] {
        assert!(page.contains(line), "{line} is not in {page}");
    }
}

/// Clients that leave free their blocks, and others are served at once.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_requests_free_their_blocks() {
    let served = Served::start().await;
    let mut clients = Vec::new();
    for i in 0..200 {
        clients.push(served.send("POST", "/v1/completions", &endless(i % 2 == 0)).await);
    }
    served.wait_for(200).await;
    drop(clients);
    served.wait_for(0).await;
    let body = json!({ "prompt": "Hi", "max_tokens": 10, "ignore_eos": true });
    let answer = served.exchange("POST", "/v1/completions", &body).await;
    assert!(answer.contains("\"completion_tokens\":10"), "{answer}");
    served.wait_for(0).await;
    assert!(served.metric("vllm:kv_cache_usage_perc").await.abs() < 1e-9);
    let load = served.exchange("GET", "/load", &json!(null)).await;
    assert!(load.ends_with("{\"server_load\":0}"), "{load}");
}

/// A server that is told to stop finishes what is under way and takes nothing new.
#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_finishes_open_streams() {
    let served = Served::start().await;
    let body = json!({ "prompt": "Hi", "max_tokens": 300, "ignore_eos": true, "stream": true });
    let stream = served.send("POST", "/v1/completions", &body).await;
    served.wait_for(1).await;
    let _silent = TcpStream::connect(served.address).await.unwrap();
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(b"GET /version HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let Served { address, shutdown, server, .. } = served;
    shutdown.send(()).unwrap();
    let answer = read_all(stream).await;
    assert!(
        answer.contains("\"finish_reason\":\"length\"") && answer.contains("[DONE]"),
        "{answer}"
    );
    let ended = timeout(Duration::from_secs(10), server).await;
    ended.expect("idle connections hold nothing up").unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

/// A connection is closed that doesn't begin a request, or doesn't come to the end of its head; one with a stream is not.
#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_request_are_closed() {
    let header_timeout = Duration::from_millis(200);
    let served = Served::with(Limits { header_timeout, ..Limits::default() }).await;
    let body = json!({ "prompt": "Hi", "max_tokens": 1000, "ignore_eos": true, "stream": true });
    let stream = served.send("POST", "/v1/completions", &body).await;
    let version = "GET /version HTTP/1.1\r\nhost: here\r\n\r\n";
    for (sent, answers) in [("", 0), (&version[..20], 0), (version, 1), (&version.repeat(2), 2)] {
        let mut connection = TcpStream::connect(served.address).await.unwrap();
        connection.write_all(sent.as_bytes()).await.unwrap();
        let answer = timeout(Duration::from_secs(10), read_all(connection)).await;
        let answer = answer.unwrap_or_else(|_| panic!("after {sent:?} it stays open"));
        assert_eq!(answer.matches("HTTP/1.1 200").count(), answers, "{sent:?}: {answer}");
    }
    let answer = read_all(stream).await;
    assert!(answer.contains("\"finish_reason\":\"length\""), "{answer}");
}

/// A body that stops arriving is given up, and holds up neither the next request nor the end.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_body_holds_nothing_up() {
    let limits = Limits { body_timeout: Duration::from_millis(200), ..Limits::default() };
    let served = Served::with(limits).await;
    let mut half = TcpStream::connect(served.address).await.unwrap();
    let head = "POST /tokenize HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    half.write_all(head.as_bytes()).await.unwrap();
    while !served.exchange("GET", "/load", &json!(null)).await.ends_with("{\"server_load\":1}") {}
    served.shutdown.send(()).unwrap();
    let ended = timeout(Duration::from_secs(10), served.server).await;
    ended.expect("half a body holds nothing up").unwrap();
    let answer = read_all(half).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn choices_of_one_seed_differ_and_repeat() {
    let served = Served::start().await;
    let body = json!({ "prompt": "Hi", "n": 3, "seed": 42, "temperature": 1, "max_tokens": 50, "return_token_ids": true });
    let mut answers = Vec::new();
    for _ in 0..2 {
        let answer = served.exchange("POST", "/v1/completions", &body).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        answers.push([0, 1, 2].map(|i| body["choices"][i]["token_ids"].clone()));
    }
    assert_eq!(answers[0], answers[1]);
    let [a, b, c] = &answers[0];
    assert!(a != b && b != c && a != c, "{answers:?}");
}

#[tokio::test]
async fn a_shared_prefix_is_reported_as_cached() {
    let served = Served::start().await;
    let prefix = "A long beginning that two requests share. ".repeat(20);
    for (ending, least) in [("One", 0), ("Two", prefix.len() / 16 * 16)] {
        let body =
            json!({ "prompt": format!("{prefix}{ending}"), "max_tokens": 2, "stop": "never" });
        let answer = served.exchange("POST", "/v1/completions", &body).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let cached = body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached as usize, least, "{body}");
    }
}
