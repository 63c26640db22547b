//! `/v1/completions`: from fields to a request.

use super::fields::Fields;
use super::prompt::{self, MaxTokens, PromptRules};
use super::sampling;
use crate::request::GenerationRequest;
use crate::{ApiError, AppState};

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;
/// The most choices of one request, over all its prompts.
const MAX_CHOICES: usize = 1024;

/// Reads a body.
pub(crate) fn read(state: &AppState, fields: &Fields) -> Result<GenerationRequest, ApiError> {
    let config = state.config();
    let vocab_size = state.tokenizer().vocab_size();
    let common = sampling::read(fields, config, state.tokenizer())?;
    let logprobs = sampling::read_logprobs(fields, "logprobs", config)?;
    let echo = fields.bool("echo", false)?;
    let rules = PromptRules {
        add_special_tokens: fields.bool("add_special_tokens", true)?,
        truncate: prompt::read_truncate(fields)?,
        max_tokens: MaxTokens {
            // Nothing but the prompt may be wanted: for its logprobs.
            requested: fields.count("max_tokens", usize::from(!echo))?,
            param: "max_tokens",
            default: DEFAULT_MAX_TOKENS,
            min_tokens: common.stop.min_tokens,
        },
        echo,
    };
    let inputs = prompt::read(fields, vocab_size)?;
    let choices = inputs.len().saturating_mul(common.n);
    if choices > MAX_CHOICES {
        let message = format!(
            "The request asks for {choices} choices, but at most {MAX_CHOICES} are allowed."
        );
        return Err(ApiError::param("prompt", message));
    }
    let prompts = inputs.into_iter().map(|input| prompt::resolve(state, input, &rules));
    let prompts = prompts.collect::<Result<_, _>>()?;
    Ok(GenerationRequest::new(common, prompts, logprobs).with_echo(echo))
}
