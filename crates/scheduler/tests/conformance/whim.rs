//! A policy that does anything that a policy can do.

use stallfree_scheduler::{Admission, Declaration, Scheduler, Step};

/// Chooses sequences, verbs and numbers of tokens by a random sequence that its seed determines.
#[derive(Debug)]
pub(crate) struct Whim {
    state: u64,
    admission: Admission,
}

impl Whim {
    pub(crate) const fn new(seed: u64, admission: Admission) -> Self {
        Self { state: seed, admission }
    }

    /// Returns a number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) as usize % end.max(1)
    }
}

impl Scheduler for Whim {
    fn declares(&self) -> Declaration {
        Declaration { token_bound: None, admission: self.admission, in_order: false }
    }

    fn schedule(&mut self, step: &mut Step<'_>) {
        for _ in 0..self.below(20) {
            match self.below(3) {
                // One past the end is no sequence.
                0 => {
                    let index = self.below(step.num_waiting() + 1);
                    let uncached = step.uncached(index);
                    let admitted = step.admit(index, self.below(12));
                    assert!(admitted.is_none() || (admitted > Some(0) && admitted <= uncached));
                }
                _ => {
                    let index = self.below(step.num_running() + 1);
                    let (work, before) = (step.work(index), step.num_tokens());
                    let limit = self.below(12);
                    if step.run(index, limit) && index < step.num_running() {
                        assert_eq!(step.num_tokens() - before, work.min(limit));
                    }
                }
            }
        }
        // So that it drains.
        let mut index = 0;
        while step.is_empty() && index < step.num_running() {
            step.run(index, 1);
            index += 1;
        }
        if step.is_empty() {
            step.admit(0, 1);
        }
    }
}
