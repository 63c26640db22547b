//! Steps of single tokens, recorded as graphs: few numbers of sequences stand for all.

use std::collections::{HashMap, HashSet};

use stallfree_device::Graph;

use super::TIMED_ROWS;
use super::activations::{Activations, CudaTensor};

/// Recorded steps by their number of sequences.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    graphs: HashMap<usize, Recording>,
    /// Numbers of sequences that have run as they are: all that they need is compiled, loaded and chosen.
    seen: HashSet<usize>,
}

/// A recorded step; the activations are as its ops left them.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) graph: Graph,
    pub(super) result: CudaTensor,
    pub(super) activations: Activations,
}

impl Recordings {
    pub(super) fn get(&self, num_seqs: usize) -> Option<&Recording> {
        self.graphs.get(&num_seqs)
    }

    pub(super) fn insert(&mut self, num_seqs: usize, recording: Recording) {
        self.graphs.insert(num_seqs, recording);
    }

    /// Takes note that a step of so many sequences runs, and returns whether one did before.
    pub(super) fn has_run(&mut self, num_seqs: usize) -> bool {
        !self.seen.insert(num_seqs)
    }
}

/// Beyond [`TIMED_ROWS`] steps have a multiple of so many sequences. No more than these are ever added to one.
pub const STEP_MULTIPLE: usize = 64;

/// Returns how many sequences a step of `num_seqs` is run with: a number for which products are timed.
pub(super) fn padded_seqs(num_seqs: usize) -> usize {
    match num_seqs {
        0..=2 => num_seqs,
        3..=4 => 4,
        _ => {
            let timed = TIMED_ROWS.into_iter().find(|&rows| num_seqs <= rows);
            timed.unwrap_or_else(|| num_seqs.next_multiple_of(STEP_MULTIPLE))
        }
    }
}

/// Returns the numbers of sequences with which steps of up to `num_seqs` are run. The most come first: they need the most memory.
pub(super) fn sizes(num_seqs: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = (1..=num_seqs).rev().map(padded_seqs).collect();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::{STEP_MULTIPLE, padded_seqs, sizes};

    #[test]
    fn every_step_has_a_size() {
        let sizes = sizes(300);
        for num_seqs in 1..=300 {
            let size = padded_seqs(num_seqs);
            assert!(size >= num_seqs && size - num_seqs < STEP_MULTIPLE, "{num_seqs}: {size}");
            assert!(sizes.contains(&size), "{num_seqs}: {size}");
        }
        assert!(sizes.is_sorted_by(|a, b| a > b) && sizes.len() < 50, "{sizes:?}");
    }
}
