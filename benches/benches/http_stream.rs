//! What streaming a token to a client costs: socket to socket through the whole front and the engine, on a device that takes no time.
//!
//! Throughput is in tokens, each an event of its own. Clients are on the same machine and take part in the cost: each reads
//! its socket to the end and counts events.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use stallfree_benches::{Instantly, tokenizer};
use stallfree_core::{Executor as _, WallClock};
use stallfree_engine::{Engine, EngineHandle, EngineInfo, ThreadedEngine};
use stallfree_scheduler::{Planner, SchedulerConfig};
use stallfree_server::{AppState, Metrics, ServerConfig, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const TOKENS: usize = 128;
const MAX_MODEL_LEN: usize = 1024;

/// Starts a server that lives as long as the runtime.
fn start(runtime: &Runtime) -> SocketAddr {
    let executor = Instantly::new(MAX_MODEL_LEN * 1024, None);
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

/// Streams one answer and returns how many events it had.
async fn stream(address: SocketAddr, prompt: usize) -> std::io::Result<usize> {
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
    let mut buffer = vec![0; 1 << 16];
    let mut count = 0;
    loop {
        let read = socket.read(&mut buffer).await?;
        if read == 0 {
            return Ok(count);
        }
        // An event is one write of the server's, so that none is cut here but by chance.
        count += buffer[..read].windows(6).filter(|word| word == b"data: ").count();
    }
}

fn http_stream(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads");
    let address = start(&runtime);
    let mut group = criterion.benchmark_group("http_stream");
    group.sampling_mode(SamplingMode::Flat);
    for num_streams in [1, 64, 512] {
        group.throughput(Throughput::Elements((num_streams * TOKENS) as u64));
        group.bench_function(BenchmarkId::from_parameter(num_streams), |bencher| {
            bencher.iter(|| {
                let mut streams = JoinSet::new();
                for index in 0..num_streams {
                    streams.spawn_on(stream(address, index), runtime.handle());
                }
                for events in runtime.block_on(streams.join_all()) {
                    let events = events.expect("an answer");
                    assert!(events > TOKENS / 2 && events <= TOKENS + 2, "{events} events");
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = http_stream
}
criterion_main!(benches);
