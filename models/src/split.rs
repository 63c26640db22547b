//! How a model is split over ranks: which heads, columns and tokens are whose.
//!
//! # Source
//! Shoeybi et al. 2019, Megatron-LM, §3: a layer's first product is split by its outputs, the second by its inputs, so that ranks
//! meet once behind each pair.

use std::ops::Range;

use stallfree_comm::{Part, Share};
use stallfree_kernels::KvSpec;

use crate::{Error, ModelConfig};

/// Ranks' shares of the vocabulary begin at multiples of this, as vector loads ask for.
const TOKEN_UNIT: usize = 8;

impl ModelConfig {
    /// Checks that `tensor` ranks can share each layer, and that there are `stages` of layers.
    ///
    /// # Errors
    /// What does not divide, with the flag that asks for it.
    pub fn check_split(&self, tensor: usize, stages: usize) -> Result<(), Error> {
        let flag = "--tensor-parallel-size";
        let refuse = |flag, problem| Err(Error::Split { flag, problem });
        let divided = [
            ("attention heads", self.num_heads),
            ("elements between the feed-forward matrices", self.intermediate_size),
        ];
        for (what, count) in divided {
            if !count.is_multiple_of(tensor) {
                return refuse(flag, format!("{tensor} does not divide the {count} {what}"));
            }
        }
        let kv_heads = self.num_kv_heads;
        if !kv_heads.is_multiple_of(tensor) && !tensor.is_multiple_of(kv_heads) {
            let problem = format!(
                "of {tensor} and the {kv_heads} key-value heads, neither divides the other"
            );
            return refuse(flag, problem);
        }
        let last = Share { index: tensor - 1, of: tensor };
        if last.range_of_units(self.vocab_size, TOKEN_UNIT).is_empty() {
            let problem = format!("{tensor} is too many for {} tokens", self.vocab_size);
            return refuse(flag, problem);
        }
        if stages > self.num_layers {
            let problem = format!("{stages} is more than the {} layers", self.num_layers);
            return refuse("--pipeline-parallel-size", problem);
        }
        Ok(())
    }

    /// Returns how many layers a rank has, and how many weights, biases and norms left out.
    #[must_use]
    pub fn held_by(&self, part: Part) -> (usize, u64) {
        let (num_layers, share) = (self.layers_of(part).len(), part.tensor);
        let heads = self.heads_of(share).len() + self.kv_heads_of(share).len();
        let intermediate = share.range(self.intermediate_size).len();
        let layer = 2 * heads * self.head_dim + 3 * intermediate;
        let is_end = part.stage.is_first() && part.stage.is_last();
        let tables = match (is_end, self.tie_word_embeddings) {
            (true, false) => 2,
            (true, true) => 1,
            (false, _) => usize::from(part.stage.is_first() || part.stage.is_last()),
        };
        let columns = num_layers * layer + tables * self.tokens_of(share).len();
        (num_layers, columns as u64 * self.hidden_size as u64)
    }

    /// Returns the query heads of a rank.
    pub(crate) fn heads_of(&self, share: Share) -> Range<usize> {
        share.range(self.num_heads)
    }

    /// Returns the key-value heads of a rank, those of its query heads: where there are fewer than ranks, several ranks have the
    /// same one.
    #[must_use]
    pub fn kv_heads_of(&self, share: Share) -> Range<usize> {
        let range = share.range(self.num_kv_heads);
        if range.is_empty() { range.start..range.start + 1 } else { range }
    }

    /// Returns the elements of some heads.
    pub(crate) fn elements_of(&self, heads: Range<usize>) -> Range<usize> {
        heads.start * self.head_dim..heads.end * self.head_dim
    }

    /// Returns the tokens whose rows of the embedding table and the head a rank has.
    pub(crate) fn tokens_of(&self, share: Share) -> Range<usize> {
        share.range_of_units(self.vocab_size, TOKEN_UNIT)
    }

    /// Returns the layers of a rank.
    #[must_use]
    pub fn layers_of(&self, part: Part) -> Range<usize> {
        part.stage.range(self.num_layers)
    }

    /// Returns what a rank's KV cache has to hold for `num_blocks` blocks of `block_size` tokens.
    #[must_use]
    pub fn kv_spec(&self, part: Part, num_blocks: usize, block_size: usize) -> KvSpec {
        KvSpec {
            num_layers: self.layers_of(part).len(),
            num_blocks,
            block_size,
            num_kv_heads: self.kv_heads_of(part.tensor).len(),
            head_dim: self.head_dim,
        }
    }
}
