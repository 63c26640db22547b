//! Blocks from one process to another: what was kept arrives whole, and whatever goes wrong is told to whoever waits.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stallfree_core::{BlockId, InstanceId, LeaseBook, LeaseId, SeqId};
use stallfree_transfer::{
    Deliver, KvAddress, KvBytes, KvNetwork, KvPart, KvPayload, KvPort, KvServer, Ports,
};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(30);

/// An instance of two ranks, whose blocks say whose they are.
struct Keeper {
    leases: LeaseBook,
    piece: usize,
    /// Readers that are kept waiting, if any are.
    held: Option<Mutex<Vec<Deliver>>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("piece", &self.piece).finish_non_exhaustive()
    }
}

fn payload(blocks: &[BlockId], piece: usize) -> KvPayload {
    let part = |heads: std::ops::Range<usize>| {
        let fill = |block: &BlockId| vec![(block.0 as u8) ^ (heads.start as u8); piece * 3];
        let bytes = blocks.iter().flat_map(fill).collect();
        KvBytes { part: KvPart { layers: 0..3, heads: heads.clone() }, piece, bytes }
    };
    KvPayload { parts: vec![part(0..1), part(1..2)] }
}

impl KvPort for Keeper {
    fn read(&self, lease: LeaseId, blocks: &[BlockId], deliver: Deliver) {
        if let Some(held) = &self.held {
            return held.lock().expect("no panic").push(deliver);
        }
        let read = self.leases.holds(lease).then(|| payload(blocks, self.piece));
        deliver(read.ok_or_else(|| "it is kept no more".to_owned()));
    }
}

fn keeper(piece: usize) -> Keeper {
    let leases = LeaseBook::default();
    assert_eq!(leases.grant(SeqId(7)).generation, 1);
    Keeper { leases, piece, held: None }
}

fn blocks(count: u32) -> Vec<BlockId> {
    (0..count).map(|index| BlockId(index * 37 % 251)).collect()
}

fn read(
    port: &dyn KvPort,
    generation: u64,
    blocks: &[BlockId],
) -> Receiver<Result<KvPayload, String>> {
    let (sender, receiver) = channel();
    // A test that has failed listens no more.
    let lease = LeaseId { seq: SeqId(7), generation };
    port.read(lease, blocks, Box::new(move |result| drop(sender.send(result))));
    receiver
}

fn wait(receiver: &Receiver<Result<KvPayload, String>>) -> Result<KvPayload, String> {
    receiver.recv_timeout(PATIENCE).expect("an answer")
}

#[test]
fn what_is_kept_arrives_and_what_is_not_is_refused() {
    let ports = Ports::default();
    let server = KvServer::start(HOST, ports.clone(), None).expect("it starts");
    let network = KvNetwork::new(None);
    for (instance, piece) in [(0, 1), (1, 1000), (2, 100_000)] {
        let keeper = keeper(piece);
        let leases = keeper.leases.clone();
        ports.open(InstanceId(instance), Arc::new(keeper));
        let port = network.port(InstanceId(instance), server.address().clone());
        // Many at once over one connection, none and one among them.
        let orders: Vec<_> = [0, 1, 17, 40, 3].map(blocks).into();
        let reads: Vec<_> = orders.iter().map(|blocks| read(&*port, 1, blocks)).collect();
        for (blocks, receiver) in orders.iter().zip(&reads) {
            assert_eq!(wait(receiver), Ok(payload(blocks, piece)));
        }
        leases.revoke(SeqId(7));
        assert_eq!(wait(&read(&*port, 1, &blocks(3))), Err("it is kept no more".to_owned()));
        let nobody = network.port(InstanceId(9), server.address().clone());
        assert_eq!(wait(&read(&*nobody, 1, &blocks(3))), Err("instance 9 is not here".to_owned()));
    }
}

