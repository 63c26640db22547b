//! A sequence, as far as dispatching goes.

use std::time::Duration;

use stallfree_core::{Slo, Time};
use stallfree_engine::{HandedOver, Standing};

/// What is known of a sequence when it needs an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeqView {
    /// How many tokens it has.
    pub num_tokens: usize,
    /// How many of them have to be computed: none but the last, if its KV can be fetched.
    pub num_uncomputed: usize,
    /// How many of them were produced.
    pub num_output: usize,
    /// Lower is earlier, where priorities count.
    pub priority: i32,
    /// When it came.
    pub arrived: Time,
    /// When it had its first token, if it has.
    pub first_token: Option<Time>,
    /// What it was promised.
    pub slo: Slo,
}

impl SeqView {
    pub(crate) fn of(seq: &HandedOver) -> Self {
        let num_output = seq.output_tokens.len();
        let num_tokens = seq.request.prompt.len() + num_output;
        let num_computed = seq.kv.as_ref().map_or(0, |kv| kv.num_tokens);
        Self {
            num_tokens,
            num_uncomputed: num_tokens.saturating_sub(num_computed),
            num_output,
            priority: seq.request.priority,
            arrived: seq.arrived,
            first_token: seq.progress.times.first_token,
            slo: seq.request.slo,
        }
    }

    /// Returns whether there is more to compute than the last token.
    #[must_use]
    pub const fn is_prompt(&self) -> bool {
        self.num_uncomputed > 1 || (self.num_uncomputed > 0 && self.num_output == 0)
    }

    /// Returns when its first token is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let ttft = self.slo.ttft.filter(|_| self.first_token.is_none())?;
        Some(self.arrived + ttft)
    }

    /// Returns until when its next token but one can wait, see [`Report::slack_until`](stallfree_engine::Report::slack_until).
    #[must_use]
    pub fn slack_until(&self) -> Option<Time> {
        let produced = u32::try_from(self.num_output).unwrap_or(u32::MAX);
        Some(self.first_token? + self.slo.tpot? * produced.saturating_sub(1))
    }

    /// Returns what its place in a queue depends on.
    #[must_use]
    pub fn standing(&self, prefill_time: Duration) -> Standing {
        Standing {
            priority: self.priority,
            prompt_len: self.num_tokens,
            deadline: self.deadline(),
            prefill_time,
        }
    }
}
