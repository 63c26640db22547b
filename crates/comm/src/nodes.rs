//! Ranks in processes on several hosts: they meet at node 0's address, then every two ranks of different nodes have a connection.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use stallfree_core::{Clock as _, WallClock};

use crate::control::Control;
use crate::frame::{read_frame, write_frame};
use crate::mesh::Link;
use crate::stranger::Stranger;
use crate::{Mesh, NodeError};

/// How often a node that is not there yet is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// How long one attempt to connect may take: whoever is behind a filter never answers.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long anybody may take to say who it is, or node 0 to answer who does not come.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes in which a node says who it is; a reason not to come can be long.
const MAX_HELLO_BYTES: u64 = 1 << 16;
/// What a node says in place of what it was started for if it does not come; of how many it is one follows, and why it doesn't.
const DECLINES: &str = "declines: ";
/// The first word of every connection: others knock at open ports, too.
const GREETING: &[u8] = b"stallfree 1";

/// Where this process stands among those that run a model together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// How many processes there are.
    pub num_nodes: usize,
    /// Which one this is; node 0 serves.
    pub node: usize,
    /// Where node 0 listens, as `host:port`; with port 0, on a free one, which its log names.
    pub master: String,
    /// How many ranks each process has.
    pub ranks_per_node: usize,
    /// What all must have in common, in words.
    pub agreement: String,
    /// How long to wait for the others.
    pub patience: Duration,
}

/// A process that has met the others.
#[derive(Debug)]
pub struct Joined {
    /// The ends of this process's ranks, in order.
    pub ranks: Vec<Mesh>,
    /// On node 0, what leads to each other node, in order; elsewhere, what leads to node 0.
    pub controls: Vec<Control>,
}

/// Meets the other processes, whose ranks talk in another way; returns once all are there: what leads to each other node, or, on
/// another node than 0, to node 0.
///
/// # Errors
/// As [`join`].
pub fn meet(config: &NodeConfig) -> Result<Vec<Control>, NodeError> {
    // Nobody connects to a rank.
    Ok(meet_at(listen(config)?, config, 0)?.0)
}

/// Meets the other processes, and joins the ranks of all; returns once all are there.
///
/// # Errors
/// They don't come, or were started for something else; a connection fails.
pub fn join(config: &NodeConfig) -> Result<Joined, NodeError> {
    join_at(listen(config)?, config)
}

/// Does the same; on node 0, the others come to `master`.
fn join_at(master: Option<TcpListener>, config: &NodeConfig) -> Result<Joined, NodeError> {
    let links = TcpListener::bind((IpAddr::from([0, 0, 0, 0]), 0));
    let links = links.map_err(|e| NodeError::io("listen for other nodes", e))?;
    let port = links.local_addr().map_err(|e| NodeError::io("listen for other nodes", e))?.port();
    let (controls, addresses) = meet_at(master, config, port)?;
    let mut world = World::new(config);
    for (node, address) in addresses.iter().enumerate().take(config.node) {
        world.connect(node, *address)?;
    }
    let later = config.num_nodes - config.node - 1;
    for _ in 0..later * config.ranks_per_node * config.ranks_per_node {
        world.accept(&links, config.patience)?;
    }
    Ok(Joined { ranks: world.ranks, controls })
}

/// Tells node 0, at `master`, that `node` of `num_nodes` does not come, and why; in vain if node 0 is not there within `patience`.
pub fn decline(master: &str, (node, num_nodes): (usize, usize), reason: &str, patience: Duration) {
    let told = connect_in_time(master, patience).and_then(|mut stream| {
        write_frame(&mut stream, GREETING)?;
        write_frame(&mut stream, format!("{node} 0 {DECLINES}{num_nodes} {reason}").as_bytes())?;
        // It answers once it has read that.
        stream.set_read_timeout(Some(HELLO_PATIENCE))?;
        read_frame(&mut stream)
    });
    if let Err(error) = told {
        tracing::debug!("node 0 does not hear of this: {error}");
    }
}

type Met = (Vec<Control>, Vec<SocketAddr>);

/// Node 0: listens where the others come to.
fn listen(config: &NodeConfig) -> Result<Option<TcpListener>, NodeError> {
    if config.node > 0 {
        return Ok(None);
    }
    let what = |e| NodeError::io(format!("listen at --master-addr {}", config.master), e);
    let listener = TcpListener::bind(&config.master).map_err(what)?;
    let (others, address) = (config.num_nodes - 1, listener.local_addr().map_err(what)?);
    tracing::info!("Waiting for {others} more nodes at {address}");
    Ok(Some(listener))
}

fn meet_at(master: Option<TcpListener>, config: &NodeConfig, port: u16) -> Result<Met, NodeError> {
    match master {
        Some(listener) => gather(&listener, config, port),
        None => report(config, port),
    }
}

