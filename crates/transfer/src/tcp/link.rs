//! The way to other processes' blocks.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use stallfree_core::{BlockId, InstanceId, LeaseId, lock};

use super::frame::{self, Asked, Hello, MAGIC, Order, Staged, Told};
use crate::nixl::ReadError;
use crate::{Deliver, KvAddress, KvPayload, KvPort, NixlAgent};

/// A process that owes an answer counts as stuck when it has sent nothing for this long twice in a row. It may be in a long step; one
/// that is dead is noticed by its connection, or by the deployment.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long another process may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a read over NIXL may take: its bytes are there already.
const NIXL_PATIENCE: Duration = Duration::from_secs(5);

/// The connections of a process to those that it reads from, one each.
#[derive(Clone, Debug)]
pub struct KvNetwork {
    links: Arc<Mutex<HashMap<KvAddress, Weak<Link>>>>,
    /// With one, blocks of processes that have one, too, come over NIXL.
    agent: Option<Arc<NixlAgent>>,
    patience: Duration,
}

impl KvNetwork {
    /// Makes a network without connections. With an agent, blocks of processes that have one, too, come over NIXL.
    #[must_use]
    pub fn new(agent: Option<Arc<NixlAgent>>) -> Self {
        Self { links: Arc::default(), agent, patience: PATIENCE }
    }

    /// Gives processes up that owe an answer and have sent nothing for `patience` twice in a row, instead of a minute.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Returns the port of an instance in another process. It connects with the first read.
    #[must_use]
    pub fn port(&self, instance: InstanceId, address: KvAddress) -> Arc<dyn KvPort> {
        Arc::new(TcpPort { instance, address, network: self.clone(), link: Mutex::new(None) })
    }

    /// Returns the connection to a process, a new one if there is none that works.
    fn link(&self, address: &KvAddress) -> io::Result<Arc<Link>> {
        let mut links = lock(&self.links);
        links.retain(|_, link| link.strong_count() > 0);
        if let Some(link) = links.get(address).and_then(Weak::upgrade).filter(|link| link.works()) {
            return Ok(link);
        }
        let link = Link::start(address, self.agent.as_ref(), self.patience)?;
        links.insert(address.clone(), Arc::downgrade(&link));
        Ok(link)
    }
}

/// The port of an instance in another process.
#[derive(Debug)]
struct TcpPort {
    instance: InstanceId,
    address: KvAddress,
    network: KvNetwork,
    /// Keeps the connection open.
    link: Mutex<Option<Arc<Link>>>,
}

impl KvPort for TcpPort {
    fn read(&self, lease: LeaseId, blocks: &[BlockId], deliver: Deliver) {
        let mut held = lock(&self.link);
        let link = match held.take().filter(|link| link.works()) {
            Some(link) => link,
            None => match self.network.link(&self.address) {
                Ok(link) => link,
                Err(error) => return deliver(Err(error.to_string())),
            },
        };
        link.order(self.instance, lease, blocks, deliver);
        *held = Some(link);
    }
}

impl Drop for TcpPort {
    fn drop(&mut self) {
        // The instance is gone, and what it owes will not come.
        if let Some(link) = lock(&self.link).take() {
            link.forget(self.instance);
        }
    }
}

/// A connection to another process.
struct Link {
    address: KvAddress,
    orders: Sender<Asked>,
    state: Arc<Mutex<State>>,
    peer: Option<Arc<Peer>>,
}

/// The other process's agent of NIXL's, as this one's knows it until nobody reads any more.
#[derive(Debug)]
struct Peer {
    agent: Arc<NixlAgent>,
    name: String,
    /// A read has failed: from then on all comes over TCP.
    has_failed: AtomicBool,
}

impl Peer {
    fn works(&self) -> bool {
        !self.has_failed.load(Ordering::Relaxed)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.agent.forget(&self.name);
    }
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// Who waits for which answer.
    pending: HashMap<u64, Waiting>,
    /// Why nothing comes any more.
    broken: Option<String>,
    /// Once it is connected.
    stream: Option<TcpStream>,
    /// Nobody has any more use for it.
    is_closed: bool,
}

struct Waiting {
    order: Order,
    deliver: Deliver,
    /// What was read over NIXL, until its owner says that it was there all the time.
    read: Option<KvPayload>,
}

impl State {
    /// Takes note of who waits for an order, and gives it the next number.
    fn wait_for(&mut self, mut waiting: Waiting) -> Order {
        self.next_id += 1;
        waiting.order.id = self.next_id;
        let order = waiting.order.clone();
        self.pending.insert(order.id, waiting);
        order
    }
}

