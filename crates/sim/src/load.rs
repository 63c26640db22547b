//! What a step asks of the device, summed over its chunks.

use stallfree_core::{Batch, Chunk};

/// A step's work, summed over its chunks; all that its cost depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLoad {
    /// Sequences.
    pub num_seqs: usize,
    /// Tokens: rows of every layer's matrix products.
    pub num_tokens: usize,
    /// Tokens that are sampled: rows of the head's product.
    pub num_samples: usize,
    /// Pairs of a query and a key over all chunks of more than one token.
    pub prefill_pairs: f64,
    /// Tokens whose keys and values those chunks read.
    pub prefill_context: f64,
    /// Tokens whose keys and values chunks of one token read.
    pub decode_context: f64,
}

impl StepLoad {
    /// Sums a batch up. `window` is how many positions back attention sees.
    #[must_use]
    pub fn of(batch: &Batch, window: Option<usize>) -> Self {
        let mut load = Self::default();
        for chunk in &batch.chunks {
            load.add_chunk(chunk, window);
        }
        load
    }

    fn add_chunk(&mut self, chunk: &Chunk, window: Option<usize>) {
        self.add(chunk.num_computed_tokens, chunk.num_tokens(), window);
        self.num_samples += usize::from(chunk.sample.is_some());
    }

    /// Adds a chunk of `num_tokens` tokens after `num_computed` others, without a sample.
    pub fn add(&mut self, num_computed: usize, num_tokens: usize, window: Option<usize>) {
        self.num_seqs += 1;
        self.num_tokens += num_tokens;
        let window = window.unwrap_or(usize::MAX);
        let context = num_computed + num_tokens;
        if num_tokens == 1 {
            self.decode_context += context.min(window) as f64;
            return;
        }
        self.prefill_context += context.min(window.saturating_add(num_tokens)) as f64;
        // The query at position p sees the smaller of p + 1 and the window.
        let growing = context.min(window).saturating_sub(num_computed);
        let (first, count) = (num_computed as f64, growing as f64);
        let flat = (num_tokens - growing) as f64;
        self.prefill_pairs += count * (first + 0.5f64.mul_add(count, 0.5));
        if growing < num_tokens {
            self.prefill_pairs += flat * window as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::StepLoad;

    #[test]
    fn pairs_are_counted_as_a_query_would() {
        for (computed, tokens, window) in
            [(0, 5, None), (7, 3, None), (0, 10, Some(4)), (3, 6, Some(5)), (90, 2, Some(8))]
        {
            let mut load = StepLoad::default();
            load.add(computed, tokens, window);
            let sees = |position: usize| (position + 1).min(window.unwrap_or(usize::MAX));
            let expected: usize = (computed..computed + tokens).map(sees).sum();
            assert!((load.prefill_pairs - expected as f64).abs() < 1e-9, "{computed} {tokens}");
        }
        let mut decode = StepLoad::default();
        decode.add(99, 1, None);
        assert_eq!((decode.decode_context, decode.prefill_pairs), (100.0, 0.0));
    }
}
