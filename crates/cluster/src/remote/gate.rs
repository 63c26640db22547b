//! Where instances in other processes join.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use stallfree_core::{Clock, InstanceId, KvGeometry, lock};
use stallfree_engine::{EngineInfo, PromptLimits};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Status, Streaming};

use super::convert;
use super::message::{
    self as wire, FromInstance, Hello, NewsKind, Order, OrderKind, Ready, ToInstance,
};
use super::remote_instance::{MAX_ORDERS, RemoteInstance};
use super::service::{Instances as Service, WINDOW};
use super::teller::Teller;
use super::{Agreement, BEAT, Neighbours, SILENCE};
use crate::Role;
use crate::instance::Instances;
use crate::switchboard::Switchboard;

/// How instances in other processes join.
pub struct GateConfig {
    /// Where they connect to.
    pub listener: TcpListener,
    /// What they must have in common with the server.
    pub agreement: Agreement,
    /// Whether instances may prefill for others, and decode for others.
    pub separates: bool,
    /// Where they read the KV of the server's own instances.
    pub kv_address: Vec<u8>,
    /// Who is told where theirs is read.
    pub neighbours: Arc<dyn Neighbours>,
    /// How many have to join before requests are taken.
    pub wait_for: usize,
    /// How long one may take from joining until it is ready.
    pub patience: Duration,
}

impl fmt::Debug for GateConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateConfig").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// What joining needs of the deployment.
#[derive(Clone)]
pub(crate) struct Deployment {
    pub(crate) switchboard: Weak<Switchboard>,
    pub(crate) instances: Instances,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) max_waiting: usize,
}

/// Where instances in other processes join.
pub(crate) struct Gate {
    agreement: Agreement,
    separates: bool,
    neighbours: Arc<dyn Neighbours>,
    patience: Duration,
    deployment: Deployment,
    state: Mutex<State>,
    /// Woken when one is ready.
    came: Condvar,
    closing: watch::Receiver<bool>,
}

struct State {
    /// Where the KV of every instance is read that is there, and the way to those elsewhere.
    members: BTreeMap<InstanceId, (Vec<u8>, Option<Arc<RemoteInstance>>)>,
    /// Those that were ready before requests were taken.
    founders: BTreeMap<InstanceId, EngineInfo>,
    /// What clients have been promised.
    max_model_len: Option<usize>,
}

