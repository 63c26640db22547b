//! Every token's bytes, laid out one after the other.

use stallfree_core::TokenId;

use super::Scheme;
use crate::Error;

/// The bytes that each token stands for, and which tokens are special.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end, and [`SPECIAL`] if it is; they start where the one before ends.
    ends: Vec<u32>,
    scheme: Scheme,
}

/// Lies with the ends, so that what is to be known of a token is in one place.
const SPECIAL: u32 = 1 << 31;
/// The highest id that a token may have: memory is taken for all ids below it, and real vocabularies have far fewer.
const MAX_ID: TokenId = 1 << 24;

impl Pieces {
    pub(crate) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, Error> {
        let scheme = Scheme::of(tokenizer.get_decoder())?;
        let added = tokenizer.get_added_tokens_decoder();
        let vocab = tokenizer.get_vocab(true);
        let last = vocab.iter().max_by_key(|(_, id)| **id);
        if let Some((text, id)) = last.filter(|(_, id)| **id > MAX_ID) {
            let text: String = text.chars().take(40).collect();
            return Err(Error::Vocab(format!(
                "its token {text:?} has the id {id}; the highest possible is {MAX_ID}"
            )));
        }
        let len = last.map_or(0, |(_, &id)| id as usize + 1);
        let mut texts: Vec<Option<&str>> = vec![None; len];
        for (text, &id) in &vocab {
            texts[id as usize] = Some(text);
        }
        let byte_of = ByteOf::new();
        let mut pieces = Self { bytes: Vec::new(), ends: Vec::with_capacity(len), scheme };
        for (id, text) in texts.into_iter().enumerate() {
            let added_token = u32::try_from(id).ok().and_then(|id| added.get(&id));
            let mut special = 0;
            match (text, added_token) {
                (_, Some(token)) => {
                    special = if token.special { SPECIAL } else { 0 };
                    pieces.push_added(&token.content);
                }
                (Some(text), None) => pieces.push(text, &byte_of),
                (None, None) => {}
            }
            let end = u32::try_from(pieces.bytes.len()).ok().filter(|end| end & SPECIAL == 0);
            let end = end.ok_or_else(|| Error::Vocab("its tokens take 2 GiB or more".into()))?;
            pieces.ends.push(end | special);
        }
        Ok(pieces)
    }

    fn push(&mut self, text: &str, byte_of: &ByteOf) {
        match self.scheme {
            Scheme::ByteLevel => {
                let start = self.bytes.len();
                for c in text.chars() {
                    match byte_of.get(c) {
                        Some(byte) => self.bytes.push(byte),
                        None => {
                            // A token outside the alphabet is not byte-level: it stands for itself.
                            self.bytes.truncate(start);
                            self.bytes.extend_from_slice(text.as_bytes());
                            return;
                        }
                    }
                }
            }
            Scheme::Sentencepiece { .. } => match byte_token(text) {
                Some(byte) => self.bytes.push(byte),
                None => self.push_added(text),
            },
            Scheme::Words => self.push_added(text),
        }
    }

    fn push_added(&mut self, content: &str) {
        if matches!(self.scheme, Scheme::Sentencepiece { .. }) {
            self.bytes.extend_from_slice(content.replace('▁', " ").as_bytes());
        } else {
            self.bytes.extend_from_slice(content.as_bytes());
        }
    }

    /// Returns one more than the highest id.
    pub(crate) const fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[(start & !SPECIAL) as usize..(end & !SPECIAL) as usize]
    }

    pub(crate) fn is_special(&self, id: TokenId) -> bool {
        self.ends.get(id as usize).is_some_and(|end| end & SPECIAL != 0)
    }

    /// Returns whether tokens are words that need a space between them.
    pub(crate) const fn are_words(&self) -> bool {
        matches!(self.scheme, Scheme::Words)
    }

    /// Returns what `id` adds, at the start of a text or further on: a space or nothing, then its bytes.
    pub(crate) fn shown(&self, id: TokenId, at_start: bool) -> (&'static [u8], &[u8]) {
        let bytes = self.bytes(id);
        match self.scheme {
            Scheme::Sentencepiece { strip_leading_space: true } if at_start => {
                (b"", bytes.strip_prefix(b" ").unwrap_or(bytes))
            }
            Scheme::Words if !at_start && !bytes.is_empty() => (b" ", bytes),
            _ => (b"", bytes),
        }
    }
}

/// Returns the byte that a token like `<0x0A>` stands for.
fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on.
struct ByteOf([Option<u8>; 0x144]);

impl ByteOf {
    fn new() -> Self {
        let mut table = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let stands_for_itself = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            if stands_for_itself {
                table[usize::from(byte)] = Some(byte);
            } else {
                table[next] = Some(byte);
                next += 1;
            }
        }
        Self(table)
    }

    fn get(&self, c: char) -> Option<u8> {
        self.0.get(c as usize).copied().flatten()
    }
}
