//! What nodes tell each other beside the ranks' numbers: batches and what comes of them.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use stallfree_core::lock;

use crate::frame::{read_frame, write_frame};

/// How often a node shows that it is alive.
const BEAT: Duration = Duration::from_secs(1);
/// After how much silence it counts as gone.
const SILENCE: Duration = Duration::from_secs(6);

/// A connection to another node. A node that says nothing for six seconds is gone: even one that computes says each second that it is
/// there.
#[derive(Debug)]
pub struct Control {
    /// Sends.
    pub sender: ControlSender,
    /// Receives.
    pub receiver: ControlReceiver,
}

/// Sends messages to another node; the connection ends with the last clone.
#[derive(Clone, Debug)]
pub struct ControlSender(Arc<Writer>);

#[derive(Debug)]
struct Writer(Mutex<TcpStream>);

impl Drop for Writer {
    fn drop(&mut self) {
        let stream = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _gone = stream.shutdown(Shutdown::Both);
    }
}

/// Receives messages from another node.
#[derive(Debug)]
pub struct ControlReceiver(TcpStream);

impl Control {
    // For tests of those that talk to nodes.
    /// Makes the two ends of a connection within this process, as two nodes have it that have met.
    ///
    /// # Errors
    /// The system refuses a connection or a thread.
    #[doc(hidden)]
    pub fn pair() -> io::Result<(Self, Self)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let there = TcpStream::connect(listener.local_addr()?)?;
        let (here, _) = listener.accept()?;
        Ok((Self::new(here)?, Self::new(there)?))
    }

    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let reader = stream.try_clone()?;
        let writer = Arc::new(Writer(Mutex::new(stream)));
        let weak = Arc::downgrade(&writer);
        std::thread::Builder::new().name("stallfree-beat".to_owned()).spawn(move || beat(&weak))?;
        Ok(Self { sender: ControlSender(writer), receiver: ControlReceiver(reader) })
    }
}

/// Sends an empty message each second, as long as anybody else can send.
fn beat(writer: &Weak<Writer>) {
    while let Some(writer) = writer.upgrade() {
        if writer.send(&[]).is_err() {
            return;
        }
        drop(writer);
        std::thread::sleep(BEAT);
    }
}

impl Writer {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        write_frame(&mut *lock(&self.0), bytes)
    }
}

impl ControlSender {
    /// Sends a message, which is not empty.
    ///
    /// # Errors
    /// The other node is gone.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.send(bytes)
    }

    /// Ends the connection at once, whoever else could still send.
    pub fn close(&self) {
        let stream = lock(&self.0.0);
        let _gone = stream.shutdown(Shutdown::Both);
    }
}

impl ControlReceiver {
    /// Waits for the next message.
    ///
    /// # Errors
    /// The other node is gone.
    pub fn recv(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let bytes = read_frame(&mut self.0).map_err(|error| match error.kind() {
                // What the end of a read timeout looks like.
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    let silence = format!("it said nothing for {} s", SILENCE.as_secs());
                    io::Error::new(io::ErrorKind::TimedOut, silence)
                }
                _ => error,
            })?;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
        }
    }
}
