//! Reading from whoever connected and has not said who it is.

use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Duration;

use stallfree_core::{Clock as _, WallClock};

/// How long anybody may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes in which it may say so; a reason not to come can be long.
const MAX_BYTES: usize = 1 << 16;

/// A connection of which only the beginning is read, and in time, however few bytes each read brings.
pub(crate) struct Stranger<'a> {
    stream: &'a TcpStream,
    clock: WallClock,
    patience: Duration,
    /// How many bytes more it may send.
    left: usize,
}

impl<'a> Stranger<'a> {
    pub(crate) fn at(stream: &'a TcpStream) -> Self {
        Self { stream, clock: WallClock::start(), patience: PATIENCE, left: MAX_BYTES }
    }
}

impl Read for Stranger<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let time = self.patience.saturating_sub(self.clock.now().since_start());
        if time.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(time))?;
        let most = buffer.len().min(self.left);
        let count = self.stream.read(&mut buffer[..most]).map_err(|error| match error.kind() {
            // What some systems call it.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })?;
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use super::{MAX_BYTES, Stranger};
    use crate::frame::read_frame;

    /// Lets somebody say what `says` writes, piece by piece, and returns what is read of it within `patience`.
    fn read(
        patience: Duration,
        mut says: impl FnMut(&mut TcpStream) -> bool + Send,
    ) -> Result<Vec<u8>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).expect("a connection");
                while says(&mut stream) {}
            });
            let (stream, _) = listener.accept().expect("a connection");
            let mut stranger = Stranger { patience, ..Stranger::at(&stream) };
            read_frame(&mut stranger).map_err(|error| error.kind().to_string())
        })
    }

    #[test]
    fn whoever_drips_or_floods_is_not_read_for_ever() {
        // A byte at a time, each well within the patience, of a message of a thousand.
        let mut message = [&1000u64.to_le_bytes()[..], &[7; 1000]].concat().into_iter();
        let drips = move |stream: &mut TcpStream| {
            thread::sleep(Duration::from_millis(20));
            message.next().is_some_and(|byte| stream.write_all(&[byte]).is_ok())
        };
        let error = read(Duration::from_millis(300), drips).expect_err("it is late");
        assert_eq!(error, "timed out");

        let long = MAX_BYTES as u64;
        let floods = move |stream: &mut TcpStream| {
            let message = [&long.to_le_bytes()[..], &[7; MAX_BYTES]].concat();
            stream.write_all(&message).expect("it is taken");
            false
        };
        let error = read(Duration::from_secs(10), floods).expect_err("it is too long");
        assert_eq!(error, "unexpected end of file");
    }
}
