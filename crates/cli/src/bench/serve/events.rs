//! A stream of server-sent events, piece by piece.

use std::borrow::Cow;

use serde::Deserialize;

/// Cuts what comes over the wire into events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// A line that has begun.
    rest: Vec<u8>,
}

impl Events {
    /// Takes a piece of the stream and hands each event's data in it to `take`.
    ///
    /// Every event is one `data:` line, as all OpenAI-compatible servers write them; comments and other fields are skipped.
    pub(super) fn feed(&mut self, piece: &[u8], mut take: impl FnMut(&[u8])) {
        let mut piece = piece;
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            let (line, after) = piece.split_at(end);
            piece = &after[1..];
            if self.rest.is_empty() {
                data(line).into_iter().for_each(&mut take);
            } else {
                self.rest.extend_from_slice(line);
                data(&self.rest).into_iter().for_each(&mut take);
                self.rest.clear();
            }
        }
        self.rest.extend_from_slice(piece);
    }
}

fn data(line: &[u8]) -> Option<&[u8]> {
    let data = line.strip_prefix(b"data:")?.trim_ascii();
    (!data.is_empty()).then_some(data)
}

/// One event.
#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    /// Empty in the last one, which has the usage.
    #[serde(borrow, default)]
    pub(super) choices: Vec<Choice<'a>>,
    /// Tokens, in the last event.
    pub(super) usage: Option<Usage>,
    /// What went wrong after the answer had begun.
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

impl Choice<'_> {
    /// Returns the text of a completion or of a chat.
    pub(super) fn text(&self) -> &str {
        let delta = || self.delta.as_ref()?.content.as_deref();
        self.text.as_deref().or_else(delta).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: usize,
    #[serde(default)]
    pub(super) completion_tokens: usize,
}

#[cfg(test)]
mod tests {
    use super::{Event, Events};

    #[test]
    fn events_survive_any_cut() {
        let stream = ": hello\ndata: {\"choices\":[{\"text\":\"a\\nb\"}]}\r\n\r\nevent: x\ndata:{\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        for size in 1..stream.len() {
            let (mut events, mut text, mut tokens, mut done) =
                (Events::default(), String::new(), 0, 0);
            for piece in stream.as_bytes().chunks(size) {
                events.feed(piece, |data| match serde_json::from_slice::<Event<'_>>(data) {
                    Ok(event) => {
                        event.choices.iter().for_each(|choice| text.push_str(choice.text()));
                        tokens += event.usage.map_or(0, |usage| usage.completion_tokens);
                    }
                    Err(_) => done += usize::from(data == b"[DONE]"),
                });
            }
            assert_eq!((&*text, tokens, done), ("a\nbc", 2, 1), "pieces of {size}");
        }
    }
}
