//! The way to other processes' blocks.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use stallfree_core::{BlockId, InstanceId, LeaseId};

use super::frame::{self, Asked, Hello, MAGIC, Order, Staged, Told};
use crate::{Deliver, KvAddress, KvPayload, KvPort, NixlAgent};

/// A process that owes an answer counts as stuck when it has sent nothing for this long twice in a row.
const PATIENCE: Duration = Duration::from_secs(5);

/// The connections of a process to those that it reads from, one each.
#[derive(Clone, Debug, Default)]
pub struct KvNetwork {
    links: Arc<Mutex<HashMap<KvAddress, Weak<Link>>>>,
    /// With one, blocks of processes that have one, too, come over NIXL.
    agent: Option<Arc<NixlAgent>>,
}

/// Every critical section leaves what it guards whole, so that a poisoned lock is as good as new.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KvNetwork {
    /// Makes a network without connections. With an agent, blocks of processes that have one, too, come over NIXL.
    #[must_use]
    pub fn new(agent: Option<Arc<NixlAgent>>) -> Self {
        Self { links: Arc::default(), agent }
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
        let link = Link::start(address, self.agent.as_ref())?;
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
    peer: Option<Peer>,
}

/// The other process's agent of NIXL's, as this one's knows it.
#[derive(Clone, Debug)]
struct Peer {
    agent: Arc<NixlAgent>,
    name: String,
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
    instance: InstanceId,
    deliver: Deliver,
    /// What was read over NIXL, until its owner says that it was there all the time.
    read: Option<KvPayload>,
}

impl Link {
    fn start(address: &KvAddress, agent: Option<&Arc<NixlAgent>>) -> io::Result<Arc<Self>> {
        let peer = agent.filter(|_| !address.nixl.is_empty()).and_then(|agent| {
            match agent.meet(&address.nixl) {
                Ok(name) => {
                    tracing::info!("KV of {} comes over NIXL", address.tcp);
                    Some(Peer { agent: Arc::clone(agent), name })
                }
                Err(error) => {
                    tracing::warn!("KV of {} comes over TCP: {error}", address.tcp);
                    None
                }
            }
        });
        let (orders, ordered) = channel();
        let state = Arc::new(Mutex::new(State::default()));
        let receiver =
            Receiving { state: Arc::clone(&state), orders: orders.clone(), peer: peer.clone() };
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
        let mut state = lock(&self.state);
        if let Some(reason) = state.broken.clone() {
            drop(state);
            return deliver(Err(reason));
        }
        state.next_id += 1;
        let id = state.next_id;
        state.pending.insert(id, Waiting { instance, deliver, read: None });
        drop(state);
        let blocks = blocks.iter().map(|block| block.0).collect();
        let over_nixl = self.peer.is_some();
        let order = Order { id, instance: instance.0, lease, blocks, over_nixl };
        // If the thread has ended, it has told, or will, why.
        drop(self.orders.send(Asked::Order(order)));
    }

    /// Nobody will answer for this instance.
    fn forget(&self, instance: InstanceId) {
        let waits = |_: &u64, waiting: &mut Waiting| waiting.instance == instance;
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
        drop(state);
        if let Some(peer) = &self.peer {
            peer.agent.forget(&peer.name);
        }
    }
}

fn send_all(
    (target, secret): (SocketAddr, u64),
    orders: &Receiver<Asked>,
    receiving: Receiving,
) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
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
    peer: Option<Peer>,
}

impl Receiving {
    /// Passes answers on; returns why no more come.
    fn receive_all(&self, stream: TcpStream) -> io::Error {
        let mut from = io::BufReader::new(stream);
        loop {
            let told = wait(&mut from, &self.state).and_then(|()| frame::read_told(&mut from));
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

    /// Reads over NIXL, and asks whether all of it was there until the end.
    fn read(&self, id: u64, staged: Staged) {
        let span = staged.span().ok_or_else(|| "it is longer than any memory".to_owned());
        let read = span.and_then(|span| match &self.peer {
            Some(Peer { agent, name }) => agent.read(name, span, PATIENCE),
            None => Err("there is no agent".to_owned()),
        });
        match read {
            Ok(read) => {
                let payload = staged.fill(read.bytes());
                if let Some(waiting) = lock(&self.state).pending.get_mut(&id) {
                    waiting.read = Some(payload);
                }
            }
            Err(reason) => self.deliver(id, Err(format!("it can't be read over NIXL: {reason}"))),
        }
        // If the thread that sends has ended, the connection is broken.
        drop(self.orders.send(Asked::Done(id)));
    }

    fn confirm(&self, id: u64, held: bool) {
        let waiting = lock(&self.state).pending.remove(&id);
        if let Some(Waiting { deliver, read, .. }) = waiting {
            let read = read.filter(|_| held);
            deliver(read.ok_or_else(|| "it was not there until the end".to_owned()));
        }
    }
}

/// Waits for the next answer, as long as it takes if nobody expects one.
fn wait(from: &mut io::BufReader<TcpStream>, state: &Mutex<State>) -> io::Result<()> {
    use io::BufRead as _;
    let mut owes = false;
    loop {
        match from.fill_buf() {
            Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if is_silence(&error) => {
                let owed = owes;
                owes = !lock(state).pending.is_empty();
                if owed && owes {
                    let text = format!("it has sent nothing for {} s", PATIENCE.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
            Err(error) => return Err(error),
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
