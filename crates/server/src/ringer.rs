//! Wakes all readers of a step's tokens from within the runtime that they are tasks of.

use std::sync::Arc;

use stallfree_engine::Ringer;
use tokio::runtime::Handle;

/// Returns what wakes readers on one of `runtime`'s threads.
///
/// From outside, a task is woken through a queue that all threads share, and with it a thread if one sleeps: at 256 readers a step,
/// threads are woken again and again for a token each. From within, tasks go to the thread's own queue, from which others take half.
#[must_use]
pub fn ringer_on(runtime: &Handle) -> Ringer {
    let runtime = runtime.clone();
    Arc::new(move |readers| {
        // On a runtime that has ended they are dropped at once, and so woken, too.
        drop(runtime.spawn(async move { drop(readers) }));
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::thread;
    use std::time::Duration;

    use stallfree_engine::Readers;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn check(runtime: Runtime, ends_first: bool) {
        let (count, ringer) = (Arc::new(Count::default()), ringer_on(runtime.handle()));
        let running = (!ends_first).then_some(runtime);
        ringer(Readers::from(vec![Waker::from(Arc::clone(&count)); 300]));
        let woken = || count.0.load(Ordering::SeqCst);
        for _ in (0..10_000).take_while(|_| woken() < 300) {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(woken(), 300, "ended: {ends_first}");
        drop(running);
    }

    #[test]
    fn every_reader_is_woken_also_where_the_runtime_has_ended() {
        for ends_first in [false, true] {
            check(Builder::new_multi_thread().worker_threads(2).build().unwrap(), ends_first);
        }
    }
}