/// A gate that is open; it is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct OpenGate {
    gate: Arc<Gate>,
    closing: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Gate {
    /// Opens the gate and waits until as many have joined as it takes. Returns what is true of these.
    pub(crate) fn open(
        config: GateConfig,
        deployment: Deployment,
    ) -> io::Result<(OpenGate, Vec<EngineInfo>)> {
        let GateConfig {
            listener,
            agreement,
            separates,
            kv_address,
            neighbours,
            wait_for,
            patience,
        } = config;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (closing, watching) = watch::channel(false);
        let own = (0..).map(InstanceId).zip(deployment.instances.all());
        let members = own.map(|(id, _)| (id, (kv_address.clone(), None))).collect();
        let state = State { members, founders: BTreeMap::new(), max_model_len: None };
        let gate = Arc::new(Self {
            agreement,
            separates,
            neighbours,
            patience,
            deployment,
            state: Mutex::new(state),
            came: Condvar::new(),
            closing: watching,
        });
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("stallfree-gate")
            .enable_all()
            .build()?;
        let attending = Arc::clone(&gate);
        let thread = thread::Builder::new()
            .name("stallfree-gate".to_owned())
            .spawn(move || runtime.block_on(attend_all(listener, attending)))?;
        if wait_for > 0 {
            tracing::info!("Waiting for {wait_for} instances at {address}");
        }
        let founders = gate.wait_for(wait_for);
        Ok((OpenGate { gate, closing, thread: Some(thread) }, founders))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wait_for(&self, count: usize) -> Vec<EngineInfo> {
        let waits = |state: &mut State| state.founders.len() < count;
        let state = self.came.wait_while(self.lock(), waits);
        state.unwrap_or_else(PoisonError::into_inner).founders.values().cloned().collect()
    }

    /// Lets an instance in, if it belongs here. Returns what it is to be told from now on.
    pub(crate) async fn welcome(
        self: Arc<Self>,
        mut inbound: Streaming<FromInstance>,
        from: Option<SocketAddr>,
    ) -> Result<mpsc::Receiver<Result<ToInstance, Status>>, Status> {
        let hello = timeout(SILENCE, inbound.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("nobody said hello"))??;
        let Some(NewsKind::Hello(hello)) = hello.and_then(|message| first(message.news)) else {
            return Err(Status::invalid_argument("an instance has to say who it is"));
        };
        let from = from.map_or_else(|| "nowhere".to_owned(), |address| address.to_string());
        if let Some(refusal) = self.refusal(&hello) {
            tracing::warn!("An instance from {from} was refused: {refusal}");
            return Err(Status::failed_precondition(refusal));
        }
        let (orders, ordered) = mpsc::channel(MAX_ORDERS);
        let (remote, role) = self.admit(hello, orders).ok_or_else(ends)?;
        tracing::info!("Instance {} ({role}) joins from {from}", remote.id);
        let (out, outbound) = mpsc::channel(4);
        let teller = Teller { clock: Arc::clone(&self.deployment.clock), out: out.clone() };
        let telling = tokio::spawn(teller.tell(ordered, self.closing.clone()));
        let (gate, joined) = (Arc::clone(&self), Arc::clone(&remote));
        // A task of its own, so that a panic is the loss of the instance and not that of its keeper.
        let attending = tokio::spawn(async move { gate.attend(&joined, &mut inbound).await });
        tokio::spawn(async move {
            let lost = attending.await;
            let lost =
                lost.unwrap_or_else(|error| Some(format!("its news broke the server: {error}")));
            telling.abort();
            if let Some(reason) = lost {
                self.lose(&remote, &reason);
                // It may be gone, which may be why.
                let _told = timeout(BEAT, out.send(Err(Status::aborted(reason)))).await;
            }
        });
        Ok(outbound)
    }

    fn refusal(&self, hello: &Hello) -> Option<String> {
        let role = convert::role_in(hello.role());
        if !self.separates && role != Role::Mixed {
            return Some(format!(
                "--role {role}: the server runs every request on one instance; start it with --mode distserve"
            ));
        }
        self.agreement.refusal(&hello.agreement)
    }

    /// Makes it a member; until it is ready, it is given nothing. `None` once the deployment ends.
    fn admit(
        &self,
        hello: Hello,
        orders: mpsc::Sender<Order>,
    ) -> Option<(Arc<RemoteInstance>, Role)> {
        let Deployment { switchboard, instances, max_waiting, .. } = &self.deployment;
        let role = convert::role_in(hello.role());
        let deployed = switchboard.upgrade()?;
        let mut state = self.lock();
        let mut board = deployed.board();
        let id = board.directory.reserve(role);
        // What it takes is known once it is ready.
        let limits =
            PromptLimits { max_model_len: usize::MAX, vocab_size: Some(self.agreement.vocab_size) };
        let remote =
            RemoteInstance::new(id, orders, Weak::clone(switchboard), (limits, *max_waiting));
        let remote = Arc::new(remote);
        instances.push(Arc::clone(&remote) as _);
        drop(board);
        remote.order(OrderKind::Welcome(wire::Welcome { instance: id.0 }));
        for (other, (kv_address, other_remote)) in &state.members {
            remote.order(came(*other, kv_address));
            if let Some(other) = other_remote {
                other.order(came(id, &hello.kv_address));
            }
        }
        self.neighbours.came(id, &hello.kv_address);
        state.members.insert(id, (hello.kv_address, Some(Arc::clone(&remote))));
        Some((remote, role))
    }

    /// Hears what an instance says, until it is lost, and returns why; `None` if the deployment ends.
    async fn attend(
        &self,
        remote: &Arc<RemoteInstance>,
        inbound: &mut Streaming<FromInstance>,
    ) -> Option<String> {
        let mut closing = self.closing.clone();
        let given_up = tokio::time::sleep(self.patience);
        tokio::pin!(given_up);
        let mut is_ready = false;
        let mut number = 1; // was its hello
        loop {
            let message = tokio::select! {
                _ = closing.changed() => return None,
                () = remote.overrun.notified() => {
                    return Some("it does not take its orders".to_owned());
                }
                () = &mut given_up, if !is_ready => {
                    return Some(format!("it was not ready after {:?}", self.patience));
                }
                message = timeout(SILENCE, inbound.message()) => message,
            };
            let message = match message {
                Err(_) => return Some(format!("it has said nothing for {} s", SILENCE.as_secs())),
                Ok(Err(status)) => return Some(broken(&status)),
                Ok(Ok(None)) => return Some("it has closed the connection".to_owned()),
                Ok(Ok(Some(message))) => message,
            };
            number += 1;
            if message.number != number {
                return Some(format!("message {number} is missing"));
            }
            for news in message.news {
                let heard = match news.kind {
                    Some(NewsKind::Ready(ready)) => {
                        is_ready = true;
                        self.ready(remote, ready)
                    }
                    Some(news) => remote.hear(news),
                    None => Ok(()),
                };
                if let Err(reason) = heard {
                    return Some(reason);
                }
            }
            if let Some(report) = &message.report {
                remote.report(report);
            }
        }
    }

    /// From now on it is given sequences.
    fn ready(&self, remote: &RemoteInstance, ready: Ready) -> Result<(), String> {
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let info = EngineInfo {
            scheduler: ready.scheduler,
            max_model_len: count(ready.max_model_len),
            kv: KvGeometry {
                num_blocks: count(ready.num_blocks),
                block_size: self.agreement.block_size,
            },
            enable_prefix_caching: ready.enable_prefix_caching,
        };
        let mut state = self.lock();
        let promised = state.max_model_len.unwrap_or(0);
        if info.max_model_len < promised {
            return Err(format!(
                "it takes {} tokens a request, and clients were promised {promised}; give it more with --max-model-len or --kv-cache-memory-bytes",
                info.max_model_len
            ));
        }
        let Some(switchboard) = self.deployment.switchboard.upgrade() else { return Ok(()) };
        tracing::info!(
            "Instance {} is ready: a KV cache of {} tokens",
            remote.id,
            info.kv.num_tokens()
        );
        remote.ready(&info);
        switchboard.enter(remote.id);
        if state.max_model_len.is_none() {
            state.founders.insert(remote.id, info);
        }
        self.came.notify_all();
        Ok(())
    }

    fn lose(&self, remote: &RemoteInstance, reason: &str) {
        let mut state = self.lock();
        state.members.remove(&remote.id);
        state.founders.remove(&remote.id);
        for (_, other) in state.members.values() {
            if let Some(other) = other {
                other.order(OrderKind::Left(remote.id.0));
            }
        }
        drop(state);
        // First the ways to it, so that nobody begins to wait for what will not come.
        self.neighbours.left(remote.id);
        remote.lose(reason);
    }
}

fn first(news: Vec<wire::News>) -> Option<NewsKind> {
    news.into_iter().next()?.kind
}

fn came(instance: InstanceId, kv_address: &[u8]) -> OrderKind {
    OrderKind::Came(wire::Neighbour { instance: instance.0, kv_address: kv_address.to_vec() })
}

fn ends() -> Status {
    Status::unavailable("the server ends")
}

/// Says what broke a connection.
pub(crate) fn broken(status: &Status) -> String {
    let cause = std::error::Error::source(status).map(|cause| format!(" ({cause})"));
    format!("its connection broke: {}{}", status.message(), cause.unwrap_or_default())
}

async fn attend_all(listener: TcpListener, gate: Arc<Gate>) {
    let mut closing = gate.closing.clone();
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("nobody can join: {error}"),
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_with_incoming(Service(gate), incoming);
    tokio::select! {
        ended = server => if let Err(error) = ended {
            tracing::error!("nobody can join any more: {error}");
        },
        // Streams that end in good order tell instances that they are needed no more.
        _ = closing.changed() => tokio::time::sleep(Duration::from_millis(200)).await,
    }
}

impl OpenGate {
    /// Takes note of what clients are promised: who joins later has to keep it.
    pub(crate) fn promise(&self, info: &EngineInfo) {
        self.gate.lock().max_model_len = Some(info.max_model_len);
    }
}

impl Drop for OpenGate {
    fn drop(&mut self) {
        // Nobody may be listening any more.
        let _closed = self.closing.send(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the gate's thread panicked");
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("agreement", &self.agreement).finish_non_exhaustive()
    }
}
