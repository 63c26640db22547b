//! Which tokens the model knows.

use stallfree_core::TokenId;

use crate::SubmitError;

/// The tokens that prompts may have: those below a number, or all. A device looks tokens up without asking whether they exist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vocabulary(pub(crate) Option<usize>);

impl Vocabulary {
    /// Refuses a prompt that has a token that the model does not know.
    pub(crate) fn check(self, prompt: &[TokenId]) -> Result<(), SubmitError> {
        let Some(vocab_size) = self.0 else { return Ok(()) };
        match prompt.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(SubmitError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }
}
