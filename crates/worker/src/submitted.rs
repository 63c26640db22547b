//! A step that a device is computing.

use std::ops::Range;

use stallfree_core::{PENDING_TOKEN, SampledToken, SeqId, StepOutput, TokenId};
use stallfree_kernels::Choice;

use crate::SamplerError;

/// A step under way. It may be waited for on another thread than the one that started it.
#[derive(Debug)]
pub struct Submitted<C> {
    /// What is known; tokens that the device is choosing are [`PENDING_TOKEN`].
    pub(crate) output: StepOutput,
    choices: Vec<(Range<usize>, C)>,
}

impl<C> Default for Submitted<C> {
    fn default() -> Self {
        Self::from(StepOutput::default())
    }
}

impl<C> From<StepOutput> for Submitted<C> {
    fn from(output: StepOutput) -> Self {
        Self { output, choices: Vec::new() }
    }
}

impl<C: Choice> Submitted<C> {
    /// Adds tokens that the device is choosing, one for each of `seqs`.
    pub(crate) fn add(&mut self, seqs: impl Iterator<Item = SeqId>, choice: C) {
        let tokens = &mut self.output.tokens;
        let first = tokens.len();
        tokens.extend(seqs.map(|seq| SampledToken {
            seq,
            token: PENDING_TOKEN,
            logprobs: Vec::new(),
        }));
        self.choices.push((first..tokens.len(), choice));
    }

    /// Returns whether nothing is left to wait for but the device's own work.
    pub(crate) const fn is_known(&self) -> bool {
        self.choices.is_empty()
    }

    /// Waits for the step; its `device_time` is the caller's to measure.
    ///
    /// # Errors
    /// The model's logits are unsound.
    pub fn wait(mut self) -> Result<StepOutput, SamplerError> {
        for (range, choice) in self.choices {
            for (sampled, token) in self.output.tokens[range].iter_mut().zip(choice.wait()) {
                if token == TokenId::MAX {
                    return Err(SamplerError);
                }
                sampled.token = token;
            }
        }
        Ok(self.output)
    }
}
