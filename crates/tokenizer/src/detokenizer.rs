//! Tokens to text, one token at a time.
//!
//! A token may end in the middle of a character, so what is emitted lags behind by at most three bytes. `stop.rs` looks
//! for stop strings in what it emits.

use std::sync::Arc;

use stallfree_core::TokenId;

use crate::Tokenizer;

/// How tokens are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DetokenizerOptions {
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Keeps the space between two special tokens in vocabularies that put one between all tokens; no other vocabulary does.
    pub spaces_between_special_tokens: bool,
}

impl Default for DetokenizerOptions {
    fn default() -> Self {
        Self { skip_special_tokens: true, spaces_between_special_tokens: true }
    }
}

/// Turns a stream of tokens into a stream of text.
///
/// The pieces that [`push`](Self::push) and [`flush`](Self::flush) return add up to [`Tokenizer::decode`] of all tokens. No
/// piece ends inside a character, and none is ever taken back. A token costs what its own bytes cost, however long the text.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    options: DetokenizerOptions,
    /// The start of a character whose other bytes are still to come; bytes of the current token while one is pushed.
    pending: Vec<u8>,
    text: String,
    at_start: bool,
    after_special: bool,
}

impl Detokenizer {
    /// Starts a text.
    #[must_use]
    pub const fn new(tokenizer: Arc<Tokenizer>, options: DetokenizerOptions) -> Self {
        Self {
            tokenizer,
            options,
            pending: Vec::new(),
            text: String::new(),
            at_start: true,
            after_special: false,
        }
    }

    /// Starts a text that goes on after `prompt`: a leading space stays, and a character begun in the prompt is completed.
    #[must_use]
    pub fn after_prompt(
        tokenizer: Arc<Tokenizer>,
        options: DetokenizerOptions,
        prompt: &[TokenId],
    ) -> Self {
        let mut this = Self::new(tokenizer, options);
        this.at_start = prompt.iter().all(|&token| this.is_skipped(token));
        // A character has at most four bytes and every token at least one.
        for &token in &prompt[prompt.len().saturating_sub(4)..] {
            this.push(token);
        }
        this
    }

    /// Takes the next token and returns the text that is complete with it, often empty.
    pub fn push(&mut self, token: TokenId) -> &str {
        self.text.clear();
        if self.is_skipped(token) {
            return "";
        }
        let pieces = self.tokenizer.pieces();
        let special = pieces.is_special(token);
        let joined = pieces.are_words()
            && special
            && self.after_special
            && !self.options.spaces_between_special_tokens;
        let (space, bytes) = pieces.shown(token, self.at_start || joined);
        self.at_start = self.at_start && pieces.bytes(token).is_empty();
        self.after_special = special;
        // Most tokens are text as they lie in the table.
        if let (true, Ok(text)) = (self.pending.is_empty(), str::from_utf8(bytes))
            && space.is_empty()
        {
            return text;
        }
        self.pending.extend_from_slice(space);
        self.pending.extend_from_slice(bytes);
        move_complete(&mut self.pending, &mut self.text);
        &self.text
    }

    /// Ends the text and returns what is left: U+FFFD for a character whose end never came.
    pub fn flush(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
        &self.text
    }

    fn is_skipped(&self, token: TokenId) -> bool {
        self.options.skip_special_tokens && self.tokenizer.is_special(token)
    }
}

/// Moves everything but the start of an unfinished character from `pending` to `text`.
fn move_complete(pending: &mut Vec<u8>, text: &mut String) {
    let mut rest: &[u8] = pending;
    let kept = loop {
        match str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                break 0;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(invalid) = error.error_len() else { break after.len() };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &after[invalid..];
            }
        }
    };
    let done = pending.len() - kept;
    pending.drain(..done);
}
