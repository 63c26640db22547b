//! The generation loop that both endpoints share: a request goes to the engine, its choices' deltas come back.
//!
//! It knows nothing of JSON or HTTP. Dropping a [`Generation`], as happens when the client leaves, cancels all its sequences.
//! On the main path after `routes/chat.rs`, before the tokenizer's `tokenizer.rs`, which `choice` uses on the way back.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use stallfree_tokenizer::{Detokenizer, DetokenizerOptions};

use crate::choice::{Choice, ChoiceRules, Delta};
use crate::metrics::{RequestRecord, SequenceRecord};
use crate::protocol::common::{PromptTokensDetails, Usage};
use crate::request::GenerationRequest;
use crate::state::LoadGuard;
use crate::{ApiError, AppState};

/// A request under way.
#[derive(Debug)]
pub(crate) struct Generation {
    request: GenerationRequest,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    record: RequestRecord,
    /// Counts the request as under way for as long as anything of it is.
    _load: LoadGuard,
}

impl Generation {
    /// Hands every choice of a request to the engine: all of them, or none.
    pub(crate) fn start(
        state: &AppState,
        request: GenerationRequest,
        load: LoadGuard,
    ) -> Result<Self, ApiError> {
        let arrived = state.engine().now();
        let rules = choice_rules(state, &request);
        let mut choices = Vec::with_capacity(request.seeds.len());
        for (index, sequence) in request.sequences().enumerate() {
            let max_tokens = sequence.stop.max_tokens;
            let options = DetokenizerOptions {
                skip_special_tokens: request.report.skip_special_tokens,
                spaces_between_special_tokens: request.report.spaces_between_special_tokens,
            };
            let tokenizer = state.tokenizer().clone();
            let detokenizer = Detokenizer::after_prompt(tokenizer, options, &sequence.prompt);
            let prompt_len = sequence.prompt.len();
            let stream = state.engine().submit(sequence)?;
            let record = SequenceRecord::new(state, arrived, prompt_len, max_tokens);
            choices.push(Choice::new(index, stream, rules.clone(), detokenizer, record));
        }
        let prompt_tokens = request.prompts.iter().map(|prompt| prompt.token_ids.len()).sum();
        let record = RequestRecord::new(state, request.n);
        Ok(Self { request, choices, prompt_tokens, record, _load: load })
    }

    /// Returns what was asked.
    pub(crate) const fn request(&self) -> &GenerationRequest {
        &self.request
    }

    /// Waits for output and returns all that there is, in the order of the choices; nothing after the end.
    pub(crate) async fn next(&mut self) -> Result<Vec<Delta>, ApiError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Delta>, ApiError>> {
        let mut deltas = Vec::new();
        let mut running = false;
        for choice in &mut self.choices {
            match choice.poll_next(cx) {
                Poll::Ready(Some(Ok(delta))) => deltas.push(delta),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => {}
                Poll::Pending => running = true,
            }
        }
        if deltas.is_empty() && running {
            return Poll::Pending;
        }
        if deltas.is_empty() {
            self.record.finish(self.choices.iter().map(Choice::num_tokens));
        }
        Poll::Ready(Ok(deltas))
    }

    /// Runs to the end and returns each choice as one delta.
    pub(crate) async fn collect(&mut self) -> Result<Vec<Delta>, ApiError> {
        let mut whole: Vec<Delta> = Vec::new();
        whole.resize_with(self.choices.len(), Delta::default);
        loop {
            let deltas = self.next().await?;
            if deltas.is_empty() {
                return Ok(whole);
            }
            for delta in deltas {
                if let Some(choice) = whole.get_mut(delta.choice) {
                    if delta.is_first {
                        *choice = delta;
                    } else {
                        choice.append(delta);
                    }
                }
            }
        }
    }

    /// Returns the tokens taken so far by all choices.
    pub(crate) fn usage(&self) -> Usage {
        let completion_tokens = self.choices.iter().map(Choice::num_tokens).sum();
        // A prompt's first choice tells; the others find what the first has computed.
        let firsts = self.choices.iter().step_by(self.request.n);
        let cached_tokens = firsts.map(Choice::num_cached_tokens).sum();
        Usage {
            prompt_tokens: self.prompt_tokens,
            total_tokens: self.prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }

    /// Returns the tokens taken so far by one choice and its prompt: what a stream's chunk reports.
    pub(crate) fn usage_of(&self, choice: usize) -> Usage {
        let prompt_tokens =
            self.request.prompt_of(choice).map_or(0, |prompt| prompt.token_ids.len());
        let choice = self.choices.get(choice);
        let completion_tokens = choice.map_or(0, Choice::num_tokens);
        let cached_tokens = choice.map_or(0, Choice::num_cached_tokens);
        Usage {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

fn choice_rules(state: &AppState, request: &GenerationRequest) -> Arc<ChoiceRules> {
    Arc::new(ChoiceRules {
        stop_strings: request.stop.strings.clone(),
        include_stop_str_in_output: request.stop.include_stop_str_in_output,
        min_tokens: request.stop.min_tokens,
        prompt_only: request.prompts.iter().all(|prompt| prompt.max_tokens == 0),
        eos_token_ids: state.config().eos_token_ids.clone(),
    })
}