/// Node 0: hears every other node, and tells all where all are.
fn gather(listener: &TcpListener, config: &NodeConfig, port: u16) -> Result<Met, NodeError> {
    let mut others: Vec<Option<(TcpStream, SocketAddr)>> =
        (1..config.num_nodes).map(|_| None).collect();
    while let Some(missing) = others.iter().position(Option::is_none) {
        let (mut stream, from) = accept(listener, config.patience)
            .map_err(|e| NodeError::io(format!("hear of node {}", missing + 1), e))?;
        // Whoever says something else is not one of ours.
        let Ok(hello) = read_hello(&stream) else { continue };
        if let Some((num_nodes, reason)) = hello.declines() {
            let (node, reason) = (hello.node, reason.to_owned());
            let _told = write_frame(&mut stream, &[]);
            if num_nodes == config.num_nodes && matches!(hello.place(&others), Some(None)) {
                return Err(NodeError::Declined { node, reason });
            }
            tracing::warn!(
                "Node {node} of {num_nodes} at {from}, which is none of these, does not start: {reason}"
            );
            continue;
        }
        let refusal = hello.refusal(config, &others);
        let told = write_frame(&mut stream, refusal.as_deref().unwrap_or("").as_bytes());
        if let Some(refusal) = refusal {
            return Err(NodeError::Refused(refusal));
        }
        told.map_err(|e| NodeError::io(format!("answer node {}", hello.node), e))?;
        others[hello.node - 1] = Some((stream, SocketAddr::new(from.ip(), hello.port)));
    }
    let others: Vec<_> = others.into_iter().flatten().collect();
    let own = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
    let addresses: Vec<SocketAddr> =
        std::iter::once(own).chain(others.iter().map(|(_, address)| *address)).collect();
    let table: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut controls = Vec::new();
    for (mut stream, _) in others {
        let sent = write_frame(&mut stream, table.join(" ").as_bytes());
        let control = sent.and_then(|()| Control::new(stream));
        controls.push(control.map_err(|e| NodeError::io("answer a node", e))?);
    }
    Ok((controls, addresses))
}

/// Any other node: tells node 0 where it is, and hears where all are.
fn report(config: &NodeConfig, port: u16) -> Result<Met, NodeError> {
    let what = || format!("reach node 0 at --master-addr {}", config.master);
    let stream = connect_in_time(&config.master, config.patience);
    let mut stream = stream.map_err(|e| NodeError::io(what(), e))?;
    let hello = format!("{} {port} {}", config.node, config.agreement);
    let answer = stream
        .set_nodelay(true)
        .and_then(|()| write_frame(&mut stream, GREETING))
        .and_then(|()| write_frame(&mut stream, hello.as_bytes()))
        .and_then(|()| read_frame(&mut stream))
        .map_err(|e| NodeError::io(what(), e))?;
    if !answer.is_empty() {
        return Err(NodeError::Refused(String::from_utf8_lossy(&answer).into_owned()));
    }
    // The last node to come may take its time.
    let table = stream
        .set_read_timeout(Some(config.patience))
        .and_then(|()| read_frame(&mut stream))
        .map_err(|e| NodeError::io("hear of the other nodes", e))?;
    let master = stream.peer_addr().map_err(|e| NodeError::io(what(), e))?;
    let text = String::from_utf8_lossy(&table);
    let mut addresses: Vec<SocketAddr> =
        text.split(' ').filter_map(|address| address.parse().ok()).collect();
    if addresses.len() != config.num_nodes {
        return Err(NodeError::Refused(format!("node 0 names {} nodes", addresses.len())));
    }
    addresses[0].set_ip(master.ip()); // as seen from here
    let control = Control::new(stream).map_err(|e| NodeError::io(what(), e))?;
    Ok((vec![control], addresses))
}

fn connect_in_time(master: &str, patience: Duration) -> io::Result<TcpStream> {
    let clock = WallClock::start();
    let left = || patience.saturating_sub(clock.now().since_start());
    loop {
        match connect(master, left) {
            Ok(stream) => return Ok(stream),
            Err(error) if left().is_zero() => return Err(error),
            Err(_) => std::thread::sleep(RETRY.min(left())),
        }
    }
}

/// Tries each address of a host once.
fn connect(host: &str, left: impl Fn() -> Duration) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for address in host.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left().clamp(RETRY, ATTEMPT)) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Reads what follows the greeting on a connection.
fn read_greeted(stream: &TcpStream) -> io::Result<String> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut stranger = Stranger::new(stream, HELLO_PATIENCE).take(MAX_HELLO_BYTES);
    if read_frame(&mut stranger)? != GREETING {
        return Err(invalid());
    }
    String::from_utf8(read_frame(&mut stranger)?).map_err(|_| invalid())
}