impl Link {
    fn start(
        address: &KvAddress,
        agent: Option<&Arc<NixlAgent>>,
        patience: Duration,
    ) -> io::Result<Arc<Self>> {
        let peer = agent.filter(|_| !address.nixl.is_empty()).and_then(|agent| {
            match agent.meet(&address.nixl) {
                Ok(name) => {
                    tracing::info!("KV of {} comes over NIXL", address.tcp);
                    Some(Arc::new(Peer {
                        agent: Arc::clone(agent),
                        name,
                        has_failed: AtomicBool::new(false),
                    }))
                }
                Err(error) => {
                    tracing::warn!("KV of {} comes over TCP: {error}", address.tcp);
                    None
                }
            }
        });
        let (orders, ordered) = channel();
        let state = Arc::new(Mutex::new(State::default()));
        let receiver = Receiving {
            state: Arc::clone(&state),
            orders: orders.clone(),
            peer: peer.clone(),
            patience,
        };
        let (target, secret) = (address.tcp, address.secret);
        thread::Builder::new().name("stallfree-kv-order".to_owned()).spawn(move || {
            let state = Arc::clone(&receiver.state);
            if let Err(error) = send_all((target, secret), &ordered, receiver) {
                break_off(&state, &format!("KV is not to be had from {target}: {error}"));
            }
        })?;
        Ok(Arc::new(Self { address: address.clone(), orders, state, peer }))
    }

    fn works(&self) -> bool {
        lock(&self.state).broken.is_none()
    }

    fn order(&self, instance: InstanceId, lease: LeaseId, blocks: &[BlockId], deliver: Deliver) {
        let blocks = blocks.iter().map(|block| block.0).collect();
        let over_nixl = self.peer.as_ref().is_some_and(|peer| peer.works());
        let order = Order { id: 0, instance: instance.0, lease, blocks, over_nixl };
        let mut state = lock(&self.state);
        if let Some(reason) = state.broken.clone() {
            drop(state);
            return deliver(Err(reason));
        }
        let order = state.wait_for(Waiting { order, deliver, read: None });
        drop(state);
        // If the thread has ended, it has told, or will, why.
        drop(self.orders.send(Asked::Order(order)));
    }

    /// Nobody will answer for this instance.
    fn forget(&self, instance: InstanceId) {
        let waits = |_: &u64, waiting: &mut Waiting| waiting.order.instance == instance.0;
        let owed: Vec<_> = lock(&self.state).pending.extract_if(waits).collect();
        for (_, Waiting { deliver, .. }) in owed {
            deliver(Err(format!("instance {instance} is gone")));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        // Both threads end with the connection.
        if let Some(stream) = state.stream.take() {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    }
}

fn send_all(
    (target, secret): (SocketAddr, u64),
    orders: &Receiver<Asked>,
    receiving: Receiving,
) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, CONNECT_PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(receiving.patience))?;
    stream.set_read_timeout(Some(receiving.patience))?;
    frame::write(&mut stream, &Hello { magic: MAGIC, secret })?;
    let from = stream.try_clone()?;
    {
        let mut state = lock(&receiving.state);
        if state.is_closed {
            return Ok(());
        }
        state.stream = Some(stream.try_clone()?);
    }
    thread::Builder::new().name("stallfree-kv-receive".to_owned()).spawn(move || {
        let error = receiving.receive_all(from);
        break_off(&receiving.state, &format!("the connection to {target} broke: {error}"));
    })?;
    for order in orders {
        frame::write(&mut stream, &order)?;
    }
    Ok(())
}

/// What the thread needs that hears the other process.
struct Receiving {
    state: Arc<Mutex<State>>,
    orders: Sender<Asked>,
    peer: Option<Arc<Peer>>,
    patience: Duration,
}

impl Receiving {
    /// Passes answers on; returns why no more come.
    fn receive_all(&self, stream: TcpStream) -> io::Error {
        let mut from = io::BufReader::new(stream);
        loop {
            let told = self.wait(&mut from).and_then(|()| frame::read_told(&mut from));
            match told {
                Ok(Told::Answer(id, result)) => self.deliver(id, result),
                Ok(Told::Staged(id, staged)) => self.read(id, staged),
                Ok(Told::Held(id, held)) => self.confirm(id, held),
                Err(error) => return error,
            }
        }
    }

    fn deliver(&self, id: u64, result: Result<KvPayload, String>) {
        let waiting = lock(&self.state).pending.remove(&id);
        // Nobody waits for an instance that is gone.
        if let Some(Waiting { deliver, .. }) = waiting {
            deliver(result);
        }
    }

