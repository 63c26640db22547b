//! What prompts say: tokens drawn from a seed, the same wherever prompts are to begin the same.

use rand::Rng as _;
use rand_pcg::Pcg64;

use super::{PREFIX_BLOCK, seeded};

/// A prompt's description; its tokens are made when it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// How many tokens it has.
    pub len: usize,
    /// How many of them every prompt of the workload begins with.
    pub num_shared: usize,
    /// After these, blocks of [`PREFIX_BLOCK`] tokens by their hashes: equal ids stand for equal tokens.
    pub blocks: Vec<u64>,
    /// The text, where the data set has it.
    pub text: Option<String>,
    /// What the other tokens are drawn from.
    pub seed: u64,
}

/// Makes prompts' tokens.
#[derive(Clone, Debug)]
pub struct PromptTokens {
    /// Tokens to draw from; every one may come up.
    vocabulary: Vocabulary,
}

#[derive(Clone, Debug)]
enum Vocabulary {
    Below(u32),
    Listed(Vec<u32>),
}

impl PromptTokens {
    /// Draws from the tokens below `vocab_size`.
    #[must_use]
    pub fn below(vocab_size: usize) -> Self {
        let limit = u32::try_from(vocab_size).unwrap_or(u32::MAX).max(1);
        Self { vocabulary: Vocabulary::Below(limit) }
    }

    /// Draws from a list; an empty one stands for token 0.
    #[must_use]
    pub fn listed(mut tokens: Vec<u32>) -> Self {
        if tokens.is_empty() {
            tokens.push(0);
        }
        Self { vocabulary: Vocabulary::Listed(tokens) }
    }

    /// Returns a prompt's tokens.
    #[must_use]
    pub fn of(&self, prompt: &Prompt) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(prompt.len);
        self.draw(Part::Shared, prompt.num_shared.min(prompt.len), &mut tokens);
        for &block in &prompt.blocks {
            let room = prompt.len - tokens.len();
            self.draw(Part::Block(block), room.min(PREFIX_BLOCK), &mut tokens);
        }
        self.draw(Part::Own(prompt.seed), prompt.len - tokens.len(), &mut tokens);
        tokens
    }

    fn draw(&self, part: Part, count: usize, tokens: &mut Vec<u32>) {
        let mut rng = part.generator();
        tokens.extend((0..count).map(|_| match &self.vocabulary {
            Vocabulary::Below(limit) => rng.random_range(0..*limit),
            Vocabulary::Listed(list) => list[rng.random_range(0..list.len())],
        }));
    }
}

/// What some of a prompt's tokens are.
#[derive(Clone, Copy)]
enum Part {
    Shared,
    Block(u64),
    Own(u64),
}

impl Part {
    fn generator(self) -> Pcg64 {
        match self {
            Self::Shared => seeded(0, 11),
            Self::Block(hash) => seeded(hash, 12),
            Self::Own(seed) => seeded(seed, 13),
        }
    }
}
