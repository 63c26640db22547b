//! A block of the KV cache as it lies in memory, and in pieces.

use crate::KvSpec;

/// A block: `[layer, keys or values, head, token, element]` of 16 bits each. A piece has one head's keys, then its values.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvBlock {
    num_layers: usize,
    num_heads: usize,
    /// Bytes of a head's keys, and of its values.
    half: usize,
}

impl KvBlock {
    pub(super) const fn new(spec: &KvSpec) -> Self {
        let half = spec.block_size * spec.head_dim * 2;
        Self { num_layers: spec.num_layers, num_heads: spec.num_kv_heads, half }
    }

    pub(super) const fn piece_bytes(self) -> usize {
        2 * self.half
    }

    pub(super) const fn bytes(self) -> usize {
        self.num_layers * self.num_heads * self.piece_bytes()
    }

    /// Returns where a head's keys and values begin in a block.
    fn places(self) -> impl Iterator<Item = [usize; 2]> {
        let Self { num_layers, num_heads, half } = self;
        (0..num_layers * num_heads).map(move |index| {
            let (layer, head) = (index / num_heads, index % num_heads);
            let keys = (layer * 2 * num_heads + head) * half;
            [keys, keys + num_heads * half]
        })
    }

    /// Appends a block's pieces.
    pub(super) fn take_apart(self, stored: &[u8], pieces: &mut Vec<u8>) {
        for at in self.places().flatten() {
            pieces.extend_from_slice(&stored[at..at + self.half]);
        }
    }

    /// Makes a block of its pieces.
    pub(super) fn put_together(self, pieces: &[u8], stored: &mut [u8]) {
        for (at, half) in self.places().flatten().zip(pieces.chunks_exact(self.half)) {
            stored[at..at + self.half].copy_from_slice(half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KvBlock;
    use crate::KvSpec;

    #[test]
    fn what_was_taken_apart_is_put_together() {
        let spec =
            KvSpec { num_layers: 3, num_blocks: 1, block_size: 2, num_kv_heads: 2, head_dim: 2 };
        let block = KvBlock::new(&spec);
        let stored: Vec<u8> = (0..block.bytes() as u8).collect();
        let (mut pieces, mut again) = (Vec::new(), vec![0; block.bytes()]);
        block.take_apart(&stored, &mut pieces);
        // The second head's keys lie behind the first one's, its values behind the first one's values.
        assert_eq!(pieces[16..32], [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31]);
        block.put_together(&pieces, &mut again);
        assert_eq!(again, stored);
    }
}
