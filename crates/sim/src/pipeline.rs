//! Stages that batches pass one after the other.

use std::time::Duration;

use stallfree_core::Time;

/// When each stage will be free.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    free_at: Vec<Time>,
}

impl Pipeline {
    pub(crate) fn new(num_stages: usize) -> Self {
        Self { free_at: vec![Time::ZERO; num_stages] }
    }

    /// Sends a batch through, no earlier than `from`; returns when it enters the first stage and when it leaves the last.
    ///
    /// A batch enters a stage when it has left the one before and the stage has let the batch before it go.
    pub(crate) fn pass(&mut self, from: Time, stage_times: &[Duration]) -> (Time, Time) {
        let mut at = from;
        let mut entered = None;
        for (free_at, &time) in self.free_at.iter_mut().zip(stage_times) {
            let start = at.max(*free_at);
            entered = entered.or(Some(start));
            at = start + time;
            *free_at = at;
        }
        (entered.unwrap_or(from), at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_overlap_in_different_stages_and_queue_in_the_same() {
        let seconds = |s: u64| Time::from_start(Duration::from_secs(s));
        let times = [Duration::from_secs(2), Duration::from_secs(3)];
        let mut pipeline = Pipeline::new(2);
        assert_eq!(pipeline.pass(seconds(1), &times), (seconds(1), seconds(6)));
        // It enters the first stage at 3, waits for the second until 6.
        assert_eq!(pipeline.pass(seconds(1), &times), (seconds(3), seconds(9)));
        assert_eq!(pipeline.pass(seconds(20), &times), (seconds(20), seconds(25)));
    }
}
