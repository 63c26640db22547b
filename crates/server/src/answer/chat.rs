//! The shape of `/v1/chat/completions`.

use super::names::TokenNames;
use super::{Format, Head, prompt_logprobs, to_json};
use crate::choice::Delta;
use crate::protocol::chat::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, DeltaMessage, Message,
    TokenEntry,
};
use crate::protocol::common::{ChunkUsage, Usage};
use crate::request::GenerationRequest;

/// Writes chat completions.
#[derive(Debug)]
pub(crate) struct ChatFormat {
    /// What all bodies have in common.
    pub head: Head,
    /// How logprobs name tokens.
    pub names: TokenNames,
    /// Who speaks.
    pub role: String,
    /// What each choice's text starts with.
    pub prefix: String,
}

impl ChatFormat {
    fn logprobs(&self, request: &GenerationRequest, delta: &Delta) -> Option<ChatLogprobs> {
        let num_top = request.sampling.logprobs? as usize;
        let content = delta.tokens.iter().map(|token| {
            let own = token.logprobs.first().map_or(f32::NEG_INFINITY, |own| own.logprob);
            let top = token.logprobs.iter().skip(1).take(num_top);
            TokenEntry {
                token: self.names.entry(token.token, own),
                top_logprobs: top.map(|lp| self.names.entry(lp.token, lp.logprob)).collect(),
            }
        });
        Some(ChatLogprobs { content: content.collect(), refusal: None })
    }

    fn text(&self, delta: &Delta) -> String {
        if delta.is_first { format!("{}{}", self.prefix, delta.text) } else { delta.text.clone() }
    }

    fn choice(&self, request: &GenerationRequest, delta: Delta) -> ChatChoice {
        let logprobs = self.logprobs(request, &delta);
        let content = self.text(&delta);
        ChatChoice {
            index: delta.choice,
            message: Message { role: self.role.clone(), content, refusal: None },
            logprobs,
            token_ids: token_ids(request, &delta),
            finish_reason: delta.finish.as_ref().map(|finish| finish.reason),
            stop_reason: delta.finish.and_then(|finish| finish.stopped_by),
        }
    }

    fn chunk_choice(&self, request: &GenerationRequest, delta: Delta) -> ChatChunkChoice {
        let logprobs = self.logprobs(request, &delta);
        let content = self.text(&delta);
        ChatChunkChoice {
            index: delta.choice,
            delta: DeltaMessage { role: delta.is_first.then(|| self.role.clone()), content },
            logprobs,
            token_ids: token_ids(request, &delta),
            finish_reason: delta.finish.as_ref().map(|finish| finish.reason),
            stop_reason: delta.finish.and_then(|finish| finish.stopped_by),
        }
    }

    fn to_chunk(
        &self,
        choices: Vec<ChatChunkChoice>,
        usage: Option<ChunkUsage>,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> String {
        let Head { id, created, model } = &self.head;
        let object = "chat.completion.chunk";
        to_json(&ChatChunk {
            id,
            object,
            created: *created,
            model,
            choices,
            usage,
            prompt_token_ids,
        })
    }
}

impl Format for ChatFormat {
    fn whole(&mut self, request: &GenerationRequest, deltas: Vec<Delta>, usage: Usage) -> String {
        let entries = deltas.first().map_or(&[][..], |delta| &delta.prompt_logprobs);
        let prompt_logprobs =
            request.report_prompt_logprobs.then(|| prompt_logprobs(&self.names.tokenizer, entries));
        let Head { id, created, model } = &self.head;
        to_json(&ChatCompletion {
            id,
            object: "chat.completion",
            created: *created,
            model,
            choices: deltas.into_iter().map(|delta| self.choice(request, delta)).collect(),
            system_fingerprint: None,
            usage,
            prompt_logprobs,
            prompt_token_ids: prompt_token_ids(request),
        })
    }

    fn chunk(
        &mut self,
        request: &GenerationRequest,
        delta: Delta,
        usage: Option<ChunkUsage>,
    ) -> String {
        let prompt_token_ids = if delta.is_first { prompt_token_ids(request) } else { None };
        self.to_chunk(vec![self.chunk_choice(request, delta)], usage, prompt_token_ids)
    }

    fn usage_chunk(&self, usage: Usage) -> String {
        self.to_chunk(Vec::new(), Some(ChunkUsage::Known(usage)), None)
    }
}

fn token_ids(request: &GenerationRequest, delta: &Delta) -> Option<Vec<u32>> {
    let ids = delta.tokens.iter().map(|token| token.token);
    request.report.return_token_ids.then(|| ids.collect())
}

fn prompt_token_ids(request: &GenerationRequest) -> Option<Vec<u32>> {
    let prompt = request.prompts.first().filter(|_| request.report.return_token_ids)?;
    Some(prompt.token_ids.clone())
}
