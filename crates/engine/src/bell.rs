//! Wakes the readers of a step's tokens.

use std::fmt;
use std::sync::mpsc::{Sender, channel};
use std::task::Waker;
use std::thread;

/// As many readers are woken by the engine's own thread; it takes a few microseconds each where their threads sleep.
const FEW: usize = 8;

/// Wakes readers, many of them on a thread of its own: a step is planned meanwhile.
#[derive(Default)]
pub(crate) struct Bell {
    /// To that thread, which ends with this; none where time is virtual.
    ringer: Option<Sender<Vec<Waker>>>,
    /// Who is to be woken.
    readers: Vec<Waker>,
}

impl Bell {
    /// Returns a bell with a thread.
    pub(crate) fn with_thread() -> std::io::Result<Self> {
        let (ringer, due) = channel::<Vec<Waker>>();
        thread::Builder::new()
            .name("stallfree-bell".to_owned())
            .spawn(move || due.into_iter().flatten().for_each(Waker::wake))?;
        Ok(Self { ringer: Some(ringer), readers: Vec::new() })
    }

    /// Has a reader woken at the next [`ring`](Self::ring).
    pub(crate) fn add(&mut self, reader: Waker) {
        self.readers.push(reader);
    }

    /// Wakes all that were added.
    pub(crate) fn ring(&mut self) {
        if self.readers.len() <= FEW {
            return self.readers.drain(..).for_each(Waker::wake);
        }
        let readers = std::mem::take(&mut self.readers);
        let left = match &self.ringer {
            Some(ringer) => ringer.send(readers).err().map(|error| error.0),
            None => Some(readers),
        };
        left.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for Bell {
    /// Nobody is left to wait for ever.
    fn drop(&mut self) {
        self.ring();
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("readers", &self.readers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::SyncSender;
    use std::sync::mpsc::sync_channel;
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Reader(SyncSender<()>);

    impl Wake for Reader {
        fn wake(self: Arc<Self>) {
            self.0.try_send(()).expect("no more wakes than readers");
        }
    }

    fn check(mut bell: Bell, readers: usize, rings: bool) {
        let (woken, wakes) = sync_channel(readers);
        let reader = Arc::new(Reader(woken));
        for _ in 0..readers {
            bell.add(Waker::from(Arc::clone(&reader)));
        }
        if rings {
            bell.ring();
        }
        drop((bell, reader));
        let count = std::iter::from_fn(|| wakes.recv_timeout(PATIENCE).ok()).count();
        assert_eq!(count, readers, "rung: {rings}");
    }

    #[test]
    fn every_reader_is_woken_once() {
        for readers in [0, 1, FEW, FEW + 1, 300] {
            for rings in [true, false] {
                check(Bell::default(), readers, rings);
                check(Bell::with_thread().unwrap(), readers, rings);
            }
        }
    }
}
