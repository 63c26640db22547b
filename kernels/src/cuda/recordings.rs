//! Steps of single tokens, recorded as graphs: few shapes stand for all.

use std::collections::{HashMap, HashSet};

use stallfree_device::Graph;

use super::TIMED_ROWS;
use super::activations::{Activations, CudaTensor};
use crate::StepShape;

/// Recorded steps by their shape.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    graphs: HashMap<StepShape, Recording>,
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

/// The shortest context that steps are recorded for.
const MIN_CONTEXT: usize = 512;
/// The longest context that steps are recorded for ahead of time: each shape takes milliseconds and a MiB or two.
const MAX_CONTEXT: usize = 4096;

impl Recordings {
    pub(super) fn get(&self, shape: StepShape) -> Option<&Recording> {
        self.graphs.get(&shape)
    }

    pub(super) fn insert(&mut self, shape: StepShape, recording: Recording) {
        self.graphs.insert(shape, recording);
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

/// Returns the longest context of the shape that a context of `context` belongs to.
pub(super) const fn padded_context(context: usize) -> usize {
    if context <= MIN_CONTEXT { MIN_CONTEXT } else { context.next_power_of_two() }
}

/// Returns the shapes up to `num_seqs` and `context`, but for contexts so long that they are better recorded when they come. The most
/// sequences come first: they need the most memory.
pub(super) fn shapes(num_seqs: usize, context: usize) -> Vec<StepShape> {
    let mut counts: Vec<usize> = (1..=num_seqs).map(padded_seqs).collect();
    counts.dedup();
    let last = padded_context(context.min(MAX_CONTEXT));
    let doubled = |context: &usize| Some(context * 2);
    let contexts = std::iter::successors(Some(MIN_CONTEXT), doubled).take_while(|&c| c <= last);
    let contexts: Vec<usize> = contexts.collect();
    counts
        .into_iter()
        .rev()
        .flat_map(|num_seqs| contexts.iter().map(move |&context| StepShape { num_seqs, context }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{STEP_MULTIPLE, padded_context, padded_seqs, shapes};

    #[test]
    fn every_step_has_a_shape() {
        let shapes = shapes(300, 5000);
        for num_seqs in 1..=300 {
            for context in [1, 511, 512, 513, 4096] {
                let shape = crate::StepShape {
                    num_seqs: padded_seqs(num_seqs),
                    context: padded_context(context),
                };
                assert!(shape.num_seqs >= num_seqs && shape.context >= context, "{shape:?}");
                assert!(shapes.contains(&shape), "{shape:?}");
                assert!(shape.num_seqs - num_seqs < STEP_MULTIPLE, "{shape:?}");
            }
        }
        assert!(shapes.len() < 200, "{}", shapes.len());
    }
}
