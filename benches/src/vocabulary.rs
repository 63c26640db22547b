//! A vocabulary of bytes and words, so that no bench needs a file.

use stallfree_tokenizer::{GgufVocab, Tokenizer};

/// The first byte's token; a few that are not text come before it.
const FIRST_BYTE: u32 = 3;

/// The first word's token.
pub const FIRST_WORD: u32 = FIRST_BYTE + 256;

const NUM_WORDS: u32 = 32_000;

/// Returns the token that stands for one byte.
#[must_use]
pub const fn byte_token(byte: u8) -> u32 {
    FIRST_BYTE + byte as u32
}

/// Builds a tokenizer in SentencePiece's way, as large as Llama 2's: 256 bytes and 32,000 words of one token each.
///
/// # Panics
/// If such a vocabulary is refused.
#[must_use]
pub fn tokenizer() -> Tokenizer {
    let special = ["<unk>", "<s>", "</s>"].map(|name| (name.to_owned(), 3));
    let bytes = (0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), 6));
    let words = (0..NUM_WORDS).map(|word| (format!("▁w{word}"), 1));
    let (tokens, token_types): (Vec<_>, Vec<_>) =
        special.into_iter().chain(bytes).chain(words).unzip();
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let vocab = GgufVocab {
        model: "llama".to_owned(),
        pre: None,
        tokens,
        token_types,
        merges: Vec::new(),
        scores,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        pad: None,
        add_bos: None,
        add_space_prefix: None,
    };
    Tokenizer::from_gguf(vocab).expect("a vocabulary that agrees with itself")
}
