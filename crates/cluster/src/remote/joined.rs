//! The process of an instance: it joins a server, and runs what it is given.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stallfree_core::{Clock, InstanceId, LeaseBook, SeqId, WallClock};
use stallfree_engine::{Command, Engine, Membership, Peers as _, ThreadedEngine};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::clock::SharedClock;
use super::convert;
use super::message::{
    FromInstance, Hello, News, NewsKind, Order, OrderKind, Ready, ToInstance, Welcome,
};
use super::service::{JOIN, MAX_BYTES, WINDOW};
use super::uplink::{Beyond, Uplink};
use super::{Agreement, Neighbours, SILENCE};
use crate::Role;

/// How long to wait before another attempt to connect.
const RETRY: Duration = Duration::from_millis(200);

/// How long others may take to fetch what an instance has that is told to stop; they compute the rest again.
const LEAVING: Duration = Duration::from_secs(30);

/// How an instance joins a server.
#[derive(Clone)]
pub struct JoinConfig {
    /// Where the server's gate is, as `host:port`.
    pub server: String,
    /// What it must have in common with the server.
    pub agreement: Agreement,
    /// What it is for.
    pub role: Role,
    /// Where others read its KV.
    pub kv_address: Vec<u8>,
    /// Who is told where others' KV is read.
    pub neighbours: Arc<dyn Neighbours>,
    /// How long to wait for the server.
    pub patience: Duration,
}

impl fmt::Debug for JoinConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why an instance does not join, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The address can't be one.
    #[error("{0} is not HOST:PORT")]
    Address(String),
    /// There is nobody.
    #[error("no server answers at {server}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        server: String,
        /// What the last attempt found.
        reason: String,
    },
    /// It does not belong there.
    #[error("the server refuses this instance: {0}")]
    Refused(String),
    /// The connection is gone.
    #[error("the server is lost: {0}")]
    ServerLost(String),
    /// The engine is gone.
    #[error("this instance is lost: {0}")]
    EngineLost(String),
    /// The system refuses a thread.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An instance that has joined, without an engine yet.
pub struct Joined {
    instance: InstanceId,
    clock: Arc<SharedClock>,
    uplink: Arc<Uplink>,
    engine: Arc<OnceLock<Arc<ThreadedEngine>>>,
    runtime: Runtime,
    listening: tokio::task::JoinHandle<Result<(), JoinError>>,
    sending: tokio::task::JoinHandle<Option<String>>,
}

/// Joins a server: waits for it, and is given a number. While the model is being loaded, the server hears that this process lives.
///
/// # Errors
/// There is no server, or it has no use for this instance.
pub fn join(config: &JoinConfig) -> Result<Joined, JoinError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("stallfree-link")
        .enable_all()
        .build()?;
    let (own, uplink) = (WallClock::start(), Arc::new(Uplink::default()));
    let (out, outbound) = mpsc::channel(4);
    let joining = async {
        let hello = Hello {
            agreement: config.agreement.to_message(),
            role: convert::role_out(config.role).into(),
            kv_address: config.kv_address.clone(),
        };
        let channel = connect(config).await?;
        let news = vec![News { kind: Some(NewsKind::Hello(hello)) }];
        let asked = own.now();
        // The channel is new and has room.
        let _sent = out.send(FromInstance { number: 1, news, report: None }).await;
        let mut inbound = call(channel, outbound).await?;
        let first = receive(&mut inbound, 1).await?;
        let first = first.ok_or_else(|| JoinError::ServerLost("it ends".to_owned()))?;
        let clock = SharedClock::new(own, asked, convert::time_in(first.now));
        Ok::<_, JoinError>((inbound, first.orders, clock))
    };
    let (inbound, orders, clock) = runtime.block_on(joining)?;
    let mut orders = orders.into_iter();
    let welcome = orders.next().and_then(|order| order.kind);
    let Some(OrderKind::Welcome(Welcome { instance })) = welcome else {
        return Err(JoinError::Refused("it does not say welcome".to_owned()));
    };
    let clock = Arc::new(clock);
    let engine = Arc::new(OnceLock::new());
    let obeying = Obeying {
        clock: Arc::clone(&clock),
        uplink: Arc::clone(&uplink),
        engine: Arc::clone(&engine),
        neighbours: Arc::clone(&config.neighbours),
    };
    for order in orders {
        obeying.obey(order);
    }
    let listening = runtime.spawn(obeying.listen(inbound));
    let sending = runtime.spawn(Arc::clone(&uplink).send_all(out));
    let instance = InstanceId(instance);
    Ok(Joined { instance, clock, uplink, engine, runtime, listening, sending })
}

