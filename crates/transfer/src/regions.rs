//! Which bytes of a block are whose, where caches hold different parts of a model: what is copied from rank to rank.
//!
//! A GPU's block is `[layer, keys or values, head, token, element]`, with the layers and the heads of its rank.

use std::ops::Range;

use crate::KvPart;

/// Rows of bytes that are the same in a block of two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Where the first row begins in the block that is read, and in the one that is written.
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Bytes of a row, and how many rows.
    pub(crate) width: usize,
    pub(crate) rows: usize,
    /// Bytes from row to row.
    pub(crate) from_pitch: usize,
    pub(crate) to_pitch: usize,
}

/// Returns what a rank that holds `to` takes from those that hold `sources`: the number of the source, and the bytes. A head's keys
/// of a layer take `half` bytes of a block.
///
/// # Errors
/// Something of it nobody holds.
pub(crate) fn regions(
    to: &KvPart,
    sources: &[&KvPart],
    half: usize,
) -> Result<Vec<(usize, Region)>, String> {
    let mut regions = Vec::new();
    let mut taken: Vec<KvPart> = Vec::new();
    for (source, from) in sources.iter().enumerate() {
        let both = KvPart {
            layers: common(&to.layers, &from.layers),
            heads: common(&to.heads, &from.heads),
        };
        // Where there are more ranks than heads, several have the same.
        if both.num_pieces() > 0 && !taken.contains(&both) {
            regions.push((source, region(&both, to, from, half)));
            taken.push(both);
        }
    }
    let found: usize = taken.iter().map(KvPart::num_pieces).sum();
    if found != to.num_pieces() {
        return Err(format!("{found} of {} heads of all layers are there", to.num_pieces()));
    }
    Ok(regions)
}

fn common(one: &Range<usize>, other: &Range<usize>) -> Range<usize> {
    let start = one.start.max(other.start);
    start..one.end.min(other.end).max(start)
}

fn region(both: &KvPart, to: &KvPart, from: &KvPart, half: usize) -> Region {
    let start = |part: &KvPart| {
        let layer = both.layers.start - part.layers.start;
        (layer * 2 * part.heads.len() + both.heads.start - part.heads.start) * half
    };
    Region {
        from: start(from),
        to: start(to),
        width: both.heads.len() * half,
        rows: 2 * both.layers.len(),
        from_pitch: from.heads.len() * half,
        to_pitch: to.heads.len() * half,
    }
}

#[cfg(test)]
mod tests {
    use super::regions;
    use crate::KvPart;
    use crate::payload::tests::{LAYERS, parts};

    /// Bytes of a head's keys.
    const HALF: usize = 3;

    /// A rank's block, each byte of which says which it is.
    fn block(part: &KvPart) -> Vec<u8> {
        let mut bytes = Vec::new();
        for layer in part.layers.clone() {
            for half in 0..2 {
                for head in part.heads.clone() {
                    let first = ((layer * 2 + half) * 8 + head) * HALF;
                    bytes.extend((first..first + HALF).map(|byte| byte as u8));
                }
            }
        }
        bytes
    }

    #[test]
    fn any_split_is_copied_from_any_other() {
        let splits = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (1, 5), (4, 3)];
        for from in splits {
            let sources = parts(from.0, from.1);
            let references: Vec<&KvPart> = sources.iter().collect();
            for to in splits {
                for part in parts(to.0, to.1) {
                    let mut found = vec![255; block(&part).len()];
                    for (source, region) in regions(&part, &references, HALF).expect("all of it") {
                        let there = block(&sources[source]);
                        for row in 0..region.rows {
                            let from = region.from + row * region.from_pitch;
                            let to = region.to + row * region.to_pitch;
                            found[to..to + region.width]
                                .copy_from_slice(&there[from..from + region.width]);
                        }
                    }
                    assert_eq!(found, block(&part), "{from:?} {to:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let part = |layers, heads| KvPart { layers, heads };
        let whole = part(0..LAYERS, 0..4);
        let error = regions(&whole, &[&part(0..2, 0..4), &part(2..LAYERS, 0..2)], HALF);
        assert_eq!(error, Err("14 of 20 heads of all layers are there".to_owned()));
    }
}
