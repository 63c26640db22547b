//! What it takes to move KV from one process to another of the same host, beside what one copy of it takes.
//!
//! `cargo bench --bench kv_transport`; throughput is bytes of KV. Both ends are in this process, each with threads of its own. NIXL is
//! measured where the binary's tests have fetched it. Shared memory is what a transport over it could reach at best: blocks are gathered
//! into a file in memory, and copied out of it.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stallfree_core::{BlockId, InstanceId, LeaseId, SeqId};
use stallfree_transfer::{
    Deliver, KvBytes, KvNetwork, KvPart, KvPayload, KvPort, KvServer, Nixl, NixlAgent, Ports,
};

/// The KV of 2,048 tokens of SmolLM2-135M: 30 layers, 3 heads, 64 elements of 16 bits, keys and values.
const NUM_BLOCKS: usize = 128;
const LAYERS: usize = 30;
const HEADS: usize = 3;
const PIECE: usize = 16 * 64 * 2 * 2;
const BYTES: usize = NUM_BLOCKS * LAYERS * HEADS * PIECE;

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An instance's cache.
#[derive(Debug)]
struct Cache(Vec<u8>);

impl KvPort for Cache {
    fn read(&self, _lease: LeaseId, blocks: &[BlockId], deliver: Deliver) {
        let part = KvPart { layers: 0..LAYERS, heads: 0..HEADS };
        let mut bytes = Vec::with_capacity(BYTES);
        gather(&self.0, blocks, |block| bytes.extend_from_slice(block));
        deliver(Ok(KvPayload { parts: vec![KvBytes { part, piece: PIECE, bytes }] }));
    }
}

fn gather(cache: &[u8], blocks: &[BlockId], mut take: impl FnMut(&[u8])) {
    let len = BYTES / NUM_BLOCKS;
    for block in blocks {
        let first = block.0 as usize * len;
        take(&cache[first..first + len]);
    }
}

fn read(port: &dyn KvPort, blocks: &[BlockId]) -> KvPayload {
    let (sender, receiver) = channel();
    let lease = LeaseId { seq: SeqId(0), generation: 1 };
    port.read(lease, blocks, Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap()
}

/// Runs `read` on a port over a connection, with agents of NIXL's or without.
fn remote(agents: Option<[Arc<NixlAgent>; 2]>) -> (KvServer, Arc<dyn KvPort>) {
    let ports = Ports::default();
    ports.open(InstanceId(0), Arc::new(Cache(vec![7; BYTES])));
    let (here, there) = agents.map(|[here, there]| (here, there)).unzip();
    let server = KvServer::start(HOST, ports, there).unwrap();
    let port = KvNetwork::new(here).port(InstanceId(0), server.address().clone());
    (server, port)
}

fn kv_transport(criterion: &mut Criterion) {
    let blocks: Vec<BlockId> =
        (0..NUM_BLOCKS as u32).map(|index| BlockId(index * 37 % NUM_BLOCKS as u32)).collect();
    let mut group = criterion.benchmark_group("kv_transport");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(20);
    let cache = Cache(vec![7; BYTES]);
    group.bench_function("one_copy", |bench| bench.iter(|| read(&cache, &blocks)));

    let mut file: File = tempfile::tempfile_in("/dev/shm").unwrap();
    group.bench_function("shared_memory", |bench| {
        bench.iter(|| {
            file.rewind().unwrap();
            gather(&cache.0, &blocks, |block| file.write_all(block).unwrap());
            file.rewind().unwrap();
            let mut bytes = Vec::with_capacity(BYTES);
            file.read_to_end(&mut bytes).unwrap();
            bytes
        });
    });

    let (_server, port) = remote(None);
    group.bench_function("tcp", |bench| bench.iter(|| read(&*port, &blocks)));

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nixl/libraries/nixl-1.5.1");
    if let Ok(nixl) = Nixl::open(&folder) {
        let agent = || Arc::new(NixlAgent::new(&nixl, 2 * BYTES).unwrap());
        let (_server, port) = remote(Some([agent(), agent()]));
        group.bench_function("nixl", |bench| bench.iter(|| read(&*port, &blocks)));
    }
    group.finish();
}

criterion_group!(benches, kv_transport);
criterion_main!(benches);