async fn connect(config: &JoinConfig) -> Result<Channel, JoinError> {
    let bad = || JoinError::Address(config.server.clone());
    let endpoint = Endpoint::from_shared(format!("http://{}", config.server)).map_err(|_| bad())?;
    let endpoint = endpoint
        .tcp_nodelay(true)
        .connect_timeout(SILENCE)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let mut left = config.patience;
    loop {
        let error = match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) => error,
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let reason = cause.unwrap_or_else(|| error.to_string());
        if left.is_zero() {
            return Err(JoinError::Unreachable { server: config.server.clone(), reason });
        }
        if left == config.patience {
            tracing::info!(reason, "No server yet; trying for {} s", left.as_secs());
        }
        tokio::time::sleep(RETRY.min(left)).await;
        left = left.saturating_sub(RETRY);
    }
}

async fn call(
    channel: Channel,
    outbound: mpsc::Receiver<FromInstance>,
) -> Result<Streaming<ToInstance>, JoinError> {
    let mut grpc = Grpc::new(channel)
        .max_decoding_message_size(MAX_BYTES)
        .max_encoding_message_size(MAX_BYTES);
    grpc.ready().await.map_err(|error| JoinError::ServerLost(error.to_string()))?;
    let codec = ProstCodec::<FromInstance, ToInstance>::default();
    let request = Request::new(ReceiverStream::new(outbound));
    match grpc.streaming(request, PathAndQuery::from_static(JOIN), codec).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if status.code() == Code::FailedPrecondition => {
            Err(JoinError::Refused(status.message().to_owned()))
        }
        Err(status) => Err(lost(&status)),
    }
}

fn lost(status: &Status) -> JoinError {
    JoinError::ServerLost(match status.code() {
        // What it says itself.
        Code::Aborted => format!("it gave this instance up: {}", status.message()),
        _ => super::gate::broken(status),
    })
}

/// Waits for the next message; `None` if the server ends in good order.
async fn receive(
    inbound: &mut Streaming<ToInstance>,
    number: u64,
) -> Result<Option<ToInstance>, JoinError> {
    let message = match timeout(SILENCE, inbound.message()).await {
        Err(_) => {
            let silence = format!("it has said nothing for {} s", SILENCE.as_secs());
            return Err(JoinError::ServerLost(silence));
        }
        Ok(message) => message.map_err(|status| lost(&status))?,
    };
    match message {
        Some(message) if message.number != number => {
            Err(JoinError::ServerLost(format!("message {number} is missing")))
        }
        message => Ok(message),
    }
}

/// Does what the server says.
struct Obeying {
    clock: Arc<SharedClock>,
    uplink: Arc<Uplink>,
    engine: Arc<OnceLock<Arc<ThreadedEngine>>>,
    neighbours: Arc<dyn Neighbours>,
}

impl Obeying {
    async fn listen(self, mut inbound: Streaming<ToInstance>) -> Result<(), JoinError> {
        for number in 2.. {
            let Some(message) = receive(&mut inbound, number).await? else { return Ok(()) };
            self.clock.heard(convert::time_in(message.now));
            for order in message.orders {
                self.obey(order);
            }
        }
        Ok(())
    }

