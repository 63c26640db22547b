//! Where other processes read the blocks of this one's instances.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::thread;
use std::time::Duration;

use stallfree_comm::Stranger;
use stallfree_core::{BlockId, InstanceId};

use super::frame::{self, Asked, Hello, MAGIC, Order};
use crate::address::random;
use crate::nixl::Staged;
use crate::{KvAddress, KvPayload, NixlAgent, Ports};

/// Answers of a connection that may be in memory before the earliest has been sent: one is copied out while another is sent.
const MAX_ANSWERS: usize = 2;

/// Connections that have not said yet who they are: until one of them has, or is gone, others wait.
const MAX_STRANGERS: usize = 64;

/// How long nobody is let in after that has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a reader may take to say who it is, or to take what it ordered.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where other processes read the blocks of this one's instances, until it is dropped.
pub struct KvServer {
    address: KvAddress,
    ends: Arc<AtomicBool>,
}

impl KvServer {
    /// Opens the ports of this process's instances, those that come later too, to readers at `host`; with an agent, also over NIXL.
    ///
    /// # Errors
    /// The address is not this machine's, or the system refuses a thread.
    pub fn start(host: IpAddr, ports: Ports, agent: Option<Arc<NixlAgent>>) -> io::Result<Self> {
        let listener = TcpListener::bind((host, 0))?;
        let secret = random();
        let nixl = agent.as_ref().map(|agent| agent.metadata().to_vec());
        let address =
            KvAddress { tcp: listener.local_addr()?, secret, nixl: nixl.unwrap_or_default() };
        let ends = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&ends);
        let served = Served { ports, secret, agent };
        spawn("stallfree-kv-accept", move || accept_all(&listener, &served, &ending))?;
        Ok(Self { address, ends })
    }

    /// Returns where it is reached.
    #[must_use]
    pub const fn address(&self) -> &KvAddress {
        &self.address
    }
}

impl Drop for KvServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts; if that fails, it ends with the process.
        drop(TcpStream::connect(self.address.tcp));
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// What is behind a server.
#[derive(Clone)]
struct Served {
    ports: Ports,
    secret: u64,
    agent: Option<Arc<NixlAgent>>,
}

fn accept_all(listener: &TcpListener, served: &Served, ends: &AtomicBool) {
    // Counted by its clones.
    let strangers = Arc::new(());
    for stream in listener.incoming() {
        if ends.load(Ordering::Relaxed) {
            return;
        }
        let served = stream.and_then(|stream| {
            let (served, stranger) = (served.clone(), Arc::clone(&strangers));
            spawn("stallfree-kv-serve", move || {
                if let Err(error) = serve(&stream, served, stranger) {
                    tracing::debug!("a reader of KV is gone: {error}");
                }
                // The thread that writes may wait for the reader.
                let _gone = stream.shutdown(Shutdown::Both);
            })
        });
        if let Err(error) = served {
            tracing::warn!("a reader of KV could not be let in: {error}");
            // What is missing, such as file descriptors, may be there again soon.
            thread::sleep(PAUSE);
        }
        while Arc::strong_count(&strangers) > MAX_STRANGERS && !ends.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
    }
}

/// Takes a connection's orders to its end; it is a stranger until it has said who it is.
fn serve(stream: &TcpStream, served: Served, stranger: Arc<()>) -> io::Result<()> {
    let Served { ports, secret, agent } = served;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if frame::read_hello(&mut Stranger::new(stream, PATIENCE))? != (Hello { magic: MAGIC, secret })
    {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    drop(stranger);
    stream.set_read_timeout(None)?;
    let mut from = io::BufReader::new(stream);
    // As many as there are permits.
    let (answers, answered) = channel();
    let (permits, sent) = sync_channel::<()>(MAX_ANSWERS);
    let writer = Writer { stream: stream.try_clone()?, agent, staged: HashMap::new(), sent };
    spawn("stallfree-kv-send", move || writer.send_all(&answered))?;
    loop {
        let Order { id, instance, lease, blocks, over_nixl } = match frame::read(&mut from)? {
            Asked::Order(order) => order,
            Asked::Done(id) => {
                // The thread that writes has said, or will, why it has ended.
                drop(answers.send(Reply::Done(id)));
                continue;
            }
        };
        if permits.send(()).is_err() {
            return Ok(());
        }
        let answers = answers.clone();
        // Nobody may be left to be answered.
        let deliver =
            Box::new(move |result| drop(answers.send(Reply::Payload { id, result, over_nixl })));
        match ports.get(InstanceId(instance)) {
            Some(port) => {
                let blocks: Vec<BlockId> = blocks.into_iter().map(BlockId).collect();
                port.read(lease, &blocks, deliver);
            }
            None => deliver(Err(format!("instance {instance} is not here"))),
        }
    }
}

/// What there is to tell a reader.
enum Reply {
    Payload { id: u64, result: Result<KvPayload, String>, over_nixl: bool },
    Done(u64),
}

/// Tells a reader what there is.
struct Writer {
    stream: TcpStream,
    agent: Option<Arc<NixlAgent>>,
    /// What is being read, by order.
    staged: HashMap<u64, Staged>,
    /// Takes a permit back.
    sent: Receiver<()>,
}

impl Writer {
    /// Tells what there is as it comes; ends with the connection.
    fn send_all(mut self, replies: &Receiver<Reply>) {
        for reply in replies {
            if let Err(error) = self.send(reply) {
                tracing::debug!("a reader of KV does not take its answer: {error}");
                let _gone = self.stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn send(&mut self, reply: Reply) -> io::Result<()> {
        let (id, result, over_nixl) = match reply {
            Reply::Payload { id, result, over_nixl } => (id, result, over_nixl),
            Reply::Done(id) => {
                let held = self.staged.remove(&id).is_some();
                return frame::write_held(&mut self.stream, id, held);
            }
        };
        let staged = result.as_ref().ok().filter(|_| over_nixl).and_then(|payload| {
            let parts = payload.parts.iter().map(|part| part.bytes.as_slice());
            self.agent.as_ref()?.stage(parts).map(|staged| (payload, staged))
        });
        match staged {
            Some((payload, staged)) => {
                frame::write_staged(&mut self.stream, id, payload, staged.span().0)?;
                self.staged.insert(id, staged);
            }
            None => {
                if over_nixl && result.is_ok() {
                    tracing::warn!("no memory of NIXL's is free: KV goes over TCP");
                }
                frame::write_answer(&mut self.stream, id, result)?;
            }
        }
        self.sent.recv().map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl fmt::Debug for KvServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvServer").field("tcp", &self.address.tcp).finish_non_exhaustive()
    }
}
