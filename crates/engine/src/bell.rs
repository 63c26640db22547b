//! Wakes the readers of a step's tokens.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::Waker;
use std::thread;

/// As many readers are woken by the engine's own thread if nobody else does it; it takes a few microseconds each where their threads
/// sleep.
const FEW: usize = 8;

/// Readers of a step's tokens that are to be woken. Whoever drops it wakes them, so that nobody is forgotten.
#[derive(Default)]
pub struct Readers(Vec<Waker>);

/// Takes the readers of a step's tokens and has them woken soon: it is called in the step loop, and must be quick.
///
/// Where readers are tasks of a runtime, it is best done on a thread of that runtime. Woken from outside, one after the other, each may
/// wake a thread, which reads one sequence's token and sleeps again before the next reader is woken.
pub type Ringer = Arc<dyn Fn(Readers) + Send + Sync>;

/// Collects whom to wake, and leaves it to a ringer: a step is planned meanwhile.
#[derive(Default)]
pub(crate) struct Bell {
    /// None where time is virtual.
    ringer: Option<Ringer>,
    readers: Readers,
}

impl Readers {
    /// Returns how many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<Waker>> for Readers {
    fn from(readers: Vec<Waker>) -> Self {
        Self(readers)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readers").field(&self.0.len()).finish()
    }
}

impl Bell {
    /// Returns a bell that `ringer` rings.
    pub(crate) fn rung_by(ringer: Ringer) -> Self {
        Self { ringer: Some(ringer), readers: Readers::default() }
    }

    /// Returns a bell with a thread, which ends with it.
    pub(crate) fn with_thread() -> std::io::Result<Self> {
        let (ringer, due) = channel::<Readers>();
        thread::Builder::new()
            .name("stallfree-bell".to_owned())
            .spawn(move || due.into_iter().for_each(drop))?;
        Ok(Self::rung_by(Arc::new(move |readers| {
            if readers.len() > FEW {
                // Without the thread they come back, and are dropped here.
                drop(ringer.send(readers));
            }
        })))
    }

    /// Has a reader woken at the next [`ring`](Self::ring).
    pub(crate) fn add(&mut self, reader: Waker) {
        self.readers.0.push(reader);
    }

    /// Wakes all that were added.
    pub(crate) fn ring(&mut self) {
        let capacity = self.readers.len();
        let next = Readers(Vec::with_capacity(capacity));
        let readers = std::mem::replace(&mut self.readers, next);
        match &self.ringer {
            Some(ringer) if readers.len() > 1 => ringer(readers),
            _ => drop(readers),
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("readers", &self.readers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};
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
        for readers in [0, 1, 2, FEW, FEW + 1, 300] {
            for rings in [true, false] {
                check(Bell::default(), readers, rings);
                check(Bell::with_thread().unwrap(), readers, rings);
                // Even one that forgets them.
                check(Bell::rung_by(Arc::new(drop)), readers, rings);
            }
        }
    }
}
