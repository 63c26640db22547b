//! Looks after ranks that wait for others on GPUs, and frees them when one of those is lost.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stallfree_comm::ControlSender;
use stallfree_comm::nccl::Communicator;
use stallfree_core::{BatchId, Clock, ExecutorError, Time, WallClock, lock};

use crate::executor::Outbox;

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(250);
/// After so long a step counts as one that waits for a rank without end: none takes as long.
const STEP_PATIENCE: Duration = Duration::from_secs(60);
/// How long the last steps have to end by themselves.
const GRACE: Duration = Duration::from_secs(3);

/// What ends everybody's waiting: this process's communicators, and the connections to other nodes, which then end theirs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Breaker(Arc<Mutex<Cuts>>);

#[derive(Debug, Default)]
struct Cuts {
    communicators: Vec<Arc<Communicator>>,
    nodes: Vec<ControlSender>,
}

impl Breaker {
    pub(crate) fn add_communicators(&self, communicators: &[Arc<Communicator>]) {
        lock(&self.0).communicators.extend_from_slice(communicators);
    }

    pub(crate) fn add_node(&self, node: ControlSender) {
        lock(&self.0).nodes.push(node);
    }

    /// Ends all waiting, now.
    pub(crate) fn pull(&self) {
        let Cuts { communicators, nodes } = std::mem::take(&mut *lock(&self.0));
        nodes.iter().for_each(ControlSender::close);
        communicators.iter().for_each(|communicator| communicator.abort());
    }

    /// Ends all waiting on GPUs that is not over in a few seconds, unless what is returned is dropped before.
    pub(crate) fn pull_later(&self) -> Option<Sender<()>> {
        if lock(&self.0).communicators.is_empty() {
            return None;
        }
        let ((ended, waiting), this) = (channel::<()>(), self.clone());
        let thread = std::thread::Builder::new().name("stallfree-breaker".to_owned());
        let spawned = thread.spawn(move || {
            if waiting.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
                this.pull();
            }
        });
        spawned.ok().map(|_| ended)
    }
}

/// Since when a rank waits for the step that its GPU computes, if it does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wait(Arc<Mutex<Option<Time>>>);

impl Wait {
    /// Takes note of the time that `work` takes.
    pub(crate) fn during<T>(&self, clock: WallClock, work: impl FnOnce() -> T) -> T {
        *lock(&self.0) = Some(clock.now());
        let done = work();
        *lock(&self.0) = None;
        done
    }

    fn is_too_long(&self, now: Time) -> bool {
        lock(&self.0).is_some_and(|since| now - since > STEP_PATIENCE)
    }
}

/// What a watchdog looks at.
pub(crate) struct Watch {
    pub(crate) communicators: Vec<Arc<Communicator>>,
    pub(crate) waits: Vec<Wait>,
    pub(crate) clock: WallClock,
}

impl Watch {
    /// Looks until `stop` ends or something is wrong, which goes into the outbox, and so pulls the breaker.
    pub(crate) fn run(&self, stop: &Receiver<()>, outbox: &Outbox) {
        while stop.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            if let Some(reason) = self.problem() {
                outbox.put(Err(ExecutorError { batch: BatchId(0), reason }));
                return;
            }
        }
    }

    fn problem(&self) -> Option<String> {
        let now = self.clock.now();
        if self.waits.iter().any(|wait| wait.is_too_long(now)) {
            let seconds = STEP_PATIENCE.as_secs();
            return Some(format!("a step has not ended after {seconds} s: a rank is lost"));
        }
        let mut problems = self.communicators.iter().filter_map(|ranks| ranks.problem());
        problems.next().map(|problem| problem.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stallfree_core::{Clock, WallClock};

    use super::{STEP_PATIENCE, Wait};

    #[test]
    fn only_a_step_under_way_can_take_too_long() {
        let (wait, clock) = (Wait::default(), WallClock::start());
        let later = |more: Duration| clock.now() + STEP_PATIENCE + more;
        assert!(!wait.is_too_long(later(Duration::from_secs(1))));
        wait.during(clock, || {
            assert!(!wait.is_too_long(clock.now()));
            assert!(wait.is_too_long(later(Duration::from_secs(1))));
        });
        assert!(!wait.is_too_long(later(Duration::from_secs(1))));
    }
}