/// What a node says when it comes.
struct Hello {
    node: usize,
    port: u16,
    agreement: String,
}

fn read_hello(stream: &TcpStream) -> io::Result<Hello> {
    stream.set_nodelay(true)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let text = read_greeted(stream)?;
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().ok_or_else(invalid);
    let node = word()?.parse().map_err(|_| invalid())?;
    let port = word()?.parse().map_err(|_| invalid())?;
    Ok(Hello { node, port, agreement: word()?.to_owned() })
}

/// The other nodes, as far as they have come, and where their ranks are.
type Others = [Option<(TcpStream, SocketAddr)>];

impl Hello {
    /// Returns of how many the node is one, and why it does not come, if it says so.
    fn declines(&self) -> Option<(usize, &str)> {
        let (num_nodes, reason) = self.agreement.strip_prefix(DECLINES)?.split_once(' ')?;
        Some((num_nodes.parse().ok()?, reason))
    }

    /// Returns the node's place among the others, if it has one.
    fn place<'a>(&self, others: &'a Others) -> Option<&'a Option<(TcpStream, SocketAddr)>> {
        others.get(self.node.checked_sub(1)?)
    }

    /// Returns why the node can't take part.
    fn refusal(&self, config: &NodeConfig, others: &Others) -> Option<String> {
        let node = self.node;
        match self.place(others) {
            None => Some(format!("--node-rank {node} is not below --nnodes {}", config.num_nodes)),
            Some(Some(_)) => Some(format!("there are two nodes with --node-rank {node}")),
            Some(None) if self.agreement != config.agreement => Some(format!(
                "node {node} was started for {}, node 0 for {}",
                self.agreement, config.agreement
            )),
            Some(None) => None,
        }
    }
}

/// The links of this process's ranks, as they come.
struct World {
    ranks: Vec<Mesh>,
    ranks_per_node: usize,
    first_rank: usize,
}

impl World {
    fn new(config: &NodeConfig) -> Self {
        let (each, size) = (config.ranks_per_node, config.ranks_per_node * config.num_nodes);
        let first_rank = config.node * each;
        Self { ranks: Mesh::neighbours(first_rank, each, size), ranks_per_node: each, first_rank }
    }

    /// Connects each rank here to each of an earlier node.
    fn connect(&mut self, node: usize, address: SocketAddr) -> Result<(), NodeError> {
        for to in node * self.ranks_per_node..(node + 1) * self.ranks_per_node {
            for place in 0..self.ranks.len() {
                let from = self.first_rank + place;
                let what = |e| NodeError::io(format!("reach rank {to} at {address}"), e);
                let mut stream = TcpStream::connect(address).map_err(what)?;
                write_frame(&mut stream, GREETING).map_err(what)?;
                write_frame(&mut stream, format!("{from} {to}").as_bytes()).map_err(what)?;
                self.ranks[place].set_link(to, link(stream).map_err(what)?);
            }
        }
        Ok(())
    }

    /// Takes a connection from a rank of a later node.
    fn accept(&mut self, listener: &TcpListener, patience: Duration) -> Result<(), NodeError> {
        loop {
            let what = |e| NodeError::io("hear of another node's rank", e);
            let (stream, _) = accept(listener, patience).map_err(what)?;
            let Ok((from, to)) = read_ranks(&stream) else { continue };
            stream.set_read_timeout(None).map_err(what)?;
            let place = to.wrapping_sub(self.first_rank);
            if let Some(rank) = self.ranks.get_mut(place) {
                rank.set_link(from, link(stream).map_err(what)?);
                return Ok(());
            }
        }
    }
}

fn read_ranks(stream: &TcpStream) -> io::Result<(usize, usize)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let text = read_greeted(stream)?;
    let (from, to) = text.split_once(' ').ok_or_else(invalid)?;
    Ok((from.parse().map_err(|_| invalid())?, to.parse().map_err(|_| invalid())?))
}

