//! Chat templates: a conversation to the text that its model was trained on.
//!
//! Templates are Jinja, written for Python. Here they run on minijinja with the functions, filters and string methods that
//! published templates use.

mod content;
mod functions;
mod json;

use std::time::SystemTime;

use minijinja::{Environment, Value, context};
use serde_json::{Map, Value as Json};

use crate::Error;
use content::{Accepts, adapt};

const NAME: &str = "chat_template";

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    accepts: Accepts,
}

/// What a conversation is rendered with.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Ends the text where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Ends the text inside the last message, for the model to go on with it; excludes `add_generation_prompt`.
    pub continue_final_message: bool,
    /// The tools on offer, as OpenAI's API writes them.
    pub tools: Option<Json>,
    /// Documents for retrieval.
    pub documents: Option<Json>,
    /// Further variables (`chat_template_kwargs`).
    pub kwargs: Map<String, Json>,
    /// How the beginning-of-sequence token is written.
    pub bos_token: Option<String>,
    /// How the end-of-sequence token is written.
    pub eos_token: Option<String>,
    /// The time that `strftime_now` shows, in UTC; `None` is now.
    pub now: Option<SystemTime>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// The template has a syntax error.
    pub fn new(source: &str) -> Result<Self, Error> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_fuel(Some(FUEL));
        functions::install(&mut env);
        env.add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| Error::TemplateSyntax(describe(&e)))?;
        let mut this = Self { env, accepts: Accepts::default() };
        this.accepts = Accepts::probe(|messages| {
            this.render_raw(messages, &RenderOptions::default()).unwrap_or_default()
        });
        Ok(this)
    }

    /// Compiles the `chat_template` of a `tokenizer_config.json`: a template, or a list of named ones of which `default` counts.
    ///
    /// # Errors
    /// There is no default template, or it has a syntax error.
    pub fn from_config(chat_template: &Json) -> Result<Self, Error> {
        let named_default = |list: &Vec<Json>| {
            let default = list.iter().find(|entry| entry["name"] == "default")?;
            Some(default["template"].as_str()?.to_owned())
        };
        let source = match chat_template {
            Json::String(source) => Some(source.clone()),
            Json::Array(list) => named_default(list),
            _ => None,
        };
        let source = source.ok_or_else(|| {
            Error::TemplateSyntax(
                "it is neither a text nor a list with an entry named default".into(),
            )
        })?;
        Self::new(&source)
    }

    /// Renders a conversation: a list of messages as OpenAI's API writes them.
    ///
    /// A message's content may be a string, a list of text parts, or absent, whichever the template was written for.
    ///
    /// # Errors
    /// The messages are malformed, the template refuses them (`raise_exception`), or it fails on them.
    pub fn render(&self, messages: &Json, options: &RenderOptions) -> Result<String, Error> {
        let messages = adapt(messages, self.accepts)?;
        let text = self.render_raw(&messages, options)?;
        if options.continue_final_message { cut_after_final(text, &messages) } else { Ok(text) }
    }

    fn render_raw(&self, messages: &Json, options: &RenderOptions) -> Result<String, Error> {
        let template =
            self.env.get_template(NAME).map_err(|e| Error::TemplateSyntax(describe(&e)))?;
        let now = options.now.unwrap_or_else(SystemTime::now);
        let own = context! {
            messages => messages,
            add_generation_prompt => options.add_generation_prompt,
            tools => options.tools,
            documents => options.documents,
            bos_token => options.bos_token.as_deref().unwrap_or_default(),
            eos_token => options.eos_token.as_deref().unwrap_or_default(),
            strftime_now => functions::strftime_at(now),
        };
        let kwargs = Value::from_serialize(&options.kwargs);
        template.render(context! { ..own, ..kwargs }).map_err(|e| render_error(&e))
    }
}

/// More instructions than any honest conversation takes; stops a template that runs away.
const FUEL: u64 = 10_000_000;

fn render_error(error: &minijinja::Error) -> Error {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(functions::Raised(message)) = cause.downcast_ref() {
            return Error::Refused(message.clone());
        }
        source = cause.source();
    }
    Error::Render(describe(error))
}

fn describe(error: &minijinja::Error) -> String {
    match error.line() {
        Some(line) => format!("{error} (line {line})"),
        None => error.to_string(),
    }
}

/// Cuts a rendered conversation behind the last message's text, so that the model goes on with it.
fn cut_after_final(mut text: String, messages: &Json) -> Result<String, Error> {
    let last = messages.as_array().and_then(|list| list.last());
    let content = last.map(|message| content::text_of(&message["content"])).unwrap_or_default();
    let content = content.trim();
    if content.is_empty() {
        return Err(Error::Messages(
            "continue_final_message needs a last message whose content is not empty".into(),
        ));
    }
    let Some(at) = text.rfind(content) else {
        return Err(Error::Messages(
            "continue_final_message is set, but the template leaves the last message's content out"
                .into(),
        ));
    };
    text.truncate(at + content.len());
    Ok(text)
}

/// Replaces `{% generation %}` blocks, which only mark text for training, by blocks that always render.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let len = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(len);
        let word =
            tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+', ' ']);
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
