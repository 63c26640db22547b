//! What streaming a token to a client costs: through the engine and the whole front to the client's socket.
//!
//! The device takes no time, but gives a step's tokens only once every token of the step before has been read, so that each is an event
//! of its own: with one stream this is the time from a token to the next, with many it is how many tokens a second can be sent. Clients
//! are on the same machine and take part in the cost.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use stallfree_benches::{Instantly, tokenizer};
use stallfree_core::{Batch, Executor, ExecutorError, KvGeometry, StepOutput, Time, WallClock};
use stallfree_engine::{Engine, EngineHandle, EngineInfo, ThreadedEngine};
use stallfree_scheduler::{Planner, SchedulerConfig};
use stallfree_server::{AppState, Metrics, ServerConfig, serve};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const TOKENS: usize = 128;
const MAX_MODEL_LEN: usize = 1024;

/// How many tokens were given and how many of them were read.
#[derive(Debug, Default)]
struct Gate {
    given: AtomicU64,
    read: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Gate {
    fn is_open(&self) -> bool {
        self.read.load(Ordering::SeqCst) >= self.given.load(Ordering::SeqCst)
    }

    fn note_read(&self) {
        self.read.fetch_add(1, Ordering::SeqCst);
        if self.is_open()
            && let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner)
        {
            waker.wake_by_ref();
        }
    }
}

/// A device that takes no time, behind a gate.
struct Gated {
    device: Instantly,
    gate: Arc<Gate>,
}

impl Executor for Gated {
    fn kv_geometry(&self) -> KvGeometry {
        self.device.kv_geometry()
    }

    fn max_in_flight(&self) -> usize {
        self.device.max_in_flight()
    }

    fn submit(&mut self, batch: Batch, now: Time) {
        self.device.submit(batch, now);
    }

    fn collect(&mut self, now: Time) -> Result<Option<StepOutput>, ExecutorError> {
        let output = if self.gate.is_open() { self.device.collect(now)? } else { None };
        let given = output.as_ref().map_or(0, |output| output.tokens.len());
        self.gate.given.fetch_add(given as u64, Ordering::SeqCst);
        Ok(output)
    }

    fn ready_at(&self) -> Option<Time> {
        self.device.ready_at().filter(|_| self.gate.is_open())
    }

    fn set_waker(&mut self, waker: Waker) {
        *self.gate.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    fn predict(&self, batch: &Batch) -> Duration {
        self.device.predict(batch)
    }
}

/// Starts a server that lives as long as the runtime.
fn start(runtime: &Runtime, gate: Arc<Gate>) -> SocketAddr {
    let executor = Gated { device: Instantly::new(MAX_MODEL_LEN * 1024, None), gate };
    let kv = executor.kv_geometry();
    let limits = SchedulerConfig {
        max_num_seqs: 1024,
        max_num_batched_tokens: 8192,
        max_model_len: MAX_MODEL_LEN,
        ..SchedulerConfig::default()
    };
    let info = EngineInfo {
        scheduler: "sarathi".to_owned(),
        max_model_len: MAX_MODEL_LEN,
        kv,
        enable_prefix_caching: true,
    };
    let planner = Planner::new(limits, kv, "sarathi").expect("limits that work");
    let metrics = Metrics::new("bench", MAX_MODEL_LEN);
    let engine = Engine::new(planner, Box::new(executor), Some(metrics.observer()), info);
    let engine = ThreadedEngine::spawn(engine, Arc::new(WallClock::start()), 10_000);
    let engine: Arc<dyn EngineHandle> = Arc::new(engine.expect("a thread"));
    let config = ServerConfig::new("bench");
    let state = AppState::new(engine, Arc::new(tokenizer()), None, config, metrics);
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(serve(listener, state, std::future::pending()));
        address
    })
}

/// Streams one answer and returns how many tokens it had.
async fn stream(address: SocketAddr, prompt: usize, gate: Arc<Gate>) -> io::Result<usize> {
    let prompt: Vec<usize> = (0..32).map(|at| 300 + (prompt * 7 + at) % 4000).collect();
    let body = format!(
        r#"{{"model":"bench","prompt":{prompt:?},"max_tokens":{TOKENS},"ignore_eos":true,"stream":true}}"#
    );
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    socket.write_all(head.as_bytes()).await?;
    let (mut socket, mut line, mut count) = (BufReader::new(socket), Vec::new(), 0);
    while socket.read_until(b'\n', &mut line).await? > 0 {
        if line.starts_with(b"data: {") {
            count += 1;
            gate.note_read();
        }
        line.clear();
    }
    Ok(count)
}

fn http_stream(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads");
    let gate = Arc::new(Gate::default());
    let address = start(&runtime, Arc::clone(&gate));
    let mut group = criterion.benchmark_group("http_stream");
    group.sampling_mode(SamplingMode::Flat);
    for num_streams in [1, 64, 512] {
        group.throughput(Throughput::Elements((num_streams * TOKENS) as u64));
        group.bench_function(BenchmarkId::from_parameter(num_streams), |bencher| {
            bencher.iter(|| {
                let mut streams = JoinSet::new();
                for index in 0..num_streams {
                    streams.spawn_on(stream(address, index, Arc::clone(&gate)), runtime.handle());
                }
                for count in runtime.block_on(streams.join_all()) {
                    assert_eq!(count.expect("an answer"), TOKENS, "an event a token");
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = http_stream
}
criterion_main!(benches);