    fn obey(&self, order: Order) {
        let Some(kind) = order.kind else { return };
        let command = match kind {
            OrderKind::Came(neighbour) => {
                let instance = InstanceId(neighbour.instance);
                return self.neighbours.came(instance, &neighbour.kv_address);
            }
            OrderKind::Left(instance) => return self.neighbours.left(InstanceId(instance)),
            OrderKind::Welcome(_) => return,
            OrderKind::Run(run) => {
                let output = self.uplink.open(SeqId(run.seq));
                let (seq, until) = convert::run_in(*run, output);
                Command::Run { seq: Box::new(seq), until }
            }
            OrderKind::Cancel(seq) => Command::Cancel(SeqId(seq)),
            OrderKind::LeaveAll(()) => {
                self.uplink.leave_all();
                Command::LeaveAll
            }
            OrderKind::Release(seq) => Command::Release(SeqId(seq)),
            OrderKind::Offer(offer) => Command::Offer(convert::offer_in(offer)),
            OrderKind::Retract(seq) => Command::Retract(SeqId(seq)),
            OrderKind::Renew(seqs) => Command::Renew(seqs.seqs.into_iter().map(SeqId).collect()),
        };
        let Some(engine) = self.engine.get() else { return };
        // An engine that takes nothing is lost, which the server hears from the uplink; a sequence's reader must not, since another
        // instance goes on with it.
        if let Err(Command::Run { seq, .. }) = engine.send(command) {
            Beyond(Arc::clone(&self.uplink)).take(*seq, Some("the engine takes nothing any more"));
        }
    }
}

impl Joined {
    /// Returns this instance's number.
    #[must_use]
    pub const fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Ends without having run anything: the server hears why.
    pub fn fail(self, reason: &str) {
        self.uplink.end(reason);
        // The server may be gone, too.
        let _sent = self.runtime.block_on(async {
            timeout(SILENCE, self.sending).await.is_ok()
                && timeout(SILENCE, self.listening).await.is_ok()
        });
    }

    /// Runs what the server gives, on an engine whose executor knows its number and `leases`, until the server ends or `stop` completes:
    /// then others fetch what is here, and go on.
    ///
    /// # Errors
    /// The server or the engine is lost, or the system refuses a thread.
    pub fn run(
        self,
        mut engine: Engine,
        leases: LeaseBook,
        stop: impl Future<Output = ()>,
    ) -> Result<(), JoinError> {
        let Self { instance, clock, uplink, engine: slot, runtime, mut listening, mut sending } =
            self;
        let peers = Box::new(Beyond(Arc::clone(&uplink)));
        engine.join(Membership { instance, peers, leases });
        let info = engine.info();
        let ready = Ready {
            scheduler: info.scheduler.clone(),
            max_model_len: info.max_model_len as u64,
            num_blocks: info.kv.num_blocks as u64,
            enable_prefix_caching: info.enable_prefix_caching,
        };
        // Queues are bounded where requests come in.
        let engine = Arc::new(ThreadedEngine::spawn(engine, clock as Arc<dyn Clock>, usize::MAX)?);
        uplink.report_on(&engine);
        // The only one to set it.
        drop(slot.set(engine));
        uplink.tell(NewsKind::Ready(ready));
        let ended = runtime.block_on(async {
            tokio::select! {
                heard = &mut listening => heard.map_err(io::Error::other)?,
                sent = &mut sending => match sent.map_err(io::Error::other)? {
                    Some(reason) => Err(JoinError::EngineLost(reason)),
                    // The server takes nothing more: what it says tells why.
                    None => (&mut listening).await.map_err(io::Error::other)?,
                },
                () = stop => {
                    uplink.tell(NewsKind::Leaving(()));
                    tokio::select! {
                        // The server may end, too.
                        _ = &mut listening => {}
                        _ = timeout(LEAVING, empty(&uplink)) => {}
                    }
                    uplink.end("it was told to stop");
                    let _sent = timeout(SILENCE, &mut sending).await;
                    Ok(())
                }
            }
        });
        if !listening.is_finished() {
            // Lets the last message out before the connection goes.
            runtime.block_on(async {
                let _ended = timeout(Duration::from_secs(1), &mut listening).await;
            });
        }
        ended
    }
}

/// Waits until others have all that was here.
async fn empty(uplink: &Uplink) {
    while !uplink.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("instance", &self.instance).finish_non_exhaustive()
    }
}
