//! A request in which nothing is left to decide: what `input` makes and `generate` runs.

use std::sync::Arc;

use stallfree_core::{Request, SamplingParams, Slo, StopRules, TokenId};
use uuid::Uuid;

use crate::input::sampling::{Common, Report, StopSettings, StreamOptions};

/// What one HTTP request asks to be generated.
#[derive(Clone, Debug)]
pub(crate) struct GenerationRequest {
    /// What is to be continued; at least one.
    pub prompts: Vec<Prompt>,
    /// How often each is continued.
    pub n: usize,
    /// The seed of every choice, in the order of their indices.
    pub seeds: Vec<u64>,
    /// How tokens are drawn; its own seed is not used.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopSettings,
    /// Lower runs earlier.
    pub priority: i32,
    /// What each choice is promised.
    pub slo: Slo,
    /// Whether each choice starts with its prompt.
    pub echo: bool,
    /// Whether the prompt's logprobs are reported on their own, in vLLM's shape.
    pub report_prompt_logprobs: bool,
    /// What to report, and how.
    pub report: Report,
    /// Set if the answer is to be streamed.
    pub stream: Option<StreamOptions>,
}

/// A prompt, tokenized and within the model's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// Its tokens.
    pub token_ids: Vec<TokenId>,
    /// Its text; empty unless it is to be echoed.
    pub text: String,
    /// The most tokens to add; 0 asks for nothing but the prompt's logprobs.
    pub max_tokens: usize,
}

impl GenerationRequest {
    /// Puts together what both endpoints read with what each reads on its own.
    pub(crate) fn new(common: Common, prompts: Vec<Prompt>, logprobs: Option<u32>) -> Self {
        let seeds = prompts.iter().flat_map(|_| seeds(common.seed, common.n)).collect();
        let sampling =
            SamplingParams { logprobs, prompt_logprobs: common.prompt_logprobs, ..common.sampling };
        Self {
            prompts,
            n: common.n,
            seeds,
            sampling,
            stop: common.stop,
            priority: common.priority,
            slo: common.slo,
            echo: false,
            report_prompt_logprobs: common.prompt_logprobs.is_some(),
            report: common.report,
            stream: common.stream,
        }
    }

    /// Makes each choice start with its prompt; where logprobs are wanted, with the prompt's as well.
    pub(crate) fn with_echo(mut self, echo: bool) -> Self {
        self.echo = echo;
        if echo {
            self.sampling.prompt_logprobs =
                self.sampling.prompt_logprobs.max(self.sampling.logprobs);
        }
        self
    }

    /// Returns the prompt that a choice continues.
    pub(crate) fn prompt_of(&self, choice: usize) -> Option<&Prompt> {
        self.prompts.get(choice / self.n)
    }

    /// Returns what the engine is asked for each choice, in the order of their indices.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = Request> {
        self.seeds.iter().enumerate().filter_map(|(choice, &seed)| {
            let prompt = self.prompt_of(choice)?;
            Some(Request {
                prompt: prompt.token_ids.clone(),
                sampling: Arc::new(SamplingParams { seed, ..self.sampling.clone() }),
                stop: StopRules {
                    max_tokens: prompt.max_tokens.max(1),
                    min_tokens: self.stop.min_tokens,
                    stop_token_ids: self.stop.token_ids.clone(),
                },
                priority: self.priority,
                slo: self.slo,
            })
        })
    }
}

/// Returns the seeds of one prompt's choices: the given one first, others drawn from it; without one, from the system's entropy.
fn seeds(given: Option<u64>, n: usize) -> Vec<u64> {
    let first = given.unwrap_or_else(entropy);
    (0..n as u64).map(|i| if i == 0 { first } else { split_mix(first, i) }).collect()
}

/// Returns the `i`-th output of the generator with this state.
///
/// # Source
/// Steele, Lea and Flood: Fast splittable pseudorandom number generators (2014), SplitMix64.
fn split_mix(state: u64, i: u64) -> u64 {
    let z = state.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns 64 bits of the system's entropy: a random UUID's six fixed bits are covered by random ones.
fn entropy() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::seeds;

    #[test]
    fn the_first_choice_has_the_given_seed_and_all_differ() {
        let given = seeds(Some(42), 100);
        assert_eq!(given, seeds(Some(42), 100));
        assert_eq!(given[0], 42);
        let mut distinct = given;
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 100);
        assert_ne!(seeds(None, 1), seeds(None, 1));
    }
}
