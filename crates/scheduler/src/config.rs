//! What every policy is told, and a policy's own settings.

use std::collections::BTreeMap;
use std::str::FromStr;

use stallfree_core::KvGeometry;

use crate::{Error, Ordering};

/// A planner's limits; every policy keeps to them as far as it declares.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The most sequences that run at once.
    pub max_num_seqs: usize,
    /// The most tokens a step, for policies that have a token bound.
    pub max_num_batched_tokens: usize,
    /// The most tokens a step of one sequence, for policies that chunk; 0 for no limit. It lets short prompts pass long ones.
    pub long_prefill_token_threshold: usize,
    /// The most tokens that a sequence may have, prompt and output together.
    pub max_model_len: usize,
    /// In which order sequences run.
    pub ordering: Ordering,
    /// Whether blocks are shared between sequences that start the same.
    pub enable_prefix_caching: bool,
    /// The most batches in flight; [`Planner::schedule`](crate::Planner::schedule) plans nothing beyond it.
    pub max_in_flight: usize,
    /// Whether a sequence decodes again while its newest token is still being sampled. `true` keeps one device busy; `false` suits a
    /// pipeline, where batches in flight should hold different sequences.
    pub decode_pending: bool,
    /// The share of all blocks that admitting a sequence must leave free, so that running ones can grow; policies that reserve
    /// the maximum length do without.
    pub watermark: f64,
    /// The policy's own settings, as given.
    pub settings: BTreeMap<String, String>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            long_prefill_token_threshold: 0,
            max_model_len: 8192,
            ordering: Ordering::Fcfs,
            enable_prefix_caching: true,
            max_in_flight: 1,
            decode_pending: true,
            watermark: 0.01,
            settings: BTreeMap::new(),
        }
    }
}

impl SchedulerConfig {
    /// Returns a setting, or `default` if it was not given.
    ///
    /// # Errors
    /// The value cannot be read; `expected` says what it should be.
    pub fn setting<T: FromStr>(
        &self,
        key: &str,
        default: T,
        expected: &'static str,
    ) -> Result<T, Error> {
        let Some(value) = self.settings.get(key) else { return Ok(default) };
        value.parse().map_err(|_| self.bad_setting(key, expected))
    }

    /// Returns a setting that counts something, at least 1, or `default` if it was not given.
    ///
    /// # Errors
    /// The value is not a number or is 0.
    pub fn count_setting(&self, key: &str, default: usize) -> Result<usize, Error> {
        const EXPECTED: &str = "a whole number, at least 1";
        match self.setting(key, default, EXPECTED)? {
            0 => Err(self.bad_setting(key, EXPECTED)),
            count => Ok(count),
        }
    }

    /// Returns the error for a setting whose value does not do.
    #[must_use]
    pub fn bad_setting(&self, key: &str, expected: &'static str) -> Error {
        let value = self.settings.get(key).cloned().unwrap_or_default();
        Error::BadSetting { key: key.to_owned(), value, expected }
    }

    /// Returns the most tokens of one sequence in a step.
    #[must_use]
    pub const fn max_chunk(&self) -> usize {
        match self.long_prefill_token_threshold {
            0 => usize::MAX,
            threshold => threshold,
        }
    }

    /// Checks the limits against each other and the cache.
    pub(crate) fn check(&self, kv: KvGeometry) -> Result<(), Error> {
        let limits = [
            ("max_num_seqs", self.max_num_seqs, 1),
            ("max_num_batched_tokens", self.max_num_batched_tokens, 1),
            ("max_model_len", self.max_model_len, 2),
            ("max_in_flight", self.max_in_flight, 1),
            ("block_size", kv.block_size, 1),
        ];
        for (name, value, least) in limits {
            if value < least {
                return Err(Error::TooSmall { name, value, least });
            }
        }
        let needed = self.max_model_len.div_ceil(kv.block_size);
        if needed > kv.num_blocks {
            return Err(Error::CacheTooSmall {
                max_model_len: self.max_model_len,
                needed,
                num_blocks: kv.num_blocks,
                fits: kv.num_tokens(),
            });
        }
        Ok(())
    }
}