#[test]
fn a_process_finds_its_way_after_the_other_one_was_gone() {
    let ports = Ports::default();
    ports.open(InstanceId(0), Arc::new(keeper(10)));
    let network = KvNetwork::new(None);
    // Nobody is there.
    let listener = TcpListener::bind((HOST, 0)).expect("a free port");
    let gone = listener.local_addr().expect("its address");
    drop(listener);
    let port = network.port(InstanceId(0), KvAddress { tcp: gone, secret: 1, nixl: Vec::new() });
    for _ in 0..2 {
        let error = wait(&read(&*port, 1, &blocks(1))).expect_err("nobody is there");
        assert!(error.contains("not to be had"), "{error}");
    }
    // Somebody is there who does not know us.
    let server = KvServer::start(HOST, ports, None).expect("it starts");
    let stranger = KvAddress { secret: server.address().secret ^ 1, ..server.address().clone() };
    let port = network.port(InstanceId(0), stranger);
    let error = wait(&read(&*port, 1, &blocks(1))).expect_err("it is not let in");
    assert!(error.contains("broke"), "{error}");
    let port = network.port(InstanceId(0), server.address().clone());
    assert_eq!(wait(&read(&*port, 1, &blocks(1))), Ok(payload(&blocks(1), 10)));
}

#[test]
fn whoever_waits_is_told_when_an_instance_is_gone_or_stuck() {
    let ports = Ports::default();
    let stuck = Arc::new(Keeper { held: Some(Mutex::default()), ..keeper(10) });
    ports.open(InstanceId(0), Arc::clone(&stuck) as _);
    ports.open(InstanceId(1), Arc::new(keeper(10)));
    let server = KvServer::start(HOST, ports, None).expect("it starts");
    let network = KvNetwork::new(None).with_patience(Duration::from_millis(500));
    let port = |instance| network.port(InstanceId(instance), server.address().clone());
    // One that is taken for lost is forgotten; its neighbour on the same connection answers.
    let (lost, neighbour) = (port(0), port(1));
    let waits = read(&*lost, 1, &blocks(2));
    assert_eq!(wait(&read(&*neighbour, 1, &blocks(1))), Ok(payload(&blocks(1), 10)));
    drop(lost);
    assert_eq!(wait(&waits), Err("instance 0 is gone".to_owned()));
    // What it owed comes late, and to nobody.
    let late: Vec<Deliver> =
        std::mem::take(&mut *stuck.held.as_ref().expect("it holds").lock().expect("no panic"));
    late.into_iter().for_each(|deliver| deliver(Ok(payload(&blocks(2), 10))));
    assert_eq!(wait(&read(&*neighbour, 1, &blocks(5))), Ok(payload(&blocks(5), 10)));
    // One that says nothing is given up.
    let silent = port(0);
    let waits = read(&*silent, 1, &blocks(2));
    let error = wait(&waits).expect_err("nothing came");
    assert!(error.contains("has sent nothing"), "{error}");
}

#[test]
fn strangers_are_few_and_keep_nobody_out() {
    let ports = Ports::default();
    ports.open(InstanceId(0), Arc::new(keeper(10)));
    let server = KvServer::start(HOST, ports, None).expect("it starts");
    let network = KvNetwork::new(None);
    let port = network.port(InstanceId(0), server.address().clone());
    assert_eq!(wait(&read(&*port, 1, &blocks(1))), Ok(payload(&blocks(1), 10)));
    let knock = |_| TcpStream::connect(server.address().tcp).expect("it listens");
    let mut strangers: Vec<TcpStream> = (0..100).map(knock).collect();
    // Who was known before is served, and who comes after them is as soon as some have gone.
    assert_eq!(wait(&read(&*port, 1, &blocks(2))), Ok(payload(&blocks(2), 10)));
    strangers.truncate(20);
    let port = KvNetwork::new(None).port(InstanceId(0), server.address().clone());
    assert_eq!(wait(&read(&*port, 1, &blocks(3))), Ok(payload(&blocks(3), 10)));
}

#[test]
fn a_stranger_is_given_no_memory() {
    let server = KvServer::start(HOST, Ports::default(), None).expect("it starts");
    let mut stream = TcpStream::connect(server.address().tcp).expect("it listens");
    // A header of 1 MiB is announced, of which nothing comes: it is not waited for.
    stream.write_all(&(1_u32 << 20).to_le_bytes()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    assert_eq!(stream.read(&mut [0; 1]).expect("an end"), 0);
}
