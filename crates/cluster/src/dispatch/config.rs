//! What dispatching can be told.

use std::time::Duration;

use stallfree_engine::Ordering;

use super::DISPATCH_POLICIES;

/// What dispatching can be told; each policy takes what concerns it.
#[derive(Clone, Debug, PartialEq)]
pub struct DispatchConfig {
    /// The policy's name.
    pub policy: String,
    /// The order of the queues of instances that prefill.
    pub prefill_order: Ordering,
    /// `multiplexing`: prompts of as many tokens or more are not computed on instances that decode.
    pub max_multiplexing_length: usize,
    /// `multiplexing`: the most tokens of all decodes of an instance that is given a prompt, with the prompt's.
    pub decode_tokens_watermark: usize,
    /// `multiplexing`: the longest that a decode step of an instance may take that is given a prompt.
    pub decode_step_watermark: Duration,
    /// How long a sequence waits at most that the policy gives to nobody; then its client is told to try again.
    pub timeout: Duration,
    /// Whether a request is refused as it comes if its first token cannot be there in time.
    pub early_rejection: bool,
}

impl DispatchConfig {
    /// Returns the defaults with a policy; those of `multiplexing` are Tropical's.
    #[must_use]
    pub fn named(policy: impl Into<String>) -> Self {
        Self {
            policy: policy.into(),
            prefill_order: Ordering::Fcfs,
            max_multiplexing_length: 8192,
            decode_tokens_watermark: 400_000,
            decode_step_watermark: Duration::from_millis(850),
            timeout: Duration::from_secs(60),
            early_rejection: false,
        }
    }
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self::named(DISPATCH_POLICIES[0].name)
    }
}