/// Waits for a connection, but not for ever.
fn accept(listener: &TcpListener, patience: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let mut left = patience;
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                return Ok((stream, from));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !left.is_zero() => {
                std::thread::sleep(RETRY.min(left));
                left = left.saturating_sub(RETRY);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Makes a connection a link: two threads carry messages between it and the link's other end, and end with either.
fn link(stream: TcpStream) -> io::Result<Link> {
    stream.set_nodelay(true)?;
    let (link, Link { to, from }) = Link::pair();
    let (reader, writer) = (stream.try_clone()?, stream);
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    };
    spawn("stallfree-receive", Box::new(move || receive_all(reader, &to)))?;
    spawn("stallfree-send", Box::new(move || send_all(writer, &from)))?;
    Ok(link)
}

fn receive_all(mut stream: TcpStream, to: &Sender<Vec<f32>>) {
    while let Ok(bytes) = read_frame(&mut stream) {
        let (words, _) = bytes.as_chunks::<4>();
        let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        if to.send(values).is_err() {
            break;
        }
    }
}

fn send_all(mut stream: TcpStream, from: &Receiver<Vec<f32>>) {
    for values in from {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        if write_frame(&mut stream, &bytes).is_err() {
            break;
        }
    }
    // Nothing follows: the other end is to know, and the thread that reads is to end.
    let _gone = stream.shutdown(std::net::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::ffi::c_int;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;
    use std::time::Duration;

    use stallfree_core::{Clock as _, WallClock};

    use super::{Joined, NodeConfig, decline, join, join_at};
    use crate::{Lost, NodeError};

    fn config(node: usize, port: u16, agreement: &str) -> NodeConfig {
        NodeConfig {
            num_nodes: 3,
            node,
            master: format!("127.0.0.1:{port}"),
            ranks_per_node: 2,
            agreement: agreement.to_owned(),
            patience: Duration::from_secs(5),
        }
    }

    /// Joins three nodes, the last one started for `agreement`.
    fn join_all(agreement: &str) -> Vec<Result<Joined, NodeError>> {
        let master = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = master.local_addr().expect("its address").port();
        std::thread::scope(|scope| {
            let words = ["a model", agreement];
            let first = scope.spawn(move || join_at(Some(master), &config(0, port, "a model")));
            let others =
                [1, 2].map(|node| scope.spawn(move || join(&config(node, port, words[node - 1]))));
            let nodes = std::iter::once(first).chain(others);
            nodes.map(|node| node.join().expect("no panic")).collect()
        })
    }

    #[test]
    fn ranks_of_three_processes_sum_and_tell_when_one_is_gone() {
        let nodes: Vec<Joined> =
            join_all("a model").into_iter().collect::<Result<_, _>>().expect("all join");
        let (mut controls, mut ranks) = (Vec::new(), Vec::new());
        for node in nodes {
            controls.push(node.controls);
            ranks.extend(node.ranks);
        }
        let sums: Vec<_> = std::thread::scope(|scope| {
            let sum = |rank: &mut crate::Mesh| {
                let mut values = [1.0, rank.rank() as f32];
                rank.all_reduce(&mut values).map(|()| values)
            };
            let threads: Vec<_> =
                ranks.iter_mut().map(|rank| scope.spawn(move || sum(rank))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(sums, vec![Ok([6.0, 15.0]); 6]);
        controls[0][1].sender.send(b"to node 2").expect("sent");
        assert_eq!(controls[2][0].receiver.recv().expect("received"), b"to node 2");
        drop((ranks.pop(), controls.pop()));
        assert_eq!(ranks[0].recv(5), Err(Lost { rank: 5 }));
        let gone = controls[0][1].receiver.recv().expect_err("it is gone").to_string();
        assert_eq!(gone, "the connection closed");
    }

    #[test]
    fn a_node_that_does_not_start_says_why() {
        let master = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = master.local_addr().expect("its address");
        let error = std::thread::scope(|scope| {
            let patience = Duration::from_secs(5);
            scope.spawn(move || {
                // Node 0 does not take the first two for its own.
                for (node, reason) in [((9, 3), "9"), ((2, 4), "of 4"), ((2, 3), "no such model")] {
                    decline(&address.to_string(), node, reason, patience);
                }
            });
            join_at(Some(master), &config(0, address.port(), "a model")).expect_err("2 declines")
        });
        assert_eq!(error.to_string(), "node 2 does not start: no such model");
    }

    // SAFETY: as POSIX has it; it takes two numbers and says what is wrong with them.
    unsafe extern "C" {
        safe fn listen(socket: c_int, backlog: c_int) -> c_int;
    }

    #[test]
    fn a_host_that_answers_nothing_is_not_waited_for() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        assert_eq!(listen(silent.as_raw_fd(), 0), 0);
        let address = silent.local_addr().expect("its address");
        // Whoever comes once the queue is full is not answered.
        let knock = |_| TcpStream::connect_timeout(&address, Duration::from_millis(100));
        let queue: Vec<TcpStream> = (0..16).map_while(|place| knock(place).ok()).collect();
        assert!(queue.len() < 16, "the queue has an end");
        let clock = WallClock::start();
        decline(&address.to_string(), (1, 2), "no such model", Duration::from_millis(300));
        let seconds = clock.now().since_start().as_secs();
        assert!(seconds < 30, "it took {seconds} s");
    }

    #[test]
    fn a_node_that_was_started_for_something_else_is_refused() {
        let outcomes = join_all("another model");
        for outcome in [&outcomes[0], &outcomes[2]] {
            let error = outcome.as_ref().expect_err("they disagree").to_string();
            assert!(error.contains("another model"), "{error}");
        }
    }
}
