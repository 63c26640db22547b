//! `/v1/completions`: from fields to a request.

use super::fields::Fields;
use super::prompt::{self, MaxTokens, PromptRules};
use super::sampling;
use crate::request::GenerationRequest;
use crate::{ApiError, AppState};

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Reads a body.
pub(crate) async fn read(state: &AppState, fields: &Fields) -> Result<GenerationRequest, ApiError> {
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
    if choices > config.limits.max_choices {
        let max = config.limits.max_choices;
        let message =
            format!("The request asks for {choices} choices, but at most {max} are allowed.");
        return Err(ApiError::param("prompt", message));
    }
    let mut prompts = Vec::with_capacity(inputs.len());
    for input in inputs {
        prompts.push(prompt::resolve(state, input, &rules).await?);
    }
    Ok(GenerationRequest::new(common, prompts, logprobs).with_echo(echo))
}
