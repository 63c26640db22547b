//! Blocks' contents, and how to cut them anew.

use std::borrow::Cow;
use std::ops::Range;

/// Which part of a model's KV a cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPart {
    /// The layers.
    pub layers: Range<usize>,
    /// The key-value heads.
    pub heads: Range<usize>,
}

impl KvPart {
    pub(crate) const fn num_pieces(&self) -> usize {
        (self.layers.end - self.layers.start) * (self.heads.end - self.heads.start)
    }

    fn index(&self, layer: usize, head: usize) -> usize {
        (layer - self.layers.start) * self.heads.len() + head - self.heads.start
    }

    fn contains(&self, layer: usize, head: usize) -> bool {
        self.layers.contains(&layer) && self.heads.contains(&head)
    }
}

/// A part of some blocks: `[block, layer, head]`, each a piece of so many bytes with a head's keys and values, in whatever order
/// the device keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvBytes {
    /// Which part.
    pub part: KvPart,
    /// Bytes of a piece.
    pub piece: usize,
    /// The pieces.
    pub bytes: Vec<u8>,
}

/// All parts of some blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvPayload {
    /// The parts, in any order. Several may hold the same heads.
    pub parts: Vec<KvBytes>,
}

impl KvPayload {
    /// Cuts out one part, with pieces of `piece` bytes, of `num_blocks` blocks.
    ///
    /// # Errors
    /// Something of it is missing, or pieces have another size: another block size, head dimension, element type or device.
    pub fn cut(
        &self,
        part: &KvPart,
        piece: usize,
        num_blocks: usize,
    ) -> Result<Cow<'_, [u8]>, String> {
        let len = num_blocks * part.num_pieces() * piece;
        // Split alike, nothing has to be cut.
        let alike =
            |from: &&KvBytes| (&from.part, from.piece, from.bytes.len()) == (part, piece, len);
        if let Some(whole) = self.parts.iter().find(alike) {
            return Ok(Cow::Borrowed(&whole.bytes));
        }
        let mut bytes = Vec::with_capacity(len);
        for block in 0..num_blocks {
            for layer in part.layers.clone() {
                for head in part.heads.clone() {
                    bytes.extend_from_slice(self.piece(block, (layer, head), piece)?);
                }
            }
        }
        Ok(Cow::Owned(bytes))
    }

    fn piece(
        &self,
        block: usize,
        (layer, head): (usize, usize),
        piece: usize,
    ) -> Result<&[u8], String> {
        let from = self.parts.iter().find(|from| from.part.contains(layer, head));
        let from = from.ok_or_else(|| format!("nobody sent layer {layer} of head {head}"))?;
        if from.piece != piece {
            return Err(format!(
                "a block of a head has {} bytes there and {piece} here; instances need the same block size and KV cache type",
                from.piece
            ));
        }
        let first = (block * from.part.num_pieces() + from.part.index(layer, head)) * piece;
        from.bytes
            .get(first..first + piece)
            .ok_or_else(|| format!("block {block} of layer {layer} is missing"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::borrow::Cow;

    use super::{KvBytes, KvPart, KvPayload};

    pub(crate) const LAYERS: usize = 5;
    const HEADS: usize = 4;
    const BLOCKS: usize = 3;

    /// Splits layers and heads; where there are more ranks than heads, several have the same one.
    pub(crate) fn parts(tensor: usize, stages: usize) -> Vec<KvPart> {
        let share = |len: usize, index: usize, of: usize| index * len / of..(index + 1) * len / of;
        (0..tensor * stages)
            .map(|rank| {
                let heads = share(HEADS, rank % tensor, tensor);
                let heads = if heads.is_empty() { heads.start..heads.start + 1 } else { heads };
                KvPart { layers: share(LAYERS, rank / tensor, stages), heads }
            })
            .collect()
    }

    fn bytes(part: &KvPart) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in 0..BLOCKS {
            for layer in part.layers.clone() {
                for head in part.heads.clone() {
                    bytes.extend([block as u8, (layer * 16 + head) as u8]);
                }
            }
        }
        bytes
    }

    #[test]
    fn any_split_can_be_cut_from_any_other() {
        let splits = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (1, 5), (4, 3)];
        for from in splits {
            let sent = parts(from.0, from.1).into_iter();
            let parts_sent =
                sent.map(|part| KvBytes { bytes: bytes(&part), part, piece: 2 }).collect();
            let payload = KvPayload { parts: parts_sent };
            for to in splits {
                for part in parts(to.0, to.1) {
                    let cut = payload.cut(&part, 2, BLOCKS).map(Cow::into_owned);
                    assert_eq!(cut, Ok(bytes(&part)), "{from:?} {to:?}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let part = KvPart { layers: 0..2, heads: 0..2 };
        let sent = KvBytes { bytes: bytes(&part), part: part.clone(), piece: 2 };
        let payload = KvPayload { parts: vec![sent] };
        let check = |part: &KvPart, piece, num_blocks, words: &str| {
            let error = payload.cut(part, piece, num_blocks).expect_err(words);
            assert!(error.contains(words), "{error}");
        };
        check(&part, 4, BLOCKS, "same block size");
        check(&part, 2, BLOCKS + 1, "block 3");
        check(&KvPart { layers: 0..3, heads: 0..2 }, 2, 1, "nobody sent layer 2");
    }
}
