//! One choice: the engine's tokens become text, and end where a stop string says so.
//!
//! It knows nothing of JSON. Dropping a choice cancels its sequence.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use stallfree_core::{FinishReason, TokenId, TokenLogprob};
use stallfree_engine::{Finished, OutputStream, OutputToken, SeqOutput};
use stallfree_tokenizer::{Detokenizer, StopFeed, StopStrings};

use crate::ApiError;
use crate::metrics::SequenceRecord;
use crate::protocol::common::StopReason;

/// What a choice has newly produced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    /// Which choice.
    pub choice: usize,
    /// Whether it is this choice's first.
    pub is_first: bool,
    /// Text.
    pub text: String,
    /// The tokens behind the text; some may stand for none.
    pub tokens: Vec<OutputToken>,
    /// Logprobs of the prompt from its second token on; with the first delta only.
    pub prompt_logprobs: Vec<Vec<TokenLogprob>>,
    /// Set on the last delta.
    pub finish: Option<Finish>,
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    /// OpenAI's word for it.
    pub reason: &'static str,
    /// What stopped it, unless it was the end-of-sequence token or the length.
    pub stopped_by: Option<StopReason>,
}

/// How a choice is to be produced.
#[derive(Clone, Debug)]
pub(crate) struct ChoiceRules {
    /// The texts that end it.
    pub stop_strings: Vec<String>,
    /// Whether the text or token that ended it belongs to the text.
    pub include_stop_str_in_output: bool,
    /// No text ends it before this many tokens.
    pub min_tokens: usize,
    /// Whether only the prompt is wanted.
    pub prompt_only: bool,
    /// Tokens that end it without being reported as what stopped it.
    pub eos_token_ids: Vec<TokenId>,
}

/// A choice under way.
#[derive(Debug)]
pub(crate) struct Choice {
    /// `None` once it has ended.
    stream: Option<OutputStream>,
    rules: Arc<ChoiceRules>,
    detokenizer: Detokenizer,
    stops: StopStrings,
    record: SequenceRecord,
    /// What was produced, but is not complete enough to be shown.
    pending: Delta,
}

impl Delta {
    /// Adds what came later.
    pub(crate) fn append(&mut self, later: Self) {
        self.text.push_str(&later.text);
        self.tokens.extend(later.tokens);
        self.prompt_logprobs.extend(later.prompt_logprobs);
        self.finish = later.finish;
    }
}

impl Choice {
    /// Starts a choice on a sequence's output.
    pub(crate) fn new(
        index: usize,
        stream: OutputStream,
        rules: Arc<ChoiceRules>,
        detokenizer: Detokenizer,
        record: SequenceRecord,
    ) -> Self {
        let stops = StopStrings::new(rules.stop_strings.clone(), rules.include_stop_str_in_output);
        let pending = Delta { choice: index, is_first: true, ..Delta::default() };
        Self { stream: Some(stream), rules, detokenizer, stops, record, pending }
    }

    /// Returns how many tokens it has produced.
    pub(crate) const fn num_tokens(&self) -> usize {
        self.record.num_tokens()
    }

    /// Returns how many of its prompt's tokens were found in the prefix cache.
    pub(crate) fn num_cached_tokens(&self) -> usize {
        self.record.num_cached_tokens()
    }

    /// Returns the next delta that has text or ends the choice; `None` after the last.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Delta, ApiError>>> {
        while let Some(stream) = &mut self.stream {
            let lost = || ApiError::Internal("the engine ended the sequence without a word".into());
            let output = ready!(stream.poll_next(cx)).ok_or_else(lost);
            if let Err(error) = output.and_then(|output| self.apply(output)) {
                self.stream = None;
                return Poll::Ready(Some(Err(error)));
            }
            if !self.pending.text.is_empty() || self.pending.finish.is_some() {
                let next = Delta { choice: self.pending.choice, ..Delta::default() };
                return Poll::Ready(Some(Ok(std::mem::replace(&mut self.pending, next))));
            }
        }
        Poll::Ready(None)
    }

    fn apply(&mut self, output: SeqOutput) -> Result<(), ApiError> {
        if let Some(message) = output.error {
            return Err(match output.retry_after {
                Some(retry_after) => ApiError::Overloaded { message, retry_after },
                None => ApiError::Internal(message),
            });
        }
        if let Some(admission) = output.admission {
            self.record.admitted(admission);
        }
        self.pending.prompt_logprobs.extend(output.prompt_logprobs);
        if self.rules.prompt_only {
            if !output.tokens.is_empty() || output.finished.is_some() {
                self.end("length", None);
            }
            return Ok(());
        }
        let stop_token = output.finished.as_ref().and_then(|finished| finished.stop_token);
        let last = output.tokens.len().saturating_sub(1);
        for (i, token) in output.tokens.into_iter().enumerate() {
            let ends = i == last && stop_token.is_some();
            if let Some(matched) = self.push(token, ends) {
                self.end("stop", Some(StopReason::Text(matched)));
                return Ok(());
            }
        }
        if let Some(finished) = output.finished {
            self.finish(&finished);
        }
        Ok(())
    }

    /// Takes a token and returns the stop string that its text completes. A token that `ends` the choice by its id has no
    /// text unless that was asked for.
    fn push(&mut self, token: OutputToken, ends: bool) -> Option<String> {
        self.record.token(token.at);
        let id = token.token;
        self.pending.tokens.push(token);
        if ends && !self.rules.include_stop_str_in_output {
            return None;
        }
        let piece = self.detokenizer.push(id);
        if self.record.num_tokens() < self.rules.min_tokens {
            self.pending.text.push_str(piece);
            return None;
        }
        let fed = self.stops.feed(piece);
        self.take(&fed)
    }

    fn take(&mut self, fed: &StopFeed) -> Option<String> {
        self.pending.text.push_str(&fed.text);
        fed.matched.and_then(|matched| self.rules.stop_strings.get(matched).cloned())
    }

    /// Ends the choice as the engine did, with all text that was held back.
    fn finish(&mut self, finished: &Finished) {
        self.record.lived(&finished.times);
        let fed = self.stops.feed(self.detokenizer.flush());
        if let Some(matched) = self.take(&fed) {
            return self.end("stop", Some(StopReason::Text(matched)));
        }
        let held = self.stops.flush();
        self.pending.text.push_str(&held);
        let reason = match finished.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
        };
        let token = finished.stop_token.filter(|id| !self.rules.eos_token_ids.contains(id));
        self.end(reason, token.map(StopReason::Token));
    }

    fn end(&mut self, reason: &'static str, stopped_by: Option<StopReason>) {
        // Dropping the stream cancels a sequence that the engine would continue.
        self.stream = None;
        self.record.finish(reason);
        self.pending.finish = Some(Finish { reason, stopped_by });
    }
}
