//! Prompts: read, tokenized, cut and measured.

use serde_json::Value;
use stallfree_core::TokenId;

use super::fields::{Fields, wrong_type};
use super::sampling::token_list;
use crate::request::Prompt;
use crate::{ApiError, AppState};

/// A prompt as the client wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PromptInput {
    /// Text.
    Text(String),
    /// Tokens, known to be in the vocabulary.
    Tokens(Vec<TokenId>),
}

/// What happens to a prompt on its way to the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptRules {
    /// Whether the tokenizer adds the model's own tokens.
    pub add_special_tokens: bool,
    /// Whether and how long prompts are cut.
    pub truncate: Option<Truncate>,
    /// How many tokens may follow.
    pub max_tokens: MaxTokens,
    /// Whether the prompt's text is needed.
    pub echo: bool,
}

/// How a prompt that is too long is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Truncate {
    /// The most tokens to keep; `None` keeps what leaves room for the output.
    limit: Option<usize>,
    /// Whether the end is cut off instead of the start.
    cut_end: bool,
}

/// How many tokens may follow a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxTokens {
    /// What the request says.
    pub requested: Option<usize>,
    /// The name under which it says so.
    pub param: &'static str,
    /// What holds if it says nothing and the model's length allows it.
    pub default: usize,
    /// What must follow at least.
    pub min_tokens: usize,
}

/// Reads `prompt`: a text, tokens, or a list of either.
pub(crate) fn read(fields: &Fields, vocab_size: usize) -> Result<Vec<PromptInput>, ApiError> {
    const EXPECTED: &str =
        "a string, a list of strings, a list of token ids or a list of such lists";
    let value =
        fields.value("prompt").ok_or_else(|| ApiError::param("prompt", "`prompt` is required."))?;
    let items = match value {
        Value::String(text) => return Ok(vec![PromptInput::Text(text.clone())]),
        Value::Array(items) => items,
        other => return Err(wrong_type("prompt", EXPECTED, other)),
    };
    match items.first() {
        None => Err(ApiError::param("prompt", "`prompt` must not be an empty list.")),
        Some(Value::Number(_)) => {
            Ok(vec![PromptInput::Tokens(token_list("prompt", items, vocab_size)?)])
        }
        Some(Value::String(_) | Value::Array(_)) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(PromptInput::Text(text.clone())),
                Value::Array(ids) => token_list("prompt", ids, vocab_size).map(PromptInput::Tokens),
                other => Err(wrong_type("prompt", EXPECTED, other)),
            })
            .collect(),
        Some(other) => Err(wrong_type("prompt", EXPECTED, other)),
    }
}

/// Reads `truncate_prompt_tokens` and `truncation_side`.
pub(crate) fn read_truncate(fields: &Fields) -> Result<Option<Truncate>, ApiError> {
    let limit = fields.int("truncate_prompt_tokens", "-1 or at least 1", |v| v == -1 || v >= 1)?;
    let cut_end = match fields.string("truncation_side")? {
        None | Some("left") => false,
        Some("right") => true,
        Some(_) => {
            let message = "`truncation_side` must be \"left\" or \"right\".";
            return Err(ApiError::param("truncation_side", message));
        }
    };
    Ok(limit.map(|limit| Truncate { limit: usize::try_from(limit).ok(), cut_end }))
}

/// Tokenizes, cuts and measures a prompt.
pub(crate) fn resolve(
    state: &AppState,
    input: PromptInput,
    rules: &PromptRules,
) -> Result<Prompt, ApiError> {
    let (written, mut token_ids) = match input {
        PromptInput::Tokens(token_ids) => (None, token_ids),
        PromptInput::Text(text) => {
            check_length(state, &text, rules)?;
            let token_ids = encode(state, &text, rules.add_special_tokens)?;
            (Some(text).filter(|_| rules.echo), token_ids)
        }
    };
    let max_model_len = state.engine().info().max_model_len;
    let was_cut = rules.truncate.is_some_and(|truncate| {
        let reserved = rules.max_tokens.requested.unwrap_or(1).max(1);
        truncate.apply(&mut token_ids, max_model_len.saturating_sub(reserved))
    });
    let max_tokens = rules.max_tokens.after(token_ids.len(), max_model_len)?;
    let text = match written.filter(|_| !was_cut) {
        Some(text) => text,
        None if rules.echo => state.tokenizer().decode(&token_ids, false),
        None => String::new(),
    };
    Ok(Prompt { token_ids, text, max_tokens })
}

/// Refuses a text that is too long whatever its tokens are, before any work is put into it.
fn check_length(state: &AppState, text: &str, rules: &PromptRules) -> Result<(), ApiError> {
    let max_model_len = state.engine().info().max_model_len;
    let at_least = text.len() / state.longest_token();
    if rules.truncate.is_some() || at_least <= max_model_len {
        return Ok(());
    }
    let message = format!(
        "This model's maximum context length is {max_model_len} tokens, but the prompt has more than {at_least}."
    );
    Err(ApiError::param("prompt", message))
}

/// Tokenizes a text.
pub(crate) fn encode(
    state: &AppState,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<TokenId>, ApiError> {
    let encoded = state.tokenizer().encode(text, add_special_tokens);
    encoded.map_err(|e| ApiError::param("prompt", e.to_string()))
}

impl Truncate {
    /// Cuts a prompt and returns whether there was anything to cut.
    fn apply(self, token_ids: &mut Vec<TokenId>, room: usize) -> bool {
        let limit = self.limit.unwrap_or(room);
        let excess = token_ids.len().saturating_sub(limit);
        if self.cut_end {
            token_ids.truncate(limit);
        } else {
            token_ids.drain(..excess);
        }
        excess > 0
    }
}

impl MaxTokens {
    /// Returns the most tokens that may follow a prompt of this length.
    fn after(self, prompt_len: usize, max_model_len: usize) -> Result<usize, ApiError> {
        let room = max_model_len.saturating_sub(prompt_len);
        if prompt_len == 0 {
            return Err(ApiError::param("prompt", "The prompt has no tokens."));
        }
        if room == 0 {
            let message = format!(
                "This model's maximum context length is {max_model_len} tokens, but the prompt alone has {prompt_len}."
            );
            return Err(ApiError::param("prompt", message));
        }
        if let Some(requested) = self.requested.filter(|&requested| requested > room) {
            let message = format!(
                "This model's maximum context length is {max_model_len} tokens, but the prompt has {prompt_len} and \
                 `{}` asks for {requested} more.",
                self.param
            );
            return Err(ApiError::param(self.param, message));
        }
        let max_tokens = self.requested.unwrap_or(self.default).min(room);
        if self.min_tokens > max_tokens {
            let message = format!(
                "`min_tokens` must be at most the number of tokens that may be produced, which is {max_tokens}, not {}.",
                self.min_tokens
            );
            return Err(ApiError::param("min_tokens", message));
        }
        Ok(max_tokens)
    }
}
