//! Message contents: a string or a list of parts, whichever the template was written for.

use serde_json::{Value as Json, json};

use crate::Error;

/// Which forms of content a template renders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accepts {
    strings: bool,
    parts: bool,
}

const MARK: &str = "k9mark";

impl Accepts {
    /// Finds out by rendering one message of each form.
    ///
    /// A template that expects strings prints a list as it is, quotes and all, or fails on it.
    pub(super) fn probe(render: impl Fn(&Json) -> String) -> Self {
        let shows = |content: Json| {
            let text = render(&json!([{ "role": "user", "content": content }]));
            text.contains(MARK) && !text.contains("\"text\"") && !text.contains("'text'")
        };
        Self {
            strings: shows(json!(MARK)),
            parts: shows(json!([{ "type": "text", "text": MARK }])),
        }
    }
}

/// Returns the messages with their contents in a form that the template renders.
pub(super) fn adapt(messages: &Json, accepts: Accepts) -> Result<Json, Error> {
    let list = messages.as_array().ok_or_else(|| Error::Messages("must be a list".into()))?;
    let mut list = list.clone();
    for (i, message) in list.iter_mut().enumerate() {
        let Some(message) = message.as_object_mut() else {
            return Err(Error::Messages(format!("[{i}] must be an object")));
        };
        if !message.get("role").is_some_and(Json::is_string) {
            return Err(Error::Messages(format!("[{i}].role must be a string")));
        }
        let content = message.entry("content").or_insert(Json::Null);
        if content.is_null() {
            // As vLLM does: most templates join texts, and histories have messages that only called tools.
            *content = Json::String(String::new());
        }
        check_content(content).map_err(|what| Error::Messages(format!("[{i}].content{what}")))?;
        match content {
            Json::String(text) if !accepts.strings && accepts.parts => {
                *content = json!([{ "type": "text", "text": text }]);
            }
            Json::Array(_) if !accepts.parts => *content = Json::String(text_of(content)),
            _ => {}
        }
    }
    Ok(Json::Array(list))
}

/// Returns a content's text; parts stand on lines of their own.
pub(super) fn text_of(content: &Json) -> String {
    match content {
        Json::String(text) => text.clone(),
        Json::Array(parts) => parts.iter().filter_map(part_text).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

fn part_text(part: &Json) -> Option<&str> {
    part.as_str().or_else(|| part.get("text")?.as_str())
}

fn check_content(content: &Json) -> Result<(), String> {
    match content {
        Json::String(_) => Ok(()),
        Json::Array(parts) => parts
            .iter()
            .enumerate()
            .try_for_each(|(i, part)| check_part(part).map_err(|e| format!("[{i}]{e}"))),
        _ => Err(" must be a string or a list of parts".into()),
    }
}

fn check_part(part: &Json) -> Result<(), String> {
    if part.is_string() {
        return Ok(());
    }
    match part.get("type").and_then(Json::as_str) {
        Some("text") if part_text(part).is_some() => Ok(()),
        Some("text") => Err(".text must be a string".into()),
        Some(kind) => Err(format!(".type is {kind:?}, but this model takes only text")),
        None => Err(".type must be a string".into()),
    }
}
