//! In which order sequences run, where a policy has the choice.

use std::time::Duration;

use stallfree_core::Time;

/// In which order sequences run, where a policy has the choice; of equals, the earlier to come is first.
///
/// # Source
/// Beside vLLM's two: the prefill queues of Tropical (2026), section on scheduling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// Earlier arrivals first.
    #[default]
    Fcfs,
    /// Lower [`priority`](crate::Sequence::priority) first. A waiting sequence takes the place of a running one of higher `priority`.
    Priority,
    /// Shorter prompts first.
    Sjf,
    /// Longer prompts first.
    Ljf,
    /// Earlier [`deadline`](crate::Sequence::deadline)s first; those without one last.
    Edf,
    /// Least laxity first: by the latest moment at which the prefill may begin to meet its deadline. As time passes all have less,
    /// by the same, so that the order stays.
    Llf,
}

/// What a sequence's place depends on. None of it changes while the sequence is in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Lower is earlier under [`Ordering::Priority`].
    pub priority: i32,
    /// Tokens of its prompt.
    pub prompt_len: usize,
    /// When its first token is due.
    pub deadline: Option<Time>,
    /// About how long its prompt takes.
    pub prefill_time: Duration,
}

impl Ordering {
    /// Returns a number that is lower for those that are earlier; of equals, the earlier arrival is.
    #[must_use]
    pub fn rank(self, standing: &Standing) -> i64 {
        let Standing { priority, prompt_len, deadline, prefill_time } = *standing;
        let prompt_len = i64::try_from(prompt_len).unwrap_or(i64::MAX);
        let deadline = deadline.map_or(i64::MAX, |deadline| nanos(deadline.since_start()));
        match self {
            Self::Fcfs => 0,
            Self::Priority => i64::from(priority),
            Self::Sjf => prompt_len,
            Self::Ljf => -prompt_len,
            Self::Edf => deadline,
            Self::Llf if deadline == i64::MAX => deadline,
            Self::Llf => deadline - nanos(prefill_time),
        }
    }
}

/// Half of the largest, so that differences of two can be told.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}
