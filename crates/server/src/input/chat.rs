//! `/v1/chat/completions`: from fields to a request.

use serde_json::{Map, Value};
use stallfree_tokenizer::{ChatTemplate, RenderOptions};

use super::fields::{Fields, wrong_type};
use super::prompt::{self, MaxTokens, PromptInput, PromptRules};
use super::sampling;
use crate::request::GenerationRequest;
use crate::{ApiError, AppState, ServerConfig};

/// A chat's request, and how the answer is presented.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// What to generate.
    pub generation: GenerationRequest,
    /// Who speaks.
    pub role: String,
    /// What each choice's text starts with: the final message, if it is continued and echoed.
    pub prefix: String,
}

/// Reads a body.
pub(crate) fn read(state: &AppState, fields: &Fields) -> Result<ChatRequest, ApiError> {
    let config = state.config();
    let common = sampling::read(fields, config, state.tokenizer())?;
    let logprobs = read_logprobs(fields, config)?;
    let conversation = Conversation::read(fields, state)?;
    let rules = PromptRules {
        add_special_tokens: fields.bool("add_special_tokens", false)?,
        truncate: prompt::read_truncate(fields)?,
        max_tokens: read_max_tokens(fields, config, common.stop.min_tokens)?,
        echo: false,
    };
    let (role, prefix) = conversation.presentation(fields)?;
    let input = PromptInput::Text(conversation.render(state)?);
    let prompt = prompt::resolve(state, input, &rules).map_err(|e| match e {
        ApiError::Invalid { message, param: Some(param) } if param == "prompt" => {
            ApiError::param("messages", message)
        }
        other => other,
    })?;
    Ok(ChatRequest {
        generation: GenerationRequest::new(common, vec![prompt], logprobs),
        role,
        prefix,
    })
}

/// What a chat template is given.
#[derive(Debug)]
pub(crate) struct Conversation<'a> {
    /// A list.
    messages: &'a Value,
    options: RenderOptions,
    /// The request's own template, where it may bring one.
    template: Option<ChatTemplate>,
}

impl<'a> Conversation<'a> {
    /// Reads the messages and how they are to be rendered.
    pub(crate) fn read(fields: &'a Fields, state: &AppState) -> Result<Self, ApiError> {
        let config = state.config();
        let messages = match fields.value("messages") {
            Some(Value::Array(messages)) if messages.is_empty() => {
                return Err(ApiError::param("messages", "`messages` must not be empty."));
            }
            Some(messages @ Value::Array(_)) => messages,
            Some(other) => return Err(wrong_type("messages", "a list of messages", other)),
            None => return Err(ApiError::param("messages", "`messages` is required.")),
        };
        let continue_final_message = fields.bool("continue_final_message", false)?;
        let add_generation_prompt = fields.bool("add_generation_prompt", true)?;
        if continue_final_message && add_generation_prompt {
            let message = "`continue_final_message` needs `add_generation_prompt` to be false.";
            return Err(ApiError::param("continue_final_message", message));
        }
        let options = RenderOptions {
            add_generation_prompt,
            continue_final_message,
            documents: read_documents(fields)?,
            kwargs: read_kwargs(fields, config)?,
            bos_token: config.bos_token.clone(),
            eos_token: config.eos_token.clone(),
            ..RenderOptions::default()
        };
        Ok(Self { messages, options, template: read_template(fields, config)? })
    }

    /// Returns the conversation's text.
    pub(crate) fn render(&self, state: &AppState) -> Result<String, ApiError> {
        let template = self.template.as_ref().or(state.chat_template());
        match template.map(|template| template.render(self.messages, &self.options)) {
            Some(Ok(text)) => Ok(text),
            Some(Err(e)) if e.is_clients() => Err(ApiError::param("messages", e.to_string())),
            Some(Err(e)) => Err(ApiError::Internal(e.to_string())),
            None => Err(ApiError::param(
                "messages",
                "The model has no chat template: use /v1/completions, or start the server with --chat-template.",
            )),
        }
    }

    /// Returns who speaks, and what each choice's text starts with.
    fn presentation(&self, fields: &Fields) -> Result<(String, String), ApiError> {
        let last = self.messages.as_array().and_then(|messages| messages.last());
        let text_of = |name: &str| last?.get(name)?.as_str().map(str::to_owned);
        let role = if self.options.add_generation_prompt { None } else { text_of("role") };
        let role = role.unwrap_or_else(|| "assistant".to_owned());
        let echo = fields.bool("echo", false)? && text_of("role").as_ref() == Some(&role);
        let prefix = if echo { text_of("content") } else { None };
        Ok((role, prefix.unwrap_or_default()))
    }
}

fn read_documents(fields: &Fields) -> Result<Option<Value>, ApiError> {
    match fields.value("documents") {
        None => Ok(None),
        Some(list @ Value::Array(documents)) if documents.iter().all(Value::is_object) => {
            Ok(Some(list.clone()))
        }
        Some(other) => Err(wrong_type("documents", "a list of objects", other)),
    }
}

fn read_kwargs(fields: &Fields, config: &ServerConfig) -> Result<Map<String, Value>, ApiError> {
    let mut kwargs = config.default_chat_template_kwargs.clone();
    if let Some(effort) = fields.string("reasoning_effort")? {
        kwargs.insert("reasoning_effort".to_owned(), Value::from(effort));
    }
    if let Some(given) = fields.object("chat_template_kwargs")? {
        kwargs.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    Ok(kwargs)
}

fn read_template(fields: &Fields, config: &ServerConfig) -> Result<Option<ChatTemplate>, ApiError> {
    let Some(source) = fields.string("chat_template")? else { return Ok(None) };
    if !config.limits.trust_request_chat_template {
        let message = "`chat_template` is only allowed if the server was started with --trust-request-chat-template.";
        return Err(ApiError::param("chat_template", message));
    }
    let template = ChatTemplate::new(source);
    template.map(Some).map_err(|e| ApiError::param("chat_template", e.to_string()))
}

fn read_logprobs(fields: &Fields, config: &ServerConfig) -> Result<Option<u32>, ApiError> {
    let wanted = fields.bool("logprobs", false)?;
    let num_top = sampling::read_logprobs(fields, "top_logprobs", config)?;
    if !wanted && num_top.is_some_and(|num_top| num_top > 0) {
        let message = "`top_logprobs` needs `logprobs` to be true.";
        return Err(ApiError::param("top_logprobs", message));
    }
    Ok(wanted.then_some(num_top.unwrap_or(0)))
}

fn read_max_tokens(
    fields: &Fields,
    config: &ServerConfig,
    min_tokens: usize,
) -> Result<MaxTokens, ApiError> {
    let old = fields.count("max_tokens", 1)?;
    let new = fields.count("max_completion_tokens", 1)?;
    let param = if new.is_some() { "max_completion_tokens" } else { "max_tokens" };
    let default = config.default_sampling.max_tokens.unwrap_or(usize::MAX);
    Ok(MaxTokens { requested: new.or(old), param, default, min_tokens })
}
