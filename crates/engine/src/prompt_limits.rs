//! Which prompts an engine takes.

use stallfree_core::TokenId;

use crate::SubmitError;

/// Which prompts an engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLimits {
    /// The most tokens a sequence may have, prompt and output together.
    pub max_model_len: usize,
    /// How many tokens the model knows; `None` takes any. A device looks tokens up without asking whether they exist.
    pub vocab_size: Option<usize>,
}

impl PromptLimits {
    /// Checks that a prompt can ever run.
    ///
    /// # Errors
    /// It is empty, too long, or has a token that the model does not know.
    pub fn check(&self, prompt: &[TokenId]) -> Result<(), SubmitError> {
        let limit = self.max_model_len;
        if prompt.is_empty() {
            return Err(SubmitError::Empty);
        }
        if prompt.len() >= limit {
            return Err(SubmitError::TooLong { prompt: prompt.len(), limit });
        }
        let Some(vocab_size) = self.vocab_size else { return Ok(()) };
        match prompt.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(SubmitError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }
}
