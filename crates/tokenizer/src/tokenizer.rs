//! A vocabulary with its rules: text to tokens, tokens to bytes.
//!
//! Encoding is the `tokenizers` crate's. Decoding is ours: every token's bytes are laid out once when the vocabulary is
//! loaded, so that decoding is a copy and a streamed text equals the whole one. On the main path after the server's `generate.rs`,
//! before the engine's `engine.rs`; `detokenizer.rs` beside it is the way back.

mod pieces;

use std::panic::catch_unwind;
use std::path::Path;

use serde::de::IgnoredAny;
use stallfree_core::{TokenId, panic_message};
use tokenizers::DecoderWrapper;

use crate::{Error, GgufVocab, gguf};
pub(crate) use pieces::Pieces;

/// Turns text into tokens and tokens into text.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The file is missing, malformed, or decodes in a way that this crate does not know.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file_error = |reason: String| Error::File { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(|e| file_error(e.to_string()))?;
        Self::new(read(&bytes).map_err(file_error)?)
    }

    /// Builds a tokenizer from the metadata of a GGUF file.
    ///
    /// # Errors
    /// The vocabulary contradicts itself, or its model or pre-tokenizer is not known.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self, Error> {
        Self::new(gguf::build(vocab)?)
    }

    fn new(inner: tokenizers::Tokenizer) -> Result<Self, Error> {
        let pieces = Pieces::of(&inner)?;
        Ok(Self { inner, pieces })
    }

    /// Returns the text's tokens; special tokens written out in the text become those tokens.
    ///
    /// `add_special_tokens` puts the model's own around it (usually the beginning-of-sequence token). Long texts take a while:
    /// call it where blocking is allowed.
    ///
    /// # Errors
    /// The text has a character that the vocabulary cannot express.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, Error> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| Error::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the tokens' text; invalid UTF-8 becomes U+FFFD, ids outside the vocabulary nothing.
    #[must_use]
    pub fn decode(&self, tokens: &[TokenId], skip_special_tokens: bool) -> String {
        let mut bytes = Vec::new();
        let mut at_start = true;
        for &token in tokens {
            if !(skip_special_tokens && self.is_special(token)) {
                let (space, piece) = self.pieces.shown(token, at_start);
                bytes.extend_from_slice(space);
                bytes.extend_from_slice(piece);
                at_start &= self.token_bytes(token).is_empty();
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns how a token is written in the vocabulary (`Ġthe`, `▁the`); not the text it stands for.
    #[must_use]
    pub fn id_to_token(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the bytes that a token stands for, which may be part of a character; empty outside the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.pieces.bytes(id)
    }

    /// Returns the text that a token stands for, with U+FFFD for parts of characters.
    #[must_use]
    pub fn token_text(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// Returns one more than the highest id of the vocabulary.
    #[must_use]
    pub const fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Returns whether a token controls (end of sequence, turn markers) rather than says something.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.pieces.is_special(id)
    }

    pub(crate) const fn pieces(&self) -> &Pieces {
        &self.pieces
    }
}

/// Reads a `tokenizer.json`. The library panics at some that are cut off or contradict themselves, and should refuse them.
fn read(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_slice::<IgnoredAny>(bytes).map_err(|e| e.to_string())?;
    let read = || {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())?;
        // Files made for training may cut or pad every text; serving must see all of it and nothing else.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        // What is put around a text is looked up only when there is one.
        drop(tokenizer.encode_fast("a", true));
        Ok(tokenizer)
    };
    catch_unwind(read).unwrap_or_else(|panic| {
        Err(format!("its parts contradict each other ({})", panic_message(&*panic)))
    })
}

/// How a vocabulary's tokens turn into text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Each character of a token stands for a byte (GPT-2, Llama 3, Qwen).
    ByteLevel,
    /// `▁` stands for a space and `<0xAB>` for a byte (SentencePiece); the text may have lost a leading space.
    Sentencepiece {
        /// Whether a space at the very start was added by the encoder.
        strip_leading_space: bool,
    },
    /// Tokens are words with a space between them.
    Words,
}

impl Scheme {
    pub(crate) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, Error> {
        match decoder {
            None => Ok(Self::Words),
            Some(DecoderWrapper::ByteLevel(_)) => Ok(Self::ByteLevel),
            Some(DecoderWrapper::Metaspace(_)) => {
                Ok(Self::Sentencepiece { strip_leading_space: true })
            }
            Some(DecoderWrapper::Sequence(sequence)) => Self::of_sequence(sequence.get_decoders()),
            Some(other) => Err(unsupported_decoder(other)),
        }
    }

    fn of_sequence(decoders: &[DecoderWrapper]) -> Result<Self, Error> {
        let mut scheme = None;
        let mut strip_leading_space = false;
        for decoder in decoders {
            match decoder {
                DecoderWrapper::ByteLevel(_) => scheme = Some(Self::ByteLevel),
                DecoderWrapper::ByteFallback(_) | DecoderWrapper::Replace(_) => {
                    scheme = scheme.or(Some(Self::Sentencepiece { strip_leading_space: false }));
                }
                DecoderWrapper::Metaspace(_) => {
                    scheme = Some(Self::Sentencepiece { strip_leading_space: false });
                    strip_leading_space = true;
                }
                DecoderWrapper::Strip(strip) => {
                    strip_leading_space |= strip.content == ' ' && strip.start > 0;
                }
                DecoderWrapper::Fuse(_) => {}
                other => return Err(unsupported_decoder(other)),
            }
        }
        match scheme {
            Some(Self::Sentencepiece { .. }) => Ok(Self::Sentencepiece { strip_leading_space }),
            Some(scheme) => Ok(scheme),
            None => Ok(Self::Words),
        }
    }
}

fn unsupported_decoder(decoder: &DecoderWrapper) -> Error {
    let debug = format!("{decoder:?}");
    Error::Unsupported {
        what: "the tokenizer's decoder",
        found: debug.split(['(', ' ']).next().unwrap_or_default().to_owned(),
        supported: "ByteLevel, Metaspace, a Sequence of Replace, ByteFallback, Fuse and Strip",
    }
}
