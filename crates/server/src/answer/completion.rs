//! The shape of `/v1/completions`.

use serde_json::{Map, Value};
use stallfree_core::{TokenId, TokenLogprob};

use super::names::{TokenNames, finite};
use super::{Format, Head, prompt_logprobs, to_json};
use crate::choice::Delta;
use crate::protocol::common::{ChunkUsage, Usage};
use crate::protocol::completion::{Choice, Chunk, Completion, Logprobs};
use crate::request::GenerationRequest;

const OBJECT: &str = "text_completion";

/// Writes completions.
#[derive(Debug)]
pub(crate) struct CompletionFormat {
    head: Head,
    names: TokenNames,
    /// How many characters of each choice's text have been written.
    offsets: Vec<usize>,
}

impl CompletionFormat {
    /// Starts an answer with this many choices.
    pub(crate) fn new(head: Head, names: TokenNames, choices: usize) -> Self {
        Self { head, names, offsets: vec![0; choices] }
    }

    fn choice(&mut self, request: &GenerationRequest, delta: Delta) -> Choice {
        let prompt = request.prompt_of(delta.choice).filter(|_| delta.is_first);
        let prompt_ids = prompt.map_or(&[][..], |prompt| &prompt.token_ids);
        let echoed = if request.echo { prompt } else { None };
        let logprobs = request.sampling.logprobs.map(|_| {
            let mut builder = LogprobsBuilder {
                names: &self.names,
                offset: self.offsets.get(delta.choice).copied().unwrap_or(0),
                out: Logprobs::default(),
            };
            if echoed.is_some() {
                builder.prompt(prompt_ids, &delta.prompt_logprobs);
            }
            for token in &delta.tokens {
                builder.token(token.token, &token.logprobs);
            }
            if let Some(offset) = self.offsets.get_mut(delta.choice) {
                *offset = builder.offset;
            }
            builder.out
        });
        let text = match echoed {
            Some(prompt) => format!("{}{}", prompt.text, delta.text),
            None => delta.text,
        };
        let prompt_logprobs = (request.report_prompt_logprobs && delta.is_first)
            .then(|| prompt_logprobs(&self.names.tokenizer, &delta.prompt_logprobs));
        let return_ids = request.report.return_token_ids;
        let finish = delta.finish;
        Choice {
            index: delta.choice,
            text,
            logprobs,
            token_ids: return_ids.then(|| delta.tokens.iter().map(|token| token.token).collect()),
            prompt_token_ids: (return_ids && delta.is_first).then(|| prompt_ids.to_vec()),
            prompt_logprobs,
            finish_reason: finish.as_ref().map(|finish| finish.reason),
            stop_reason: finish.and_then(|finish| finish.stopped_by),
        }
    }

    fn to_chunk(&self, choices: Vec<Choice>, usage: Option<ChunkUsage>) -> String {
        let Head { id, created, model } = &self.head;
        to_json(&Chunk { id, object: OBJECT, created: *created, model, choices, usage })
    }
}

impl Format for CompletionFormat {
    fn whole(&mut self, request: &GenerationRequest, deltas: Vec<Delta>, usage: Usage) -> String {
        let choices = deltas.into_iter().map(|delta| self.choice(request, delta)).collect();
        let Head { id, created, model } = &self.head;
        to_json(&Completion {
            id,
            object: OBJECT,
            created: *created,
            model,
            choices,
            system_fingerprint: None,
            usage,
        })
    }

    fn chunk(
        &mut self,
        request: &GenerationRequest,
        delta: Delta,
        usage: Option<ChunkUsage>,
    ) -> String {
        let choice = self.choice(request, delta);
        self.to_chunk(vec![choice], usage)
    }

    fn usage_chunk(&self, usage: Usage) -> String {
        self.to_chunk(Vec::new(), Some(ChunkUsage::Known(usage)))
    }
}

/// Fills the parallel lists.
struct LogprobsBuilder<'a> {
    names: &'a TokenNames,
    /// Where the next token's text starts, in characters.
    offset: usize,
    out: Logprobs,
}

impl LogprobsBuilder<'_> {
    /// Adds a prompt: nothing predicts its first token.
    fn prompt(&mut self, token_ids: &[TokenId], entries: &[Vec<TokenLogprob>]) {
        let entries = std::iter::once(&[][..]).chain(entries.iter().map(Vec::as_slice));
        for (&id, entry) in token_ids.iter().zip(entries) {
            self.token(id, entry);
        }
    }

    /// Adds a token; the first of `logprobs` is its own.
    fn token(&mut self, id: TokenId, logprobs: &[TokenLogprob]) {
        self.out.text_offset.push(self.offset);
        self.offset += self.names.tokenizer.token_text(id).chars().count();
        self.out.tokens.push(self.names.name(id));
        self.out.token_logprobs.push(logprobs.first().map(|own| finite(own.logprob)));
        let top: Map<String, Value> = logprobs
            .iter()
            .map(|lp| (self.names.name(lp.token), Value::from(finite(lp.logprob))))
            .collect();
        self.out.top_logprobs.push((!logprobs.is_empty()).then_some(top));
    }
}
