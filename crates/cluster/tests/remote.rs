//! Instances beyond a connection: sequences run there as they would here, and nobody notices when one is lost.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallfree_cluster::{
    Agreement, Cluster, ClusterConfig, DispatchConfig, GateConfig, JoinConfig, JoinError,
    Neighbours, Role, Start, build, join,
};
use stallfree_core::{
    BatchId, Clock as _, InstanceId, KvGeometry, LeaseBook, Request, TokenId, WallClock,
};
use stallfree_engine::{EngineHandle as _, OutputStream, SubmitError};
use stallfree_scheduler::SchedulerConfig;
use stallfree_testkit::equivalence::{Case, engine};
use stallfree_testkit::{
    Fault, Language, MockConfig, MockExecutor, MockNetwork, Pace, VOCAB_SIZE, greedy, read_tokens,
    traffic,
};
use tokio::sync::oneshot;

const BLOCK_SIZE: usize = 4;
const MAX_MODEL_LEN: usize = 256;

/// What would be read where, as instances are told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(InstanceId, Option<Vec<u8>>)>>);

impl Neighbours for Told {
    fn came(&self, instance: InstanceId, kv_address: &[u8]) {
        self.0.lock().expect("no panic").push((instance, Some(kv_address.to_vec())));
    }

    fn left(&self, instance: InstanceId) {
        self.0.lock().expect("no panic").push((instance, None));
    }
}

fn agreement() -> Agreement {
    Agreement {
        model: "a made-up language".to_owned(),
        vocab_size: VOCAB_SIZE as usize,
        block_size: BLOCK_SIZE,
        kv_type: "one number a token".to_owned(),
    }
}

/// An instance on a network of mocks.
fn start(network: &MockNetwork, instance: InstanceId, role: Role, fault: Option<Fault>) -> Start {
    let limits = SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: MAX_MODEL_LEN,
        ..SchedulerConfig::default()
    };
    let case = Case { policy: "sarathi", limits, num_blocks: 400, max_in_flight: 1 };
    let config = MockConfig {
        kv: KvGeometry { num_blocks: case.num_blocks, block_size: BLOCK_SIZE },
        step_time: Duration::from_millis(1),
        fetch_time: Duration::from_millis(1),
        // In virtual time an engine would ask over and over again.
        pace: if matches!(fault, Some(Fault::Hangs(_))) { Pace::Real } else { Pace::Virtual },
        fault,
        ..MockConfig::default()
    };
    let leases = LeaseBook::default();
    let executor = MockExecutor::on(network, instance, leases.clone(), config);
    Start { engine: engine(&case, Box::new(executor)), role, leases }
}

/// An instance beyond a connection.
struct Far {
    stop: Option<oneshot::Sender<()>>,
    thread: JoinHandle<Result<(), JoinError>>,
}

fn join_config(port: u16, role: Role) -> JoinConfig {
    JoinConfig {
        server: format!("127.0.0.1:{port}"),
        agreement: agreement(),
        role,
        kv_address: format!("{role}").into_bytes(),
        neighbours: Arc::new(Told::default()),
        patience: Duration::from_secs(20),
    }
}

impl Far {
    fn start(port: u16, role: Role, network: &MockNetwork, fault: Option<Fault>) -> Self {
        let network = network.clone();
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            let joined = join(&join_config(port, role))?;
            let Start { engine, leases, .. } = start(&network, joined.instance(), role, fault);
            joined.run(engine, leases, async {
                // Nobody stops it if the test has ended.
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        };
        let thread = thread::Builder::new().spawn(work).expect("a thread");
        Self { stop: Some(stop), thread }
    }
}

/// A deployment with some instances here and some beyond connections.
struct World {
    cluster: Cluster,
    far: Vec<Far>,
    told: Arc<Told>,
    port: u16,
}

impl World {
    fn start(here: &[Role], there: &[(Role, Option<Fault>)], max_waiting: usize) -> Self {
        Self::with_patience(here, there, max_waiting, Duration::from_secs(20))
    }