    /// Reads over NIXL, and asks whether all of it was there until the end; what can't be read is ordered again over TCP.
    fn read(&self, id: u64, staged: Staged) {
        let span = staged.span().ok_or(ReadError::NoRoom);
        let read = span.and_then(|span| match &self.peer {
            Some(peer) => peer.agent.read(&peer.name, span, NIXL_PATIENCE),
            None => Err(ReadError::Failed("there is no agent".to_owned())),
        });
        let again = match read {
            Ok(read) => {
                let payload = staged.fill(read.bytes());
                if let Some(waiting) = lock(&self.state).pending.get_mut(&id) {
                    waiting.read = Some(payload);
                }
                None
            }
            Err(error) => {
                tracing::warn!("KV comes over TCP, as it can't be read over NIXL: {error}");
                if let (ReadError::Failed(_), Some(peer)) = (error, &self.peer) {
                    peer.has_failed.store(true, Ordering::Relaxed);
                }
                let mut state = lock(&self.state);
                let waiting = state.pending.remove(&id);
                waiting.map(|mut waiting| {
                    waiting.order.over_nixl = false;
                    state.wait_for(waiting)
                })
            }
        };
        // If the thread that sends has ended, the connection is broken.
        drop(self.orders.send(Asked::Done(id)));
        if let Some(order) = again {
            drop(self.orders.send(Asked::Order(order)));
        }
    }

    fn confirm(&self, id: u64, held: bool) {
        let waiting = lock(&self.state).pending.remove(&id);
        if let Some(Waiting { deliver, read, .. }) = waiting {
            let read = read.filter(|_| held);
            deliver(read.ok_or_else(|| "it was not there until the end".to_owned()));
        }
    }

    /// Waits for the next answer, as long as it takes if nobody expects one.
    fn wait(&self, from: &mut io::BufReader<TcpStream>) -> io::Result<()> {
        use io::BufRead as _;
        let mut owes = false;
        loop {
            match from.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(error) if is_silence(&error) => {
                    let owed = owes;
                    owes = !lock(&self.state).pending.is_empty();
                    if owed && owes {
                        let text = format!("it has sent nothing for {:?}", self.patience);
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Tells all that wait.
fn break_off(state: &Mutex<State>, reason: &str) {
    let pending = {
        let mut state = lock(state);
        state.broken.get_or_insert_with(|| reason.to_owned());
        if let Some(stream) = state.stream.take() {
            let _gone = stream.shutdown(Shutdown::Both);
        }
        std::mem::take(&mut state.pending)
    };
    for Waiting { deliver, .. } in pending.into_values() {
        deliver(Err(reason.to_owned()));
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("tcp", &self.address.tcp).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use stallfree_core::SeqId;

    use super::*;
    use crate::{KvBytes, KvPart};

    #[test]
    fn what_cannot_be_read_over_nixl_is_ordered_again_over_tcp() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let tcp = listener.local_addr().expect("its address");
        // It says where to read over NIXL, which this process has not got.
        let owner = thread::Builder::new().name("owner".to_owned()).spawn(move || {
            let (mut stream, _) = listener.accept().expect("a reader");
            frame::read_hello(&mut stream).expect("a hello");
            let part = KvPart { layers: 0..1, heads: 0..1 };
            let payload =
                KvPayload { parts: vec![KvBytes { part, piece: 2, bytes: vec![1, 2, 3, 4] }] };
            let Ok(Asked::Order(first)) = frame::read(&mut stream) else { panic!("no order") };
            frame::write_staged(&mut stream, first.id, &payload, 4096).expect("it listens");
            assert_eq!(frame::read::<Asked>(&mut stream).expect("an end"), Asked::Done(first.id));
            frame::write_held(&mut stream, first.id, true).expect("it listens");
            let Ok(Asked::Order(again)) = frame::read(&mut stream) else { panic!("no order") };
            assert_eq!(again, Order { id: again.id, over_nixl: false, ..first });
            frame::write_answer(&mut stream, again.id, Ok(payload.clone())).expect("it listens");
            payload
        });
        let owner = owner.expect("a thread");
        let port = KvNetwork::new(None)
            .port(InstanceId(3), KvAddress { tcp, secret: 1, nixl: Vec::new() });
        let (sender, receiver) = channel();
        let lease = LeaseId { seq: SeqId(1), generation: 1 };
        let deliver = Box::new(move |result| drop(sender.send(result)));
        port.read(lease, &[BlockId(5), BlockId(9)], deliver);
        let read = receiver.recv_timeout(Duration::from_secs(30)).expect("an answer");
        assert_eq!(read, Ok(owner.join().expect("no panic")));
    }
}
