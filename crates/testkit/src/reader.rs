//! Who reads a sequence's output.

use stallfree_core::TokenId;
use stallfree_engine::OutputStream;

/// Reads a stream to its end, and returns its tokens.
///
/// # Panics
/// If the sequence ends with an error.
#[must_use]
pub fn read_tokens(stream: &mut OutputStream) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    while let Some(output) = stream.blocking_next() {
        assert_eq!(output.error, None);
        tokens.extend(output.tokens.iter().map(|token| token.token));
    }
    tokens
}