    fn with_patience(
        here: &[Role],
        there: &[(Role, Option<Fault>)],
        max_waiting: usize,
        patience: Duration,
    ) -> Self {
        let network = MockNetwork::default();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let far = there.iter().map(|&(role, fault)| Far::start(port, role, &network, fault));
        let far: Vec<Far> = far.collect();
        let local = (0..).map(InstanceId).zip(here);
        let local = local.map(|(id, &role)| start(&network, id, role, None)).collect();
        let roles = || here.iter().chain(there.iter().map(|(role, _)| role));
        let told = Arc::new(Told::default());
        let gate = GateConfig {
            listener,
            agreement: agreement(),
            separates: roles().any(|&role| role != Role::Mixed),
            kv_address: b"here".to_vec(),
            neighbours: Arc::clone(&told) as _,
            wait_for: there.len(),
            patience,
        };
        let config = ClusterConfig {
            dispatch: build(&DispatchConfig::default()).expect("a policy"),
            clock: Arc::new(WallClock::start()),
            max_waiting,
            gate: Some(gate),
        };
        let cluster = Cluster::spawn(local, config).expect("they join");
        Self { cluster, far, told, port }
    }

    /// Waits until no sequence holds anything.
    fn wait_until_empty(&self) {
        let clock = WallClock::start();
        loop {
            let stats = self.cluster.stats();
            if (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0) {
                return;
            }
            assert!(clock.now().since_start() < Duration::from_secs(20), "{stats:?}");
            thread::sleep(Duration::from_millis(5)); // until nothing is left
        }
    }

