//! Reading from whoever connected and has not said who it is.

use std::fmt;
use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Duration;

use stallfree_core::{Clock as _, WallClock};

/// A connection of somebody who has not said yet who it is: however little it sends at a time, all that is read has to come in time.
pub struct Stranger<'a> {
    stream: &'a TcpStream,
    patience: Duration,
    /// Started when it came.
    clock: WallClock,
}

impl<'a> Stranger<'a> {
    /// Reads from `stream` for no longer than `patience` from now on. It leaves a time limit on the stream's later reads.
    #[must_use]
    pub fn new(stream: &'a TcpStream, patience: Duration) -> Self {
        Self { stream, patience, clock: WallClock::start() }
    }
}

impl Read for Stranger<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.patience.saturating_sub(self.clock.now().since_start());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(bytes)
    }
}

impl fmt::Debug for Stranger<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stranger").field("stream", self.stream).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    use super::Stranger;

    /// Reads ten bytes of which one comes each 20 ms.
    fn check(patience: Duration, is_in_time: bool) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).expect("it listens");
                for byte in 0..10 {
                    // Nobody may be listening any more.
                    let _sent = stream.write_all(&[byte]);
                    thread::sleep(Duration::from_millis(20)); // says it slowly
                }
            });
            let (stream, _) = listener.accept().expect("somebody comes");
            let read = Stranger::new(&stream, patience).read_exact(&mut [0; 10]);
            assert_eq!(read.is_ok(), is_in_time, "{read:?}");
        });
    }

    #[test]
    fn who_speaks_slowly_is_not_heard_out() {
        check(Duration::from_secs(20), true);
        check(Duration::from_millis(100), false);
    }
}
