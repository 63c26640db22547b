//! Prompts that a server understands: token ids where they can be had, else text.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};
use stallfree_bench::workload::{Prompt, PromptTokens};
use stallfree_tokenizer::Tokenizer;

use super::client::Client;

/// Text whose tokens every tokenizer has: prompts are drawn from them where nothing else is known.
const SAMPLE: &str = "The quick brown fox jumps over the lazy dog while seven large ships carry wheat, copper and paper across \
    the northern sea; nobody at the harbour knows when the first of them will return, or whether the price of bread is going to \
    rise again before winter. Most people think that it will. Some have begun to store flour, oil and salt in their cellars, \
    others sell what they have and move to the coast, where work is easier to find and houses are cheap.";

/// Makes prompts.
#[derive(Debug)]
pub(super) struct Prompts {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Token ids that can be sent as they are, and turned into text here.
    Here(PromptTokens, Box<Tokenizer>),
    /// Token ids that the server turned text into.
    Server(PromptTokens),
    /// Words of about a token each.
    Words,
}

impl Prompts {
    /// Finds out what prompts can be made of.
    ///
    /// # Errors
    /// None now; a server without `/tokenize` gets words.
    pub(super) async fn find(
        client: &Client,
        model: &str,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Self> {
        if let Some(tokenizer) = tokenizer {
            let plain = (0..tokenizer.vocab_size() as u32).filter(|&id| !tokenizer.is_special(id));
            let tokens = PromptTokens::listed(plain.collect());
            return Ok(Self { source: Source::Here(tokens, Box::new(tokenizer)) });
        }
        let body = json!({ "model": model, "prompt": SAMPLE, "add_special_tokens": false });
        let answer = client.post("/tokenize", &body).await;
        let ids = answer.ok().and_then(|answer| {
            let ids = answer["tokens"].as_array()?.iter();
            ids.map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<Vec<u32>>>()
        });
        let source = match ids {
            Some(ids) if !ids.is_empty() => Source::Server(PromptTokens::listed(ids)),
            _ => {
                tracing::warn!(
                    "the server has no /tokenize: prompts are words, so their lengths are not exact; give --tokenizer"
                );
                Source::Words
            }
        };
        Ok(Self { source })
    }

    /// Returns what goes into `prompt` of a completion.
    pub(super) fn completion(&self, prompt: &Prompt) -> Value {
        match (&prompt.text, &self.source) {
            (Some(text), _) => json!(text),
            (None, Source::Here(tokens, _) | Source::Server(tokens)) => json!(tokens.of(prompt)),
            (None, Source::Words) => json!(words(prompt)),
        }
    }

    /// Returns what goes into a chat's message.
    pub(super) fn message(&self, prompt: &Prompt) -> String {
        match (&prompt.text, &self.source) {
            (Some(text), _) => text.clone(),
            (None, Source::Here(tokens, tokenizer)) => tokenizer.decode(&tokens.of(prompt), true),
            (None, Source::Server(_) | Source::Words) => words(prompt),
        }
    }
}

/// Returns as many words as the prompt is to have tokens.
fn words(prompt: &Prompt) -> String {
    let words: Vec<&str> = SAMPLE.split_whitespace().collect();
    let ids = PromptTokens::below(words.len()).of(prompt);
    ids.into_iter().fold(String::new(), |mut text, id| {
        // Writing to a string can't fail.
        let _ = write!(text, " {}", words[id as usize]);
        text
    })
}