    /// Ends the deployment, and returns how its instances ended.
    fn end(self) -> Vec<Result<(), JoinError>> {
        drop(self.cluster);
        self.far.into_iter().map(|far| far.thread.join().expect("no panic")).collect()
    }
}

fn requests() -> Vec<Request> {
    let words = "6x0:30+40 4x0:100+20~64 3x0:3+100 0:20+1 0:1+2";
    traffic(words).into_iter().map(|(_, request)| request).collect()
}

fn check(here: &[Role], there: &[(Role, Option<Fault>)]) {
    let world = World::start(here, there, 100);
    let requests = requests();
    let streams = requests.iter().map(|request| world.cluster.submit(request.clone()));
    let mut streams: Vec<OutputStream> = streams.map(|stream| stream.expect("taken")).collect();
    // Some leave.
    let mut leaving = world.cluster.submit(greedy(vec![5; 40], 200)).expect("taken");
    drop(leaving.blocking_next());
    drop(leaving);
    for (request, stream) in requests.iter().zip(&mut streams) {
        let expected = Language::answer(request, MAX_MODEL_LEN);
        assert_eq!(read_tokens(stream), expected, "{here:?} {there:?}");
    }
    world.wait_until_empty();
    let faults = there.iter().map(|(_, fault)| fault.is_some());
    let told = world.told.0.lock().expect("no panic").clone();
    let came = told.iter().filter(|(_, address)| address.is_some()).count();
    assert_eq!(came, there.len());
    for (fails, ended) in faults.clone().zip(world.end()) {
        assert_eq!(ended.is_err(), fails, "{ended:?}");
    }
}

#[test]
fn sequences_run_beyond_connections_as_here() {
    use Role::{Decode, Mixed, Prefill};
    let far = |roles: &[Role]| roles.iter().map(|&role| (role, None)).collect::<Vec<_>>();
    check(&[], &far(&[Mixed, Mixed]));
    check(&[], &far(&[Prefill, Decode, Decode]));
    check(&[Prefill], &far(&[Decode, Decode]));
    check(&[Decode], &far(&[Prefill]));
}

#[test]
fn what_an_instance_leaves_goes_on_elsewhere() {
    use Role::{Decode, Mixed, Prefill};
    let fails = |batch| Some(Fault::Fails(BatchId(batch)));
    check(&[], &[(Prefill, None), (Decode, fails(30)), (Decode, None)]);
    check(&[], &[(Prefill, fails(2)), (Prefill, None), (Decode, None)]);
    check(&[Mixed], &[(Mixed, fails(20))]);
}

#[test]
fn an_instance_that_is_told_to_stop_leaves_its_sequences_to_others() {
    let mut world = World::start(&[], &[(Role::Mixed, None), (Role::Mixed, None)], 100);
    // One instance has room for all of them.
    let requests: Vec<Request> = (0..6).map(|i| greedy(vec![i; 20], 200)).collect();
    let streams = requests.iter().map(|request| world.cluster.submit(request.clone()));
    let mut streams: Vec<OutputStream> = streams.map(|stream| stream.expect("taken")).collect();
    let mut begun: Vec<Vec<TokenId>> = Vec::new();
    for stream in &mut streams {
        let output = stream.blocking_next().expect("some tokens");
        begun.push(output.tokens.iter().map(|token| token.token).collect());
    }
    let far = world.far.remove(0);
    far.stop.expect("it runs").send(()).expect("it listens");
    far.thread.join().expect("no panic").expect("it was told to");
    let mut recomputed = 0;
    for ((request, stream), mut found) in requests.iter().zip(&mut streams).zip(begun) {
        while let Some(output) = stream.blocking_next() {
            found.extend(output.tokens.iter().map(|token| token.token));
            recomputed += output.finished.map_or(0, |finished| finished.num_preemptions);
        }
        assert_eq!(found, Language::answer(request, MAX_MODEL_LEN));
    }
    assert_eq!(recomputed, 0, "what it had was fetched");
    world.wait_until_empty();
    assert!(world.told.0.lock().expect("no panic").iter().any(|(_, address)| address.is_none()));
    // Another one may come.
    let network = MockNetwork::default();
    world.far.push(Far::start(world.port, Role::Mixed, &network, None));
    let clock = WallClock::start();
    while world.cluster.stats().num_blocks < 800 {
        assert!(clock.now().since_start() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(5)); // until both have joined
    }
    for ended in world.end() {
        ended.expect("the server ended in good order");
    }
}

#[test]
fn who_does_not_belong_is_told_why() {
    let world = World::start(&[], &[(Role::Mixed, None)], 100);
    let check = |config: JoinConfig, words: &str| {
        let error = join(&config).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    let fits = join_config(world.port, Role::Mixed);
    let other = Agreement { block_size: 16, ..agreement() };
    check(JoinConfig { agreement: other, ..fits.clone() }, "--block-size: 16 there, 4 at the");
    check(JoinConfig { role: Role::Decode, ..fits.clone() }, "--role decode: the server runs");
    let long = Agreement { model: "a very long name".repeat(100_000), ..agreement() };
    check(JoinConfig { agreement: long, ..fits.clone() }, "it says hello in more than");
    let nobody =
        JoinConfig { server: "127.0.0.1:1".to_owned(), patience: Duration::ZERO, ..fits.clone() };
    check(nobody, "no server answers at 127.0.0.1:1");
    check(JoinConfig { server: "no address".to_owned(), ..fits }, "no address is not HOST:PORT");
    drop(world.end());
}

#[test]
fn one_that_does_not_become_ready_is_given_up() {
    let world = World::with_patience(&[Role::Mixed], &[], 100, Duration::from_millis(100));
    let joined = join(&join_config(world.port, Role::Mixed)).expect("it is let in");
    let gone = (joined.instance(), None);
    let clock = WallClock::start();
    while !world.told.0.lock().expect("no panic").contains(&gone) {
        assert!(clock.now().since_start() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(5)); // until it is given up
    }
    let network = MockNetwork::default();
    let Start { engine, leases, .. } = start(&network, joined.instance(), Role::Mixed, None);
    let ended = joined.run(engine, leases, std::future::pending());
    let error = ended.expect_err("it came too late").to_string();
    assert!(error.contains("gave this instance up: it was not ready after 100ms"), "{error}");
}

#[test]
fn queues_beyond_connections_are_bounded() {
    let hangs = Some(Fault::Hangs(BatchId(0)));
    let world = World::start(&[], &[(Role::Mixed, hangs)], 2);
    let mut streams = Vec::new();
    let refused = loop {
        match world.cluster.submit(greedy(vec![1; 10], 5)) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 12);
        thread::sleep(Duration::from_millis(20)); // until the loss is noticed
    };
    assert!(matches!(refused, SubmitError::QueueFull { .. }), "{refused:?}");
    let unknown = greedy(vec![VOCAB_SIZE], 5);
    let unknown = world.cluster.submit(unknown).expect_err("no such token");
    assert!(matches!(unknown, SubmitError::UnknownToken { .. }), "{unknown:?}");
}
