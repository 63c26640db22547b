//! A step that a device is computing.

use stallfree_core::{SampledToken, SeqId, StepOutput, TokenId};
use stallfree_kernels::Choice;

/// A step under way. It may be waited for on another thread than the one that started it.
#[derive(Debug)]
pub struct Submitted<C> {
    /// What is known.
    output: StepOutput,
    choices: Vec<(Vec<Purpose>, C)>,
}

/// What a row of logits is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// The next token of a sequence.
    Token(SeqId),
    /// The logprobs of a token of a sequence's prompt.
    PromptLogprobs(SeqId),
}

impl<C> Default for Submitted<C> {
    fn default() -> Self {
        Self { output: StepOutput::default(), choices: Vec::new() }
    }
}

impl<C: Choice> Submitted<C> {
    /// Makes a step that is done.
    pub(crate) const fn known(output: StepOutput) -> Self {
        Self { output, choices: Vec::new() }
    }

    /// Adds what the device is choosing, one for each purpose.
    pub(crate) fn add(&mut self, purposes: Vec<Purpose>, choice: C) {
        self.choices.push((purposes, choice));
    }

    /// Returns whether there is nothing to wait for.
    pub(crate) const fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Returns the sequences whose tokens are being drawn, with the tokens' places among the step's choices.
    pub(crate) fn drawn(&self) -> impl Iterator<Item = (SeqId, u32)> {
        let purposes = self.choices.iter().flat_map(|(purposes, _)| purposes);
        purposes.zip(0..).filter_map(|(purpose, place)| match purpose {
            Purpose::Token(seq) => Some((*seq, place)),
            Purpose::PromptLogprobs(_) => None,
        })
    }

    /// Waits for the step; its `device_time` is the caller's to measure.
    #[must_use]
    pub fn wait(self) -> StepOutput {
        let mut output = self.output;
        for (purposes, choice) in self.choices {
            output.tokens.reserve(purposes.len());
            for (purpose, sampled) in purposes.into_iter().zip(choice.wait()) {
                // The row has a logit that is no finite number, see `Sampled`.
                if sampled.token == TokenId::MAX {
                    let (Purpose::Token(seq) | Purpose::PromptLogprobs(seq)) = purpose;
                    output.unsound.push(seq);
                    continue;
                }
                let (token, logprobs) = (sampled.token, sampled.logprobs);
                match (purpose, output.prompt_logprobs.last_mut()) {
                    (Purpose::Token(seq), _) => {
                        output.tokens.push(SampledToken { seq, token, logprobs });
                    }
                    (Purpose::PromptLogprobs(seq), Some((last, lists))) if *last == seq => {
                        lists.push(logprobs);
                    }
                    (Purpose::PromptLogprobs(seq), _) => {
                        output.prompt_logprobs.push((seq, vec![logprobs]));
                    }
                }
            }
        }
        output
    }
}
